"""A small CLIP of texts where no CLIP is at hand, trained on the built-in pictures and their captions in minutes.

    python scripts/stand_in_clip.py
    python scripts/stand_in_clip.py out=runs/wide_clip width=256 depth=4

It has CLIP's tokenizer (open_clip's BPE), tokens and text vector, and knows emoji: experiment=ediffi/conditions_tiny
reads it. Of a real CLIP name the folder in its place: conditioner.clip_text.path=/path/to/clip-vit-large-patch14.
"""

from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Train it and write its folder."""
    if helped("stand_in_clip", __doc__, arguments):
        return 0
    tree = compose("stand_in_clip", arguments)
    from ldm.quickstart.stand_in_clip import make_stand_in_clip

    facts = make_stand_in_clip(tree)
    print(f"{facts['held_out_first']:.1%} of held-out pictures find their own of {facts['held_out_captions']} captions")
    print(f"use it with conditioner=[clip_text] conditioner.clip_text.path={tree['out']}")
    return 0


if __name__ == "__main__":
    guarded(main)
