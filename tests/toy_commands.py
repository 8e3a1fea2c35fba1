"""The commands of README and docs/ in a folder of their own, at toy length, and what they need made for them."""

import importlib
import io
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from documents import ROOT, Block, Command, blocks, commands
from PIL import Image
from toys import EXPERIMENTS, TINY_RUN, shrunk, train

from ldm.asked import split
from ldm.build import Parts, is_first_stage, kind_of, load_first_stage
from ldm.config import CONF, compose, expand_sweep, load_tree, overriding, run_name, use_plugins
from ldm.launching.choice import take_launcher

ELSEWHERE = "/path/to/"  # what readers put their own folders in the place of
NEWEST = "step_00000002"  # in the place of any other step of a run
# Names of runs that no command makes, beside those that are called as their experiments.
EXPERIMENT_OF = {"cin256": "ldm/cin256_v2"}
SMALL = ["device=cpu", "num_steps=2"]
METRIC = ["metric.size=32", "num_samples=4", "batch_size=4"]
DATA = ["data.max_samples=16", "data.validation_samples=4", "data.num_workers=0"]
# What happens at each step of a toy, all but the first where the command asks for it.
PROBE = ["num_images=4", "num_samples=4", "fit_steps=2", "batch_size=4", "channels=32", "num_steps=2", "metric.size=32"]
OFTEN = ("callback.checkpoint.every_steps", "callback.weight_norm.every_steps", "ema.snapshot_every_steps")
# What is put behind the words of each script.
TOYS = {
    "sample": [*SMALL, "num_images=2"],
    "scripts/evaluate": [*SMALL, *METRIC],
    "scripts/prompt_suite": [*SMALL, "num_images=1", "batch_size=80"],
    "scripts/attention_shares": [*SMALL, "num_samples=4", "batch_size=4"],
    "scripts/prompt_switch": [*SMALL, "num_samples=4", "batch_size=4", "num_switches=3"],
    "scripts/composed_suite": [*SMALL, "num_prompts=2"],
    "scripts/reference": ["device=cpu", "metric.size=32", "max_samples=16"],
    "scripts/likelihood": ["device=cpu", "num_samples=4", "num_timesteps=10", "num_levels=4", "tolerance=10"],
    "scripts/nearest": [*SMALL, *METRIC, "neighbours=2"],
    "scripts/holes_sheet": [*SMALL, "num_samples=2"],
    "scripts/propose_split": ["device=cpu", "num_samples=4", "bins=2", "levels=3"],
    "scripts/style_sheet": [*SMALL, "num_prompts=2", "num_styles=2"],
    "scripts/stand_in_clip": ["device=cpu", "max_steps=2", "batch_size=8", *DATA],
    "scripts/sampler_table": ["device=cpu", *METRIC, "steps=[2]", "samplers=[heun,dpmpp_2m]"],
    "scripts/cluster_plan": ["experiments=[ldm/ffhq]", "gpus=[1,8]"],
    "scripts/cost_table": ["device=cpu", "batch_size=2"],
    "scripts/expert_loss": ["device=cpu", "num_samples=4", "bins=2"],
    "scripts/expert_cost": ["device=cpu", "batch_size=2", "passes=2", "experts=[1,2]"],
    "scripts/sweep_report": ["device=cpu", *METRIC],
    "scripts/encode": ["device=cpu", *DATA],
    "scripts/make_canvases": ["samples=20", "validation_samples=8"],
    "scripts/make_shards": ["workers=1", "shard_samples=12", "validation=0.2"],
}


class Workshop:
    """A folder in which commands are run, each once, with the runs and files that they name made before them."""

    def __init__(self, folder: Path, documented: list[Command]):
        self.folder = folder
        self._done: set[tuple[str, ...]] = set()
        self._making: list[str] = []
        self._makers = {made: command for command in documented if command.runs for made in makes(command)}
        _write_inputs(folder)

    def run(self, command: Command) -> None:
        """Run a command of ours at toy length; AssertionError if it fails."""
        words = [self._here(word) for word in command.words]
        if (command.script, *words) in self._done:
            return
        self._done.add((command.script, *words))
        for text in (command.script, *command.words):
            if not text.startswith("out="):
                self.provide(text)
        use_plugins([])
        for arguments in self._toys(command.script, words):
            status = main_of(command.script)(arguments)
            assert status in (0, None), f"{command}: status {status} of {' '.join(arguments)}"

    def write(self, block: Block) -> None:
        """The file that a block is."""
        path = self.folder / block.note
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)

    def execute(self, block: Block, names: dict) -> None:
        """Run the lines of Python in a block, with the `names` of those before it."""
        self.provide(block.text)
        exec(compile(block.text, str(block), "exec"), names)

    def provide(self, text: str) -> None:
        """Make the runs and shards that are named in `text`, and are not there, by the documented commands."""
        for made, command in self._makers.items():
            if made in text and not self._there(made) and made not in self._making:
                self._making.append(made)
                self.run(command)
        for name in set(_names_of_runs(text)) - {made.removeprefix("runs/") for made in self._makers}:
            if not (self.folder / "runs" / name).exists():
                self._stand_in(name)

    def _there(self, made: str) -> bool:
        return Path(self._here(made)).exists() or (self.folder / made).exists()

    def _here(self, word: str) -> str:
        return _renamed(word).replace(ELSEWHERE, f"{self.folder}{ELSEWHERE}")

    def _stand_in(self, name: str) -> None:
        """A toy in the place of a published model, if the name of the run tells which."""
        maybe = (EXPERIMENT_OF.get(name), name.replace("-", "/", 1), f"ldm/{name}", f"ldm/first_stage/{name}")
        for experiment in maybe:
            if experiment in EXPERIMENTS:
                first_stage = [] if "first_stage" in experiment else ["first_stage=runs/quickstart-autoencoder"]
                self.provide(" ".join(first_stage))
                train(experiment, Path("runs"), *first_stage, run=name)
                return

    def _toys(self, script: str, words: list[str]) -> list[list[str]]:
        """The command lines to call a script with in the place of `words`: several for a sweep."""
        if only_tells(words):
            return [words]
        if script == "train" and "-m" in words:
            swept = expand_sweep([word for word in words if word != "-m"])
            jobs = [overriding([*job, f"run={run_name(job, keys)}"]) for job, keys in swept]
            return [self._trained(job) for job in (jobs[0], jobs[-1])]
        verified = any(word.startswith("verify=") for word in words)
        if script == "train" or (script == "scripts/doctor" and not verified):
            return [self._trained(words)]
        if script == "scripts/convert" or verified or any(word.startswith("again=") for word in words):
            return [words]
        more = TOYS.get(script, [])
        if script == "scripts/encode" and "data=quickstart" in words:
            more = [*more, *TINY_RUN[:2]]
        if script == "scripts/evaluate" and self._is_first_stage(words):
            more = [word for word in more if not word.startswith("num_steps=")]
        if any(word.startswith("image_size=") for word in words):
            more = [*more, "image_size=64"]
        return [overriding([*words, *more])]

    def _is_first_stage(self, words: list[str]) -> bool:
        model = next(word.removeprefix("model=") for word in words if word.startswith("model="))
        config = self.folder / model / "config.yaml"
        return config.exists() and is_first_stage(load_tree(config))

    def _trained(self, words: list[str]) -> list[str]:
        build(words)
        own = [word for word in words if word.startswith(("data.train=", "data.validation=", "data.mixture="))]
        often = [f"{key}=1" for key in OFTEN if key == OFTEN[0] or any(w.startswith(key) for w in words)]
        probe = [f"callback.latent_probe.{key}" for key in PROBE if "callback_add=[latent_probe]" in words]
        toy = overriding([*shrunk(words), *often, *probe, "trainer.devices=1", *own])
        return [word for word in toy if not (word.startswith("data.max_samples=") and "data.train=null" in own)]


def build(words: list[str]) -> None:
    """Build the model of a command line of train.py as it stands, without memory: a toy may hide a wrong key."""
    tree = compose("config", words)
    stage = {"first_stage": load_first_stage(Path(tree["first_stage"]))} if tree["first_stage"] else {}
    part = {"first_stage": "autoencoder", "classifier": "classifier"}.get(kind_of(tree), "denoiser")
    parts = Parts(tree, **stage)
    assert part != "denoiser" or parts["schedule"] is not None  # looks at its own numbers, which meta has none of
    with torch.device("meta"):
        assert parts[part] is not None


def only_tells(words: Sequence[str]) -> bool:
    """Whether a command line asks for help or for its tree, and runs nothing."""
    return any(word in ("--cfg", "-c") or word.startswith("--help") for word in words)


def main_of(script: str) -> Callable[[list[str]], int | None]:
    """What is called with the words after a script's name."""
    return importlib.import_module(script.replace("/", ".")).main


def makes(command: Command) -> list[str]:
    """The folders and files that a command makes, by the names that others know them by."""
    outs = [word.removeprefix("out=") for word in command.words if word.startswith("out=")]
    if command.script != "train" or only_tells(command.words):
        return outs
    if "-m" in command.words:
        return ["scripts/sweep_report"]  # which takes them all
    return [f"runs/{run_name(list(command.words))}"]


def check(command: Command) -> None:
    """Hold the words of a command that is not run to the keys that there are."""
    script, words = command.script, list(command.words)
    if script == "make":
        targets = {line.partition(":")[0] for line in (ROOT / "Makefile").read_text().splitlines()}
        assert {word for word in words if "=" not in word} <= targets, command
    elif script == "train" and "-m" in words:
        _, words = take_launcher([word for word in words if word != "-m"])
        for job, _ in expand_sweep(words):
            compose("config", job, complete=False)
    elif script in ("train", "scripts/doctor"):
        compose("config", words, complete=False)
    elif script == "scripts/convert":
        own = importlib.import_module("scripts.convert").KEYS[words[0]]
        compose("config", [word for word in words[1:] if word.partition("=")[0] not in own], complete=False)
    elif script in ("scripts/make_shards", "scripts/make_idx_shards", "scripts/map_classes"):
        importlib.import_module(script.replace("/", ".")).parse(words)
    elif script.startswith("scripts/dev/"):
        text = (ROOT / f"{script}.py").read_text()
        assert all(f'"{word.partition("=")[0]}": ' in text for word in words), command
    else:
        root = script.removeprefix("scripts/")
        assert (CONF / f"{root}.yaml").exists(), f"{command}: no such script"
        compose(root, split(root, words)[0] if root == "cascade" else words, complete=False)


def _renamed(word: str) -> str:
    parts = word.split("step_")
    return "step_".join([parts[0], *[NEWEST.removeprefix("step_") + part[8:] for part in parts[1:]]])


def _names_of_runs(text: str) -> list[str]:
    found = []
    for part in text.split("runs/")[1:]:
        name = "".join(itertools.takewhile(lambda c: c.isalnum() or c in "-_.", part))
        if name and not name.endswith(".yaml"):
            found.append(name)
    return found


def _write_inputs(folder: Path) -> None:
    """Pictures, tables, annotations and shards of the kinds that the pages name."""
    rng = np.random.default_rng(0)

    def picture(path: Path, side: int = 48) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)

    images = folder / ELSEWHERE.lstrip("/") / "images"
    names = [f"{kind}/{number:02d}.png" for kind in ("cats", "dogs") for number in range(20)]
    for name in names:
        picture(images / name)
    (folder / "photos.csv").write_text("file,text\n" + "".join(f"{name},a photo\n" for name in names))
    for number in range(20):
        picture(folder / ELSEWHERE.lstrip("/") / "rooms" / f"{number:02d}.png")
        picture(folder / ELSEWHERE.lstrip("/") / "rooms" / f"{number:02d}.depth.png")
    for number in range(12):
        picture(folder / "train2017" / f"{number}.png")
    _write_maps_and_boxes(folder / ELSEWHERE.lstrip("/"), picture)
    listed = [{"id": n, "file_name": f"{n}.png", "height": 48, "width": 48} for n in range(12)]
    boxes = [{"id": n, "image_id": n, "category_id": 1, "bbox": [4, 4, 20, 20]} for n in range(12)]
    said = [{"id": n, "image_id": n, "caption": "a thing"} for n in range(12)]
    kinds = [{"id": 1, "name": "thing"}]
    for name, own in (("instances", {"annotations": boxes, "categories": kinds}), ("captions", {"annotations": said})):
        (folder / f"{name}_train2017.json").write_text(json.dumps({"images": listed, **own}))
    for name in ("photo.png", "small.png"):
        picture(folder / name, 32 if name == "photo.png" else 8)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 8:20] = 255
    Image.fromarray(mask).save(folder / "hole.png")
    Image.fromarray((mask > 0).astype(np.uint8)).save(folder / "classes.png")
    np.save(folder / "embeddings.npy", np.ones((3, 8), np.float32))
    sheet = np.full((32, 32, 3), 255, np.uint8)
    sheet[:16, :16], sheet[16:, 16:] = (255, 0, 0), (0, 255, 0)
    Image.fromarray(sheet).save(folder / "sheet.png")
    (folder / "phrases.json").write_text('{"red heart": "red", "key": {"colour": "lime", "strength": -1}}')
    (folder / "objects.json").write_text(json.dumps({"objects": [{"category": 0, "box": [0, 0, 0.5, 0.5]}]}))
    (folder / "evaluation.txt").write_text("no-such-key\n")
    facts = {"similarity": 0.3, "LANGUAGE": "en", "caption": "a photo", "width": 300, "height": 300}
    for name in ("photos", "art", "laion"):
        (folder / ELSEWHERE.lstrip("/") / name).mkdir()
        with wds.TarWriter(str(folder / ELSEWHERE.lstrip("/") / name / "00000.tar")) as writer:
            for number in range(16):
                pixels = io.BytesIO()
                Image.new("RGB", (300, 300), (15 * number, 100, 200)).save(pixels, "png")
                writer.write({"__key__": f"{name}{number:03d}", "png": pixels.getvalue(), "json": json.dumps(facts)})


def _write_maps_and_boxes(folder: Path, picture: Callable[[Path], None]) -> None:
    """Images with maps of classes, and what is read of OpenImages."""
    for number in range(12):
        picture(folder / "scenes" / "images" / f"{number}.png")
        path = folder / "scenes" / "maps" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((48, 48), number, np.uint8)).save(path)
    (folder / "openimages").mkdir()
    (folder / "openimages" / "class-descriptions-boxable.csv").write_text("/m/1,Tree\n/m/2,Person\n")
    for part in ("train", "validation"):
        rows = ["ImageID,LabelName,XMin,XMax,YMin,YMax,IsOccluded,IsGroupOf,IsDepiction,IsInside"]
        for number in range(12):
            picture(folder / "openimages" / part / f"{number}.png")
            rows += [f"{number},/m/{label},0.1,0.5,0.1,0.5,0,0,0,0" for label in (1, 2)]
        name = f"{'oidv6-' if part == 'train' else ''}{part}-annotations-bbox.csv"
        (folder / "openimages" / name).write_text("\n".join(rows) + "\n")


def documented(pages: list[Path]) -> list[Command]:
    """All commands of the pages."""
    return [command for page in pages for block in blocks(page) for command in commands(block)]
