"""Published checkpoints in, other formats out.

    python scripts/convert.py layout experiment=ldm/first_stage/kl_f8
    python scripts/convert.py import checkpoint=model.ckpt experiment=ldm/first_stage/kl_f8 out=runs/kl scale_factor=0.2
    python scripts/convert.py import checkpoint=model.ckpt experiment=ldm/cin256_v2 out=runs/cin256
    python scripts/convert.py export model=runs/kl format=diffusers out=exported/kl

layout prints key<TAB>shape of the published layout. import makes a run to sample, evaluate or branch from. The latents'
scale_factor is the file's own or the published one where it is known; a first stage's is measured over data.train if
that is given. format is safetensors, published, diffusers, or lora of an adapter alone. plugins=[package] where the
model was made of its parts.
"""

from pathlib import Path

from ldm.config import check_once, compose, guarded, meant, take_plugins
from ldm.errors import UserError

KEYS = {
    "layout": {},
    "import": {
        "checkpoint": "a published file of weights",
        "out": "the run's folder, which is made",
        "scale_factor": "of the latents; the file's own or the published one if it is not given",
    },
    "export": {
        "model": "a run's folder, one of its weights files, or an ensemble's manifest",
        "format": "safetensors, published or diffusers",
        "out": "the folder or file to write",
    },
}
OPTIONAL = ("scale_factor",)


def main(arguments: list[str]) -> int:
    """Exit status 0 once it is printed or written."""
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(f"{__doc__.strip()}\n\nkeys")
        for job, keys in KEYS.items():
            for key, meaning in keys.items():
                print(f"  {job:<8}{key + '=':<16}# {meaning}")
        print("layout and import take experiment= and other keys of train.py too (python train.py --help).")
        return 0
    job, *rest = arguments
    if job not in KEYS:
        raise UserError(f"{job}: say what to do first, one of {', '.join(KEYS)}")
    check_once(rest)
    if job == "export":
        rest = take_plugins(rest)
    given = dict(word.partition("=")[::2] for word in rest)
    own = {key: meant(key, given[key]) for key in KEYS[job] if given.get(key) or (key in OPTIONAL and key in given)}
    for key in KEYS[job]:
        if not own.get(key) and key not in OPTIONAL:
            raise UserError(f"{key}: has to be given, {key}=...")
    overrides = [word for word in rest if word.partition("=")[0] not in KEYS[job]]
    if job == "export":
        if overrides:
            raise UserError(
                f"{overrides[0].partition('=')[0]}: no such key; export takes {', '.join(KEYS[job])}, plugins"
            )
        from ldm.convert import export_model

        for path in export_model(Path(own["model"]), own["format"], Path(own["out"])):
            print(path)
        return 0
    tree = compose("config", overrides, complete=False)
    from ldm.convert import import_checkpoint, layout

    if job == "layout":
        print("\n".join(layout(tree)))
    else:
        run = import_checkpoint(Path(own["checkpoint"]), tree, Path(own["out"]), _number(own.get("scale_factor")))
        print(f"imported into {run.folder}")
    return 0


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        raise UserError(f"scale_factor={text}: expected a number") from None


if __name__ == "__main__":
    guarded(main)
