"""Keep what samples are compared with, once for all: features of images under a backbone, with what they were made of.

    python scripts/reference.py out=coco.safetensors shards=/data/coco-val-*.tar image_size=256
    python scripts/reference.py out=runs/training.safetensors model=runs/quickstart-diffusion
    torchrun --nproc_per_node=8 scripts/reference.py out=moments.safetensors model=runs/base features=false

scripts/evaluate.py takes the file as reference=FILE, and refuses it for another backbone, size or resizing. Under
torchrun all processes share the work.
"""

from ldm.asked import check_reference, check_there
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Make the file, unless it is there, and print what it was made of."""
    if helped("reference", __doc__, arguments):
        return 0
    tree = compose("reference", arguments)
    check_reference(tree)
    check_there({"model": tree["model"]} if tree["model"] else {})
    from ldm.evaluation.reference_job import make

    path, found = make(tree)
    if found is None:
        return 0  # another process writes
    for key, value in found.made_of.items():
        print(f"{key:<12} {value}")
    print(f"in {path}{'' if found.features is not None else ', moments alone'}")
    return 0


if __name__ == "__main__":
    guarded(main)
