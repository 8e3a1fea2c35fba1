"""Files made to harm whoever loads them: each function writes one and returns what loading it means.

The harm is a canary, a file that would exist if code had run; or time and memory without end.
"""

import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from untrained import untrained_run

from ldm.checkpoint import resume
from ldm.config import compose, dump, load_tree
from ldm.convert import export_model, foreign_file
from ldm.data.seals import sealed
from ldm.ensemble import load_ensemble
from ldm.files import sha256, write_json
from ldm.run import load, open_run

Load = Callable[[], Any]
Make = Callable[[Path, Path], Load]  # (folder to write to, canary) -> load


class Run:
    """Unpickled, it runs a command."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.canary}",)


class Evaluate(Run):
    def __reduce__(self) -> tuple:
        return eval, (f"open({str(self.canary)!r}, 'w')",)


class LoadMore(Run):
    """Unpickled, it has torch load another pickle, without restrictions."""

    def __reduce__(self) -> tuple:
        inner = self.canary.with_name("inner.pkl")
        inner.write_bytes(pickle.dumps(Run(self.canary)))
        return torch.load, (str(inner),)


class Numpy(Run):
    def __reduce__(self) -> tuple:
        import numpy

        inner = self.canary.with_name("inner.npy")
        inner.write_bytes(pickle.dumps(Run(self.canary)))
        return numpy.load, (str(inner), None, True)


# Checkpoints: state.pt under a manifest that is the attacker's own


def checkpoint(folder: Path, content: bytes) -> Load:
    path = folder / "checkpoints" / "step_00000001.ckpt"
    path.mkdir(parents=True)
    (path / "state.pt").write_bytes(content)
    (path / "state.json").write_text("{}\n")
    files = {name: sha256(path / name) for name in ("state.json", "state.pt")}
    (path / "manifest.json").write_text(resume._text({"step": 1, "finite": True, "files": files}))
    assert resume.damage(path) is None
    return lambda: resume.load(path)


def saved(state: Any, **how: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, **how)
    return buffer.getvalue()


def rezipped(content: bytes, replaced: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A file of torch.save with other records in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, replaced.get(name.partition("/")[2], old.read(name)))
    return buffer.getvalue()


def scripted(canary: Path) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), buffer)
    return buffer.getvalue()


STRING_OF_A_GIB = b"\x80\x04\x8d" + struct.pack("<Q", 1 << 30) + b"short."
STATES: dict[str, Callable[[Path], bytes]] = {
    "command": lambda canary: saved({"trained": Run(canary)}),
    "eval": lambda canary: saved({"trained": Evaluate(canary)}),
    "torch.load": lambda canary: saved({"trained": LoadMore(canary)}),
    "numpy.load": lambda canary: saved({"trained": Numpy(canary)}),
    "before torch 1.6": lambda canary: saved([Run(canary)], _use_new_zipfile_serialization=False),
    "bare pickle": lambda canary: pickle.dumps(Run(canary)),
    "whole module": lambda canary: saved(torch.nn.Linear(1, 1)),
    "TorchScript": scripted,
    "string of a GiB": lambda canary: rezipped(saved({}), {"data.pkl": STRING_OF_A_GIB}),
    "tensor larger than its storage": lambda canary: saved({"a": torch.zeros(4)}).replace(b"K\x04", b"K\xff"),
    "compressed zeros": lambda canary: rezipped(saved({}), {"data.pkl": bytes(1 << 26)}, zipfile.ZIP_DEFLATED),
    "nothing": lambda canary: b"",
    "text": lambda canary: b"import os\n",
}


def checkpoint_of(make: Callable[[Path], bytes]) -> Make:
    return lambda folder, canary: checkpoint(folder, make(canary))


def manifest_of_pipe(folder: Path, canary: Path) -> Load:
    checkpoint(folder, saved({}))
    path = folder / "checkpoints" / "step_00000001.ckpt"
    (path / "state.pt").unlink()
    os.mkfifo(path / "state.pt")
    return lambda: resume.load(path)


def deep_manifest(folder: Path, canary: Path) -> Load:
    checkpoint(folder, saved({}))
    path = folder / "checkpoints" / "step_00000001.ckpt"
    (path / "manifest.json").write_text("[" * 100_000)
    return lambda: resume.newest(folder / "checkpoints")


# Published checkpoints


def imported(make: Callable[[Path], bytes], name: str = "model.ckpt") -> Make:
    def build(folder: Path, canary: Path) -> Load:
        (folder / name).write_bytes(make(canary))
        return lambda: foreign_file.read(folder / name)

    return build


class LightningTrap(Run):
    """A global of Lightning's, the only ones that are let through, as objects that do nothing."""

    def __reduce__(self) -> tuple:
        from pytorch_lightning.core.saving import load_hparams_from_yaml

        trap = self.canary.with_name("trap.yaml")
        trap.write_text(f"!!python/object/apply:os.system ['touch {self.canary}']")
        return load_hparams_from_yaml, (str(trap), False)


# safetensors


def tensors(header: bytes | dict, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


SAFETENSORS: dict[str, bytes] = {
    "a header of a TiB": tensors(b"{}", length=1 << 40),
    "the longest header": tensors(b"{}", length=(1 << 64) - 1),
    "a header cut short": tensors(b'{"a": ', length=4000),
    "overlapping tensors": tensors({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, bytes(12)),
    "a shape of more than its bytes": tensors({"a": entry(0, 8, [1 << 40])}, bytes(8)),
    "a shape that overflows": tensors({"a": entry(0, 8, [1 << 62, 1 << 62])}, bytes(8)),
    "offsets beyond the file": tensors({"a": entry(0, 1 << 40, [1 << 38])}, bytes(8)),
    "offsets that go back": tensors({"a": entry(8, 0, [2])}, bytes(8)),
    "an unknown type": tensors({"a": entry(0, 8, [2], "pickle")}, bytes(8)),
    "deep nesting": tensors(b'{"a":' + b"[" * 100_000),
    "a pickle": pickle.dumps({"a": 1}),
}


def weights_of(content: bytes) -> Make:
    def build(folder: Path, canary: Path) -> Load:
        run = untrained_run(folder / "run")
        file = run / "weights" / "step_00000001.ema.safetensors"
        file.write_bytes(content)
        description = run / "weights" / "step_00000001.json"
        told = json.loads(description.read_text())
        write_json(description, sealed({**told, "sha256": {"ema": sha256(file)}}))
        return lambda: load(run)

    return build


def description_of(text: str) -> Make:
    def build(folder: Path, canary: Path) -> Load:
        run = untrained_run(folder / "run")
        (run / "weights" / "step_00000001.json").write_text(text)
        return lambda: load(run)

    return build


def pickled_weights(folder: Path, canary: Path) -> Load:
    """A file of weights that is a pickle, its hash as it should be."""
    return weights_of(saved({"a": Run(canary)}))(folder, canary)


# Configurations

BOMB = "a: &a [x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
OPEN_CLIP = "{_target_: ldm.metrics.clip_score.open_clip_score, model: 'local-dir:FOLDER', weights: CANARY}"
TREES: dict[str, str] = {
    "a metric for a number": f"schedule: {{_target_: ldm.diffusion.schedule.VE, c_noise_scale: {OPEN_CLIP}}}",
    "a metric for any module": "reconstruction: {_target_: ldm.first_stage.reconstruction.ReconstructionLoss, "
    f"lpips: {OPEN_CLIP}}}",
    "a metric at the root": OPEN_CLIP,
    "a metric in a group of sampling": f"alignment: {OPEN_CLIP}",
    "a metric for a network": f"network: {OPEN_CLIP}",
    "a metric in a list": f"callback: [{OPEN_CLIP}]",
    "a metric for a callback": f"callback: {{panels: {OPEN_CLIP}}}",
    "a metric in a mapping": "data: {_target_: ldm.data.module.ShardData, train: x, batch_size: 1, "
    f"fields: {{caption: {OPEN_CLIP}}}}}",
    "a metric in a key that nobody has": f"nothing: {{at: {{all: {OPEN_CLIP}}}}}",
    "a network for a precondition": "precond: {_target_: ldm.networks.unet.UNet}",
    "a part that waits": "network: {_target_: ldm.networks.unet.UNet, _partial_: true}",
    "a number for a part": "network: 3",
    "text for parts": "conditioner: text",
    "alias bomb": BOMB,
    "merge bomb": "a: &a {x: 1}\nb: {<<: [*a, *a]}\n",
    "python object": "a: !!python/object/apply:os.system ['touch CANARY']",
    "python name": "a: !!python/name:os.system",
    "python module": "a: !!python/module:os",
    "os.system": "a: {_target_: os.system, command: touch CANARY}",
    "subprocess": "a: {_target_: subprocess.run, args: [touch, CANARY]}",
    "torch.load": "a: {_target_: torch.load, f: CANARY}",
    "torch.hub.load": "a: {_target_: torch.hub.load, repo_or_dir: x, model: y}",
    "numpy.load": "a: {_target_: numpy.load, file: CANARY, allow_pickle: true}",
    "eval": "a: {_target_: builtins.eval, source: x}",
    "a target that ours import": "a: {_target_: ldm.checkpoint.resume.torch.load, f: x}",
    "a function of ours that writes": "a: {_target_: ldm.files.write_text, path: CANARY, text: x}",
    "a nested target": "network: {_target_: ldm.networks.unet.UNet, channels: {_target_: os.system, command: x}}",
    "deep nesting": "a: " + "[" * 20_000,
    "deep mappings": "".join(f"{' ' * depth}a:\n" for depth in range(400)),
    "an endless number": "a: 1" + ":59" * 30_000,
    "ten megabytes": "a: [" + "[]," * 3_300_000 + "]",
    "interpolation": "_target_: ${oc.env:HOME}",
}


def tree_of(text: str) -> Make:
    def build(folder: Path, canary: Path) -> Load:
        (folder / "config.yaml").write_text(text.replace("CANARY", str(canary)).replace("FOLDER", str(folder)))
        return lambda: load_tree(folder / "config.yaml")

    return build


def tree_of_pipe(folder: Path, canary: Path) -> Load:
    os.mkfifo(folder / "config.yaml")
    return lambda: load_tree(folder / "config.yaml")


def tree_without_end(folder: Path, canary: Path) -> Load:
    (folder / "config.yaml").symlink_to("/dev/zero")
    return lambda: load_tree(folder / "config.yaml")


# Manifests of ensembles, lineages, what is exported

MANIFESTS: dict[str, str] = {
    "a path outside": "members: [{run: FOLDER, weights: ../../secret, sha256: s, intervals: [[0, .inf]]}]",
    "an absolute path": "members: [{run: FOLDER, weights: /etc/passwd, sha256: s, intervals: [[0, .inf]]}]",
    "a pipe": "members: [{run: 'pipe:touch CANARY', weights: w, sha256: s, intervals: [[0, .inf]]}]",
    "python object": "members: !!python/object/apply:os.system ['touch CANARY']",
    "alias bomb": BOMB + "members: *i",
    "deep nesting": "members: " + "[" * 20_000,
}


def manifest_of(text: str) -> Make:
    def build(folder: Path, canary: Path) -> Load:
        (folder / "ensemble.yaml").write_text(text.replace("CANARY", str(canary)).replace("FOLDER", str(folder)))
        (folder / "secret").write_text("x")
        return lambda: load_ensemble(folder / "ensemble.yaml")

    return build


def pickled_manifest(folder: Path, canary: Path) -> Load:
    (folder / "ensemble.yaml").write_bytes(pickle.dumps(Run(canary)))
    return lambda: load_ensemble(folder / "ensemble.yaml")


LINEAGES: dict[str, str] = {
    "a list": "[1]",
    "deep nesting": '{"a":' * 100_000,
    "an id that is a path": '{"wandb_id": "../../../tmp/x"}',
    "an id that is an option": '{"wandb_id": "x --project y"}',
    "a parent that is text": '{"wandb_id": "a", "parent": "x"}',
    "a step that is text": '{"wandb_id": "a", "finished_step": "x"}',
    "a pickle": "\x80\x04cos\nsystem\n",
}


def lineage_of(text: str) -> Make:
    def build(folder: Path, canary: Path) -> Load:
        run = untrained_run(folder / "run", f"runs_dir={folder}")
        (run / "lineage.json").write_text(text)
        tree = {**load_tree(run / "config.yaml"), "overwrite": False}
        return lambda: open_run(tree, "run")

    return build


def exported(folder: Path, canary: Path) -> Load:
    """A run to export whose first stage is a command."""
    run = untrained_run(folder / "run")
    tree = (run / "config.yaml").read_text().replace("first_stage: null", f"first_stage: 'pipe:touch {canary}'")
    (run / "config.yaml").write_text(tree)
    return lambda: export_model(run, "diffusers", folder / "out")


LARGER: dict[str, Callable[[dict], Any]] = {
    "a width of 8 million": lambda tree: tree["network"].update(channels=8_000_000),
    "blocks without end": lambda tree: tree["network"].update(num_blocks=10**18),
    "levels without end": lambda tree: tree["network"].update(multipliers=[1] * 9000),
    "ten thousand million classes": lambda tree: tree["conditioner"]["label"].update(num_classes=10**10),
    "images of a gigapixel a side": lambda tree: tree.update(image_size=10**9),
    "a schedule without end": lambda tree: tree.update(
        schedule={"_target_": "ldm.diffusion.schedule.linear", "num_timesteps": 10**12}
    ),
    "groups of nothing": lambda tree: tree["network"].update(norm_groups=0),
    "patches of the largest number": lambda tree: tree["network"].update(patch_size=2**63 - 1),
    "another network": lambda tree: tree["network"].update(num_blocks=2),
}


def larger(change: Callable[[dict], Any]) -> Make:
    """A run whose tree describes more than its weights."""

    def build(folder: Path, canary: Path) -> Load:
        run = untrained_run(folder / "run")
        tree = load_tree(run / "config.yaml")
        change(tree)
        (run / "config.yaml").write_text(dump(tree))
        return lambda: load(run)

    return build


def open_clip(model: str, weights: str) -> Make:
    """A metric of open_clip, or what pretends to be one of its models."""

    def build(folder: Path, canary: Path) -> Load:
        from ldm.metrics.clip_score import open_clip_score

        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": OPEN_CLIP_CODE, "preprocess_cfg": {}}))
        (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\nclass Evil:\n    pass\n")
        settings = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
        (folder / "weights.pt").write_bytes(saved({"a": Run(canary)}))
        (folder / "weights.npz").write_bytes(b"")
        return lambda: open_clip_score(model.replace("FOLDER", str(folder)), weights.replace("FOLDER", str(folder)))

    return build


OPEN_CLIP_CODE = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 8, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1,
                 "hf_tokenizer_name": "x", "tokenizer_kwargs": {"trust_remote_code": True}},
}  # fmt: skip
OPEN_CLIPS = {
    "a folder": ("local-dir:FOLDER", "FOLDER/weights.pt"),
    "a folder in capitals": ("LOCAL-DIR:FOLDER", "FOLDER/weights.pt"),
    "a path": ("FOLDER", "FOLDER/weights.pt"),
    "a repository": ("hf-hub:evil/evil", "FOLDER/weights.pt"),
    "a name with a space": (" local-dir:FOLDER", "FOLDER/weights.pt"),
    "weights that run": ("RN50", "FOLDER/weights.pt"),
    "weights of numpy": ("RN50", "FOLDER/weights.npz"),
    "weights of a repository": ("RN50", "hf-hub:evil/evil"),
}


def pipe_url(folder: Path, canary: Path) -> Load:
    tree = compose("config", ["experiment=quickstart/autoencoder", f"data.train=pipe:touch {canary}"])
    from ldm.build import Parts

    return lambda: Parts(tree)["data"].setup()


def average_of(text: str) -> Make:
    """Snapshots of averages whose description is `text`."""

    def build(folder: Path, canary: Path) -> Load:
        run = untrained_run(folder / "run")
        description = run / "weights" / "step_00000001.json"
        told = json.loads(description.read_text())
        profiles = {"num_updates": 10, "sigma_rels": {"ema": 0.05}}
        write_json(description, sealed({**told, "ema_profiles": profiles}))
        (run / "snapshots").mkdir()
        (run / "snapshots" / "step_00000001.json").write_text(text)
        return lambda: load(run, ema="0.1")

    return build


CASES: dict[str, Make] = {
    **{f"checkpoint: {name}": checkpoint_of(make) for name, make in STATES.items()},
    "checkpoint: a pipe": manifest_of_pipe,
    "checkpoint: deep manifest": deep_manifest,
    **{f"import: {name}": imported(make) for name, make in STATES.items()},
    "import: a global of Lightning": imported(lambda canary: saved({"state_dict": {}, "x": LightningTrap(canary)})),
    **{
        f"import: {name}": imported(lambda canary, c=content: c, "m.safetensors")
        for name, content in SAFETENSORS.items()
    },
    **{f"weights: {name}": weights_of(content) for name, content in SAFETENSORS.items()},
    "weights: a pickle that runs": pickled_weights,
    "weights: deep description": description_of('{"sha256":' * 100_000),
    "weights: a list for a description": description_of("[1]"),
    "weights: a description of 20 MB": description_of('{"sha256": {}, "x": "' + "x" * 20_000_000 + '"}'),
    **{f"tree: {name}": tree_of(text) for name, text in TREES.items()},
    **{f"network: {name}": larger(change) for name, change in LARGER.items()},
    **{f"open_clip: {name}": open_clip(*words) for name, words in OPEN_CLIPS.items()},
    "tree: a pipe": tree_of_pipe,
    "tree: without end": tree_without_end,
    **{f"ensemble: {name}": manifest_of(text) for name, text in MANIFESTS.items()},
    "ensemble: a pickle": pickled_manifest,
    **{f"lineage: {name}": lineage_of(text) for name, text in LINEAGES.items()},
    "export: a command for a first stage": exported,
    "data: a command": pipe_url,
    "averages: deep description": average_of("[" * 100_000),
}
