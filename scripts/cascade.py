"""Write the manifest that makes a base and super-resolution models one model.

    python scripts/cascade.py out=runs/cascade.yaml stages=[runs/base,runs/sr16,runs/sr256.yaml]
    python scripts/cascade.py out=runs/enlarge.yaml stages=[runs/sr16,runs/sr32] resident=one

A stage is a run or an ensemble's manifest, and called by its name. NAME.KEY= says how it is sampled: sampler, sigmas,
num_steps, guidance, tiling, use_conditions, and how many images at once, batch_size; the rest is as its run says.

    base.num_steps=25 sr16.num_steps=10 sr16.sampler=heun sr16.guidance.scale=1.5 sr256.batch_size=1
"""

from pathlib import Path

from ldm.asked import check_there, split
from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Write the manifest and print it as a table."""
    if helped("cascade", __doc__, arguments):
        return 0
    own, others = split("cascade", arguments)
    tree = compose("cascade", own)
    check_there(tree)
    from ldm.cascade.manifest import names_of, write_manifest
    from ldm.cascade.words import asked_of
    from ldm.loading import load_stage

    models = [Path(model).expanduser() for model in tree["stages"]]
    asked = asked_of(names_of(models), others)
    made = write_manifest(Path(tree["out"]), models, asked, load_stage, tree["resident"])
    for stage in made.stages:
        sampling = stage.drawer.sampling(stage.recipe.asked({}))
        steps = f"{len(sampling.sigmas) - 1} steps of {next(iter(stage.recipe.plain['sampler']))}"
        small = f"{stage.size // stage.factor} -> " if stage.factor > 1 else ""
        digests = ", ".join(own.digest[:12] for own in stage.drawer.weights)
        print(f"{stage.name:<32} {small}{stage.size} px  {steps}  {digests}")
    print(f"written to {tree['out']}")
    return 0


if __name__ == "__main__":
    guarded(main)
