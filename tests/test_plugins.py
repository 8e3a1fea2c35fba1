"""Packages with parts of a user's own: a network in 30 lines elsewhere, and that no file of others has any imported."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from safetensors import safe_open
from toys import curve
from untrained import LABEL, OVERRIDES

import ldm
import sample
from ldm.build import Parts
from ldm.config import (
    answered,
    compose,
    dump,
    groups,
    load_tree,
    overriding,
    registry,
    use_plugins,
    validate,
    versions,
)  # fmt: skip
from ldm.errors import UserError
from ldm.fit import fit
from ldm.run import check_unchanged, load
from scripts import convert, encode, evaluate

ROOT = Path(__file__).resolve().parents[1]
NETWORK = '''"""Two convolutions, told of the noise and of a class."""

import torch
from torch import Tensor, nn


class TwoLayers(nn.Module):
    """x [B, in_channels, H, W], c_noise [B], vector [B, vector_width] -> [B, out_channels, H, W]."""

    factor = 1  # height and width of x are multiples of it

    def __init__(self, in_channels: int, out_channels: int, width: int, vector_width: int = 0):
        super().__init__()
        self.inner = nn.Conv2d(in_channels, width, 3, padding=1)
        self.noise = nn.Linear(1, width)
        self.vector = nn.Linear(vector_width, width) if vector_width else None
        self.outer = nn.Conv2d(width, out_channels, 3, padding=1)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: Tensor, c_noise: Tensor, *, vector: Tensor | None = None) -> Tensor:
        told = self.noise(c_noise[:, None])
        if self.vector is not None:
            told = told + self.vector(vector)
        return self.outer(torch.nn.functional.silu(self.inner(x) + told[:, :, None, None]))
'''
WIRED = '''from pathlib import Path

import pytorch_lightning as pl


class Heard(pl.Callback):
    """What it is given."""

    def __init__(self, lr: float = 1e-3, seed: int = -1, data: str = "own", schedule=None, max_steps: str = "many",
                 folder: Path | None = None, accumulation: int | None = None, ema: int | None = 7):
        self.got = dict(lr=lr, seed=seed, data=data, schedule=schedule, max_steps=max_steps, folder=folder,
                        accumulation=accumulation, ema=ema)


class NeedsRate(pl.Callback):
    def __init__(self, lr: float):
        pass


class Twisted(pl.Callback):
    def __init__(self, noise: pl.Callback | None = None):
        pass


class Guided(pl.Callback):
    def __init__(self, weak_model: object = None, classifier: object = None):
        self.got = (weak_model, classifier)


class Logs(pl.Callback):
    comes_first = True

    def on_train_batch_end(self, trainer, task, *_):
        task.logs["own"] = task.logs["loss"] * 0 + task.step


class LogsLate(Logs):
    comes_first = False


class LogsOtherwise(pl.Callback):
    def on_train_batch_end(self, trainer, task, *_):
        task.log("own", 1.0, on_epoch=True)


def lost(num_bins: int = 10):
    return {}["a key of its own"]


def odd(num_bins: int = 10):
    raise ValueError("num_bins of 10 divide nothing")
'''
CALLBACKS = ("Heard", "NeedsRate", "Twisted", "Guided", "Logs", "LogsLate", "LogsOtherwise")
CANARY = "from pathlib import Path\nPath({canary!r}).write_text('imported')\n\n\nclass Net:\n    pass\n"


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def callback(name: str) -> str:
    return f"{name.lower()}:\n  _target_: own_parts.wired.{name}\n"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the package own_parts, from where commands are started."""
    network = "_target_: own_parts.network.TwoLayers\nwidth: 8\n"
    experiment = "# @package _global_\n# python train.py plugins=[own_parts] experiment=own_parts/small\ndefaults:\n"
    write(
        tmp_path / "own_parts",
        {
            "__init__.py": "",
            "network.py": NETWORK,
            "wired.py": WIRED,
            "hidden.py": "class Net: pass\n",
            "conf/network/two_layers.yaml": network,
            "conf/experiment/own_parts/small.yaml": experiment + "  - override /network: two_layers\naccumulation: 4\n",
            **{f"conf/callback/{n.lower()}.yaml": callback(n) for n in CALLBACKS},
            "conf/resampler/lost.yaml": "_target_: own_parts.wired.lost\n",
            "conf/resampler/odd.yaml": "_target_: own_parts.wired.odd\n",
        },
    )
    path = list(sys.path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    use_plugins([])
    sys.path[:] = path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("own_parts", "stranger")]:
        del sys.modules[name]


PLUGINS = "plugins=[own_parts]"
WORDS = [
    *(word for word in OVERRIDES if not word.startswith("network")), *LABEL, PLUGINS, "network=two_layers",
    "callback=[checkpoint]", "data.batch_size=4", "data.max_samples=16", "data.validation_samples=4",
    "data.num_workers=0", "trainer.accelerator=cpu", "trainer.precision=32-true", "max_steps=2",
    "conditioner.label.num_classes=20", "conditioner.label.slot=vector",
]  # fmt: skip


def run_words(folder: Path, *more: str) -> list[str]:
    return overriding([*WORDS, f"runs_dir={folder}/runs", *more])


def test_a_network_from_elsewhere_is_trained_resumed_sampled_and_exported(elsewhere, capsys):
    tree = compose("config", run_words(elsewhere))
    assert tree["plugins"] == ["own_parts"] and "two_layers" in groups()["network"]
    run = fit(tree, "own")
    [(name, version)] = json.loads((run.folder / "lineage.json").read_text())["plugins"].items()
    assert name == "own_parts" and re.fullmatch(r"sha256:[0-9a-f]{12}", version)

    write(elsewhere / "own_parts", {"later.py": "# another version\n"})
    run = fit(compose("config", run_words(elsewhere, "max_steps=3")), "own")
    assert run.lineage["finished_step"] == 3 and run.lineage["plugins"][name] != version
    assert f"was trained with the plugins {{'own_parts': '{version}'}}" in capsys.readouterr().out

    words = [f"model={run.folder}", "label=3", "num_images=2", "num_steps=2", f"out={elsewhere}/images", "device=cpu"]
    assert sample.main([*words, PLUGINS]) == 0 and (elsewhere / "images" / "grid.png").exists()
    words = ["export", f"model={run.folder}", "format=safetensors", f"out={elsewhere}/out"]
    assert convert.main([*words, PLUGINS]) == 0
    with safe_open(elsewhere / "out" / "model.safetensors", "pt") as file:
        assert {"network.inner.weight", "conditioner.parts.label.embedding.weight"} <= set(file.keys())
        weights = file.get_tensor("network.inner.weight")
    assert torch.equal(weights, load(run.folder).denoiser.network.inner.weight)
    assert yaml.safe_load((elsewhere / "out" / "config.yaml").read_text())["plugins"] == ["own_parts"]

    use_plugins([])
    with pytest.raises(UserError, match=r"plugins=\[own_parts\], in Python plugins=\['own_parts'\]"):
        ldm.load(run.folder, device="cpu")
    for plugins in (["own_parts"], None, "own_parts"):  # None: those that were named before
        model = ldm.load(run.folder, device="cpu", plugins=plugins)
        assert len(model.sample(label=3, num_images=2, num_steps=1)) == 2

    use_plugins([])  # as in a command that does not name it
    for module in [name for name in sys.modules if name.partition(".")[0] == "own_parts"]:
        del sys.modules[module]
    commands = (
        lambda: sample.main([f"model={run.folder}", "label=3"]),
        lambda: evaluate.main([f"model={run.folder}"]),
        lambda: encode.main([f"first_stage={run.folder}", "out=cache", "data=quickstart"]),
        lambda: convert.main(words),
        lambda: fit(compose("config", [*OVERRIDES, f"branch={run.folder}", f"runs_dir={elsewhere}/runs"]), "branch"),
    )
    for command in commands:
        with pytest.raises(UserError, match=r"config\.yaml: needs the package own_parts, .* plugins=\[own_parts\]"):
            command()
    assert "own_parts" not in sys.modules


@pytest.mark.slow
def test_the_same_as_commands_started_elsewhere(elsewhere):
    def command(script: str, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, str(ROOT / script), *words], cwd=elsewhere, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    train = [*run_words(elsewhere), "run=own"]
    command("train.py", *train)
    assert "finished at step 2" in command("train.py", *train)
    command("sample.py", f"model={elsewhere}/runs/own", PLUGINS, "label=3", "num_images=1", "device=cpu")
    command("scripts/convert.py", "export", "model=runs/own", "format=safetensors", "out=out", PLUGINS)
    assert (elsewhere / "samples" / "grid.png").exists() and (elsewhere / "out" / "model.safetensors").exists()


def test_an_experiment_of_a_plugin_is_found_and_what_does_not_need_it_does_not_name_it(elsewhere):
    words = [word for word in run_words(elsewhere, "experiment=own_parts/small") if word != "network=two_layers"]
    tree = compose("config", words)
    assert tree["network"]["_target_"] == "own_parts.network.TwoLayers" and tree["accumulation"] == 4
    assert compose("config", [*OVERRIDES, PLUGINS])["plugins"] == []
    assert "two_layers" in groups()["network"]
    assert "network=two_layers\n  network.width=8" in answered("config", "", ["--help=network", PLUGINS])
    assert "# python train.py plugins=[own_parts]" in answered("config", "", ["--help", *words])
    with pytest.raises(ValueError, match=r"network\.widht: no such key; did you mean 'network.width'"):
        compose("config", [*words, "network.widht=3"])
    assert "own_parts.network" not in sys.modules, "its code is imported where it is built"
    assert compose("config", OVERRIDES)["plugins"] == [] and "two_layers" not in groups()["network"]
    assert not any(name.startswith("own_parts") for name in registry())


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("conf/network/unet.yaml", "_target_: own_parts.network.TwoLayers", r"network/unet\.yaml is in ldm already"),
        ("conf/netwrok/a.yaml", "_target_: own_parts.network.TwoLayers", r"netwrok/a\.yaml is in no group"),
        ("conf/sample.yaml", "a: 1", r"sample\.yaml is in no group"),
        ("conf/network/a.yaml", "width: 8", r"network/a\.yaml: describes no part, which has _target_"),
        (
            "conf/network/a.yaml",
            "a:\n  _target_: own_parts.network.TwoLayers",
            r"^network: its file has a below it, where",
        ),
        (
            "conf/callback/a.yaml",
            "_target_: own_parts.wired.Logs",
            r"^callback: own_parts\.wired\.Logs is described at the "
            "top of its file; .* under a name of its own",
        ),
        (
            "conf/callback/a.yaml",
            "a:\n  b:\n    _target_: own_parts.wired.Logs",
            r"callback/a\.yaml: describes no part",
        ),
        ("conf/network/a.yaml", "[1", r"network/a\.yaml: not to be read as YAML"),
        ("conf/experiment/a.yaml", "# @package _global_\nplugins: [os]", r"plugins: is for the command line"),
        (
            "conf/network/a.yaml",
            "_target_: os.system",
            r"network\._target_=os\.system: names nothing that may be built",
        ),
        ("conf/network/a.yaml", "_target_: own_parts.nowhere.Net", r"there is no module own_parts\.nowhere"),
        ("conf/network/a.yaml", "_target_: own_parts.network.Nothing", r"names nothing that may be built"),
        ("conf/network/a.yaml", "_target_: own_parts.network.TwoLayers\nwidht: 8", r"network\.widht: no such key"),
    ],
)
def test_what_is_wrong_in_a_package_is_a_line(elsewhere, file, text, said):
    write(elsewhere / "own_parts", {file: text})
    words = [word for word in run_words(elsewhere) if word != "network=two_layers"]
    with pytest.raises(UserError, match=said):
        group = file.split("/")[1]
        compose("config", overriding([*words, f"{group}=[a]" if group == "callback" else f"{group}=a"]))


@pytest.mark.parametrize("name", ["nosuch", "os", "torch", "ldm", "data", "../own_parts", "own_parts.network", "a b"])
def test_what_is_no_package_with_parts_is_refused_before_it_is_imported(elsewhere, name):
    with pytest.raises(UserError, match=r"^plugins="):
        compose("config", [*OVERRIDES, f"plugins=['{name}']"])
    with pytest.raises(UserError, match="no such key"):
        compose("quickstart", [PLUGINS])


def test_an_entry_point_names_a_package_of_an_installed_distribution(elsewhere, monkeypatch):
    info = {
        "METADATA": "Metadata-Version: 2.1\nName: own\nVersion: 1.2\n",
        "entry_points.txt": "[ldm.plugins]\nmine = own_parts\n",
    }
    write(elsewhere / "own-1.2.dist-info", info)
    monkeypatch.syspath_prepend(str(elsewhere))
    tree = compose("config", run_words(elsewhere, "plugins=[mine]"))
    assert tree["plugins"] == ["own_parts"] and versions(tree) == {"own_parts": "1.2"}


def test_a_run_from_before_there_were_plugins_goes_on(tmp_path):
    tree = compose("config", OVERRIDES)
    check_unchanged({key: tree[key] for key in tree if key not in ("plugins", "callback_add")}, tree, tmp_path)


# Trees of others


@pytest.fixture
def stranger(elsewhere: Path) -> Path:
    """A package that may be imported, whose code says so; returns the file where it does."""
    canary = elsewhere / "canary"
    text = CANARY.format(canary=str(canary))
    write(
        elsewhere / "stranger",
        {"__init__.py": text, "net.py": text, "conf/network/n.yaml": "_target_: stranger.net.Net"},
    )
    write(elsewhere / "own_parts", {"hidden.py": text})
    sys.path.append(str(elsewhere))
    return canary


@pytest.mark.parametrize("named", [[], ["own_parts"]])
@pytest.mark.parametrize(
    "change",
    [
        {"plugins": ["stranger"], "network": {"_target_": "stranger.net.Net"}},
        {"network": {"_target_": "stranger.net.Net"}},
        {"plugins": ["stranger"]},
        {"plugins": "stranger", "network": {"_target_": "stranger.net.Net"}},
        {"plugins": {"stranger": 1}, "network": {"_target_": "stranger.net.Net"}},
        {"plugins": [["stranger"]], "sampler": {"_target_": "stranger.net.Net", "_partial_": True}},
        {"network": {"_target_": "own_parts.hidden.Net"}},
        {"conditioner": {"a": {"_target_": "own_parts.hidden.Net"}}},
        {"network": {"_target_": "own_parts"}},
    ],
)
def test_a_tree_of_others_has_nothing_imported_that_the_command_line_does_not_name(elsewhere, stranger, change, named):
    tree = {**compose("config", OVERRIDES), **change}
    (elsewhere / "config.yaml").write_text(dump(tree))
    use_plugins(named)
    with pytest.raises(UserError) as caught:
        load_tree(elsewhere / "config.yaml")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError):
        validate({"network": {"_target_": "stranger.net.Net"}})
    assert not stranger.exists() and "stranger" not in sys.modules


# What parts are given


def test_a_part_is_given_what_its_annotations_accept(elsewhere):
    words = run_words(elsewhere, "callback=[checkpoint,heard]", "seed=5", "accumulation=2")
    parts = Parts(compose("config", words), folder=elsewhere)
    heard, last = parts.callbacks
    assert heard.got == {
        "lr": 1e-3, "seed": 5, "data": "own", "schedule": None, "max_steps": "many", "folder": elsewhere,
        "accumulation": 2, "ema": None,
    }  # fmt: skip
    assert type(last).__name__ == "Checkpoint", "it comes last"
    [guided, _] = Parts(
        compose("config", run_words(elsewhere, "callback=[guided,checkpoint]")), folder=elsewhere
    ).callbacks
    assert guided.got == (None, None), "what there is none of keeps its default"


def test_what_a_callback_logs_is_written_or_refused(elsewhere):
    def run(*names: str) -> dict[int, float]:
        words = run_words(elsewhere, "callback.metrics.every_steps=1", f"callback=[{','.join(names)}]")
        return curve(fit(compose("config", words), "-".join(names)).folder, "train/own")

    assert run("metrics", "checkpoint", "logs") == {1: 1.0, 2: 2.0}
    assert run("logslate", "metrics", "checkpoint") == {1: 1.0, 2: 2.0}, "as it is written"
    with pytest.raises(UserError, match=r"task\.logs\['own'\]: was put there after .*comes_first = True"):
        run("metrics", "checkpoint", "logslate")
    with pytest.raises(UserError, match=r"log\('own'\): Lightning counts other steps .*task\.logs\['own'\]"):
        run("logsotherwise", "metrics", "checkpoint")


@pytest.mark.parametrize(
    ("word", "error", "said"),
    [
        ("callback=[needsrate]", UserError, r"callback\.needsrate \(NeedsRate\) needs lr: set callback\.needsrate\.lr"),
        ("callback=[twisted]", UserError, r"\(Twisted\) takes noise as .*, and the one chosen is a LogNormal"),
        ("resampler=lost", KeyError, "a key of its own"),
        ("resampler=odd", UserError, r"resampler \(odd\): num_bins of 10 divide nothing"),
        ("optimizer.lr=-1", UserError, r"optimizer\.lr=-1: must be at least 0"),
        ("~optimizer.lr", UserError, r"optimizer \(adamw\) needs lr: set optimizer\.lr"),
    ],
)
def test_a_part_is_never_left_out_in_silence(elsewhere, word, error, said):
    parts = Parts(compose("config", run_words(elsewhere, word)), folder=elsewhere)
    with pytest.raises(error, match=said):
        assert parts["task"] and parts.callbacks


def test_a_network_without_a_factor_is_told_so(elsewhere):
    write(elsewhere / "own_parts", {"network.py": NETWORK.replace("    factor = 1", "    # factor = 1")})
    with pytest.raises(UserError, match=r"network \(TwoLayers\): says no factor, .*factor = 1"):
        Parts(compose("config", run_words(elsewhere)))["denoiser"]


def test_a_network_of_another_size_is_told_so_before_a_step(elsewhere):
    narrower = NETWORK.replace("out_channels, 3, padding=1", "out_channels, 3")
    write(elsewhere / "own_parts", {"network.py": narrower})
    with pytest.raises(UserError, match=r"network TwoLayers: gives \(4, 3, 6, 6\) for \(4, 3, 8, 8\)"):
        fit(compose("config", run_words(elsewhere)), "own")
    assert not list(elsewhere.glob("runs/own/checkpoints/*"))
