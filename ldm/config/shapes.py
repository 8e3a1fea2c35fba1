"""Whether a group holds its parts where they belong: one part itself, of several each under a name of its own."""

from typing import Any

from ldm.errors import UserError


def check_shape(group: str, node: Any, several: bool) -> None:
    """Raises UserError for what a file of conf/ puts at another depth than its group has parts at."""
    if not isinstance(node, dict):
        return
    if several and "_target_" in node:
        raise UserError(
            f"{group}: {str(node['_target_'])[:200]} is described at the top of its file; where there may be several, "
            f"each stands under a name of its own: NAME: {{_target_: ...}}, chosen by {group}=[FILE]"
        )
    for where, part in [(f"{group}.{key}", value) for key, value in node.items()] if several else [(group, node)]:
        inner = list(part) if isinstance(part, dict) and "_target_" not in part else []
        if inner and all(isinstance(part[key], dict) and "_target_" in part[key] for key in inner):
            raise UserError(
                f"{where}: its file has {', '.join(map(str, inner))} below it, where the part itself belongs, with "
                f"_target_ at its top{'; several of a file stand beside each other' if several else ''}"
            )
