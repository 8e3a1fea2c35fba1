"""Experiments shrunk to toys: real trainers on the built-in images, in a second or two."""

import atexit
import csv
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import webdataset as wds
from PIL import Image

from ldm.checkpoint import resume
from ldm.conditioners import clip
from ldm.config import CONF, compose, groups, overriding
from ldm.config.keys import bare
from ldm.convert.clip_encoder import write_encoder, write_tokenizer
from ldm.fit import fit
from ldm.networks.downloads import locate
from ldm.run import Run

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = ROOT / "data" / "quickstart"
EXPERIMENTS = sorted(str(p.relative_to(CONF / "experiment").with_suffix("")) for p in CONF.glob("experiment/**/*.yaml"))

# What makes any experiment tiny, and a part of it by the part's target. LPIPS needs images of 31 px or more.
TINY_RUN = [
    f"data.train={QUICKSTART}/train-00000.tar",
    f"data.validation={QUICKSTART}/validation-00000.tar",
    "image_size=32",
    "max_steps=2",
    "num_steps=2",
    "data.batch_size=4",
    "data.max_samples=16",
    "data.validation_samples=4",
    "data.num_workers=0",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "lr=constant",
]
TINY_PARTS = {
    "ldm.training.optim.constant": ["warmup_steps=0"],
    "ldm.training.optim.cosine": ["warmup_steps=0"],
    "ldm.training.callbacks.metrics.Metrics": ["every_steps=1"],
    "ldm.training.callbacks.checkpoint.Checkpoint": ["every_steps=1000"],
    "ldm.training.callbacks.validation.Validation": ["every_steps=1000"],
    "ldm.training.callbacks.panels.Panels": ["every_steps=1000", "num_images=2"],
    "ldm.networks.autoencoder.Autoencoder": ["channels=8", "num_blocks=1", "norm_groups=4", "mid_attention=false"],
    "ldm.networks.discriminator.PatchDiscriminator": ["channels=4", "num_layers=2"],
    "ldm.first_stage.regularizers.VQ": ["num_codes=32"],
    "ldm.first_stage.reconstruction.ReconstructionLoss": ["lpips.net=alex", "start_step=1"],
    "ldm.networks.unet.UNet": [
        "channels=8", "multipliers=[1,2]", "num_blocks=1", "attention_factors=[2]", "head_channels=8", "norm_groups=4",
        "patch_size=1", "num_heads=null",
    ],
    "ldm.networks.adm_unet.ADMUNet": [
        "channels=8", "multipliers=[1,2]", "num_blocks=1", "attention_factors=[2]", "head_channels=8", "norm_groups=4",
    ],
    "ldm.networks.efficient_unet.EfficientUNet": [
        "channels=8", "multipliers=[1,2]", "num_blocks=1", "block_multipliers=[1,2]", "self_attention_factors=[2]",
        "cross_attention_factors=[2]", "head_channels=8", "norm_groups=4",
    ],
    "ldm.networks.dit.DiT": ["patch_size=1", "width=8", "depth=2", "num_heads=2", "cross_attention_every=1"],
    "ldm.conditioners.transformer.CaptionTransformer": ["width=8", "depth=1"],
    "ldm.conditioners.transformer.LayoutTransformer": ["width=8", "depth=1"],
    "ldm.conditioners.boxes.Boxes": ["width=8"],
    "ldm.conditioners.embeddings.Embeddings": ["width=8"],
    "ldm.networks.encoder_unet.EncoderUNet": [
        "channels=8", "multipliers=[1,2]", "num_blocks=1", "attention_factors=[2]", "head_channels=8", "norm_groups=4",
    ],
}  # fmt: skip


def tiny(experiment: str, runs_dir: Path, *more: str) -> list[str]:
    """The command line of `experiment` as a toy in `runs_dir`; `more` comes last and wins.

    What `more` chooses of a group, ``network=dit``, is made tiny, and not what the experiment has in its place.
    """
    chosen = tuple(word for word in more if bare(word) in (*groups(), "callback_add", "plugins"))
    words = [*_tiny(experiment, chosen), f"runs_dir={runs_dir}", *more]
    return overriding(words)


@cache
def _tiny(experiment: str, chosen: tuple[str, ...]) -> list[str]:
    """The same without `more`, of which `chosen` are the words that choose options."""
    return shrunk([f"experiment={experiment}"], chosen)


def shrunk(words: Sequence[str], chosen: Sequence[str] = ()) -> list[str]:
    """The command line `words` of train.py as a toy under the options of `chosen`, which are not among what comes back.

    What makes it tiny takes the place of what it says of that.
    """
    words = overriding([*words, *TINY_RUN, "~logger"])
    tree = compose("config", overriding([*words, *chosen]), complete=False)
    conditioners = {f"conditioner.{name}": part for name, part in (tree["conditioner"] or {}).items()}
    callbacks = {f"callback.{name}": part for name, part in (tree["callback"] or {}).items()}
    for place, part in {**tree, **conditioners, **callbacks}.items():
        if isinstance(part, dict):
            words += [f"{place}.{key}" for key in TINY_PARTS.get(part.get("_target_"), [])]
    if "conditioner.clip_text" in conditioners:
        folder = clip_image_folder if "vector" in tree["conditioner"]["clip_text"]["slots"] else clip_folder
        words.append(f"conditioner.clip_text.path={folder()}")
    if "conditioner.t5" in conditioners:
        words += [f"conditioner.t5.path={t5_folder()}", "conditioner.t5.dtype=fp32"]
    if "conditioner.clip_image" in conditioners:
        words.append(f"conditioner.clip_image.path={clip_image_folder()}")
    if {"layout", "segmentation", "embeddings"} & set((tree["data"] or {}).get("fields") or {}):
        words += [f"data.train={annotated_shard()}", f"data.validation={annotated_shard()}"]
    if (tree["task"] or {}).get("single_factor"):  # the toy first stage whitens each channel
        words.append("task.single_factor=false")
    if (tree["data"] or {}).get("filters", {}).get("min_size"):
        words.append("data.filters.min_size=null")
    if (tree["trainer"] or {}).get("devices", 1) != 1:
        words.append("trainer.devices=1")
    if tree["crop_size"]:
        words += ["image_size=64", "crop_size=32"]
    if tree["autoencoder"]:  # as many levels as it has
        words.append(f"autoencoder.multipliers={[1 for _ in tree['autoencoder']['multipliers']]}".replace(" ", ""))
    return overriding(words)


@cache
def _made() -> Path:
    """A folder for what several tests read, gone with this process."""
    folder = Path(tempfile.mkdtemp(prefix="toys-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def annotated_shard(skip: int = 0) -> Path:
    """A few built-in images with what the built-in shards lack: objects, a map of classes, a hole, embeddings.

    Those after the first `skip`.
    """
    path, generator = _made() / f"annotated{skip or ''}.tar", np.random.default_rng(skip)
    source = wds.WebDataset(str(QUICKSTART / "validation-00000.tar"), shardshuffle=False)
    with wds.TarWriter(str(path)) as writer:
        for sample in itertools.islice(source, skip, skip + 16):
            mask = np.asarray(Image.open(io.BytesIO(sample["webp"]))).min(2) < 240  # what is not white
            rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
            height, width = mask.shape
            box = [columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height]
            facts = json.loads(sample["json"])
            facts["objects"] = [{"category": facts["label"], "box": box}, {"category": 0, "box": [0, 0, 1, 1]}]
            pixels = io.BytesIO()
            Image.fromarray(mask.astype(np.uint8) * (1 + facts["label"])).save(pixels, "png")
            hole = io.BytesIO()
            Image.fromarray(np.pad(mask[: height // 2], ((0, height - height // 2), (0, 0)))).save(hole, "png")
            tokens = io.BytesIO()
            np.save(tokens, generator.standard_normal((3, 8), dtype=np.float32))
            more = {"json": json.dumps(facts), "segmentation.png": pixels.getvalue(),
                    "mask.png": hole.getvalue(), "npy": tokens.getvalue()}  # fmt: skip
            writer.write({"__key__": sample["__key__"], "webp": sample["webp"], **{k: v if isinstance(v, bytes) else
                          v.encode() for k, v in more.items()}})  # fmt: skip
    return path


@cache
def clip_folder() -> Path:
    """CLIP's text encoder, eight channels wide, with random weights and its own tokenizer."""
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with patch.dict(clip.CONFIG, small):
        published = {name: torch.randn(value.shape) / 3 for name, value in clip.layout().items()}
        bare = {name.removeprefix("transformer."): value for name, value in published.items()}
        write_encoder(_made() / "clip", clip.CONFIG, clip.encoder_state(bare))
    return _made() / "clip"


@cache
def text_folder() -> Path:
    """The default text encoder's tokenizer and a model of its kind eight channels wide, with random weights."""
    from transformers import BertConfig, BertModel

    shutil.copytree(locate("minilm"), _made() / "text", ignore=shutil.ignore_patterns("*.safetensors"))
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    BertModel(BertConfig.from_pretrained(_made() / "text", **small)).save_pretrained(_made() / "text")
    return _made() / "text"


@cache
def t5_folder() -> Path:
    """A T5 eight channels wide, decoder included, that knows three words, with random weights."""
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    words = ["<pad>", "</s>", "<unk>", "▁", "▁a", "▁red", "▁heart"]
    config = T5Config(
        vocab_size=len(words), d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    torch.manual_seed(0)
    T5ForConditionalGeneration(config).save_pretrained(_made() / "t5")
    T5Tokenizer(vocab=[(word, -1.0) for word in words], extra_ids=0).save_pretrained(_made() / "t5")
    return _made() / "t5"


@cache
def clip_image_folder() -> Path:
    """A whole CLIP, for images of 16 px, its embeddings six wide, with random weights and its own tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    size = {"image_size": 16, "patch_size": 8, "projection_dim": 6}
    torch.manual_seed(0)
    config = CLIPConfig(text_config={**small, "projection_dim": 6}, vision_config={**small, **size}, projection_dim=6)
    CLIPModel(config).save_pretrained(_made() / "clip_image")
    write_tokenizer(_made() / "clip_image", clip.MAX_TOKENS)
    return _made() / "clip_image"


def train(experiment: str, runs_dir: Path, *more: str, run: str | None = None) -> Run:
    """Train a toy of `experiment` in this process."""
    return fit(compose("config", tiny(experiment, runs_dir, *more)), run or experiment.replace("/", "-"))


class Process:
    """``python ...`` in the repository and a process group of its own, and what it says."""

    def __init__(self, arguments: list[str], output: Path):
        self._output = output
        with output.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        self.pid = self._process.pid

    @property
    def said(self) -> str:
        return self._output.read_text()

    def wait(self) -> int:
        """Its exit status; a process that hangs is ended with all its children."""
        try:
            return self._process.wait(timeout=400)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            raise

    def wait_for_checkpoint(self, run: Path, after: int = 0) -> None:
        """Until there is a whole checkpoint later than step `after`."""
        deadline = time.monotonic() + 400
        while not any(int(p.parent.name[5:13]) > after for p in run.glob("checkpoints/step_*.ckpt/manifest.json")):
            assert self._process.poll() is None and time.monotonic() < deadline, self.said
            time.sleep(0.02)


def newest_step(run: Path) -> int:
    """The step of a run's newest checkpoint."""
    return max(int(path.name[5:13]) for path in run.glob("checkpoints/step_*.ckpt"))


# What tells the time in a run's metrics.csv.
TIMES = ("samples_per_second", "speed/", *(f"quality/{name}" for name in ("samples_per_s", "sec", "share", "device_h")))


def losses(run: Path) -> list[tuple[str, ...]]:
    """The rows of a run's metrics.csv as they stand there, but for those that tell the time."""
    with (run / "metrics.csv").open(newline="") as file:
        return [tuple(row) for row in csv.reader(file) if not row[1].startswith(TIMES)]


def curve(run: Path, name: str = "train/loss") -> dict[int, float]:
    """step -> value of one name in a run's metrics.csv."""
    return {int(step): float(value) for step, row, value in losses(run) if row == name}


def state(run: Path, step: int) -> dict[str, Any]:
    """What a run's checkpoint holds, but for the time it took."""
    found = resume.load(run / "checkpoints" / f"step_{step:08d}.ckpt")
    return {key: value for key, value in found.items() if key != "counters"}


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def differences(one: Path, other: Path, step: int) -> list[str]:
    """What two runs differ in, bit for bit, among weights, averages, optimizer, files of weights and logged numbers."""
    a, b = state(one, step), state(other, step)
    found = [key for key in sorted(a.keys() | b.keys()) if not same(a.get(key), b.get(key))]
    logged = [set(losses(run)) for run in (one, other)]
    if losses(one) != losses(other):
        found.append(f"metrics.csv ({sorted(logged[0] ^ logged[1])[:4]})")
    for file in (one / "weights").glob(f"step_{step:08d}.*.safetensors"):
        if file.read_bytes() != (other / "weights" / file.name).read_bytes():
            found.append(file.name)
    return found


def assert_equal_runs(one: Path, other: Path, step: int) -> None:
    """Two runs are the same, bit for bit."""
    assert differences(one, other, step) == []
