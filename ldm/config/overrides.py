"""Hydra's reading of single overrides."""

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from ldm.config.keys import OWNED
from ldm.errors import UserError
from ldm.redaction import redacted


def parse(overrides: list[str]) -> list[Override]:
    """Hydra's reading of each override. Raises ValueError naming the one that cannot be read."""
    parser = OverridesParser.create()
    parsed = []
    for text in overrides:
        shown = redacted(text)
        shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
        try:
            override = parser.parse_override(text)
        except (HydraException, RecursionError) as error:
            raise UserError(
                f"cannot read {shown!r} on the command line: write key=value, and quote special characters, "
                "as in 'key=\"a b\"'"
            ) from error
        key = override.key_or_group
        if key.split(".")[0].split("/")[0] == "hydra":
            raise UserError(f"{key}: no such key; a run's folder is runs_dir/run")
        if not key or override.package is not None:
            raise UserError(f"{shown!r}: no such key; write key=value or group=option")
        if key in OWNED:
            raise UserError(f"{key}: cannot be set by itself, the run does it; write {OWNED[key]}=... instead")
        parsed.append(override)
    return parsed
