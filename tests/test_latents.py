"""Latents of any shape are trained on and drawn as grids are; data need not have images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
import webdataset as wds
from torch import Tensor, nn
from toys import tiny

from ldm.build import Parts
from ldm.checks import check_parts
from ldm.conditioners.base import Conditioners
from ldm.config import compose
from ldm.data.fields import Embeddings
from ldm.data.module import ShardData
from ldm.first_stage.spec import LatentSpec
from ldm.generate import generate

SIDE, COLOURS = 32, 3
WHITENING = ((0.1, 0.2, 0.3), (0.5, 1.0, 2.0))
SPECS = {
    "vector": LatentSpec(1, COLOURS, "vector", False, *WHITENING, "toy"),
    "sequence": LatentSpec(1, COLOURS, "sequence", False, *WHITENING, "toy", length=16),
    "grid": LatentSpec(8, COLOURS, "grid", False, *WHITENING, "toy"),
    "groups": LatentSpec(1, COLOURS, "sequence", False, *WHITENING, "toy", length=21, groups=((1, 1), (2, 2), (4, 4))),
}
SHAPES = {"vector": (3,), "sequence": (3, 16), "grid": (3, 4, 4), "groups": (3, 21)}


class Pooled(nn.Module):
    """A first stage whose latents are colours: one of the image, those of 4 x 4 parts, or of all maps of a pyramid."""

    key = "image"
    tile = None

    def __init__(self, spec: LatentSpec):
        super().__init__()
        self.spec = spec
        self.register_buffer("mean", spec.per_channel(torch.tensor(spec.mean)))
        self.register_buffer("std", spec.per_channel(torch.tensor(spec.std)))

    def moments(self, image: Tensor) -> Tensor:
        sides = self.spec.groups or [(1, 1) if self.spec.kind == "vector" else (4, 4)]
        parts = [F.adaptive_avg_pool2d(image, side).flatten(2) for side in sides]
        return torch.cat(parts, 2).reshape(len(image), *self.spec.shape((4, 4)))

    def sample(self, h: Tensor, noise: Tensor | None = None) -> Tensor:
        assert noise is None or noise.shape == h.shape
        return (h - self.mean) / self.std

    def decode(self, z: Tensor) -> Tensor:
        colours = (z * self.std + self.mean).flatten(2) if z.ndim > 2 else (z * self.std + self.mean)[:, :, None]
        last = colours[..., -16:]
        return F.interpolate(last.unflatten(2, (-1, 4 if last.shape[2] > 1 else 1)), (SIDE, SIDE))


class Tokens(Pooled):
    """One whose latents are floats of the batch as they are."""

    key = "point"

    def moments(self, point: Tensor) -> Tensor:
        return point.transpose(1, 2)  # [B, N, D] -> [B, D, N]


class MLP(nn.Module):
    """F of latents of any one shape."""

    factor = 1

    def __init__(self, shape: tuple[int, ...]):
        super().__init__()
        self.layer = nn.Linear(int(np.prod(shape)) + 1, int(np.prod(shape)))

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return self.layer(torch.cat([x.flatten(1), c_noise[:, None] / 1000], 1)).view_as(x)


def parts_of(folder: Path, first_stage: Pooled, shape: tuple[int, ...], **more: Any) -> Parts:
    tree = compose("config", tiny("quickstart/diffusion", folder, "first_stage=toy", "conditioner=[]"))
    given = {"folder": folder, "run_name": "toy", "run_id": "toy", "conditioner": Conditioners(), **more}
    return Parts(tree, network=MLP(shape), first_stage=first_stage, **given)


def train(parts: Parts, folder: Path) -> list[float]:
    """Two steps, and the validation's losses."""
    task, data = parts["task"], parts["data"]
    trainer = pl.Trainer(
        max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    before = [parameter.clone() for parameter in task.model.parameters()]
    trainer.fit(task, datamodule=data)
    assert task.step == 2
    assert not all(torch.equal(a, b) for a, b in zip(before, task.model.parameters(), strict=True))
    with torch.no_grad():
        return task.validate(next(iter(data.validation_loader(batch_size=4))))["loss"].tolist()


@pytest.mark.parametrize("kind", SPECS)
def test_a_latent_of_any_shape_is_trained_on_and_drawn(kind, tmp_path):
    stage = Pooled(SPECS[kind])
    assert SPECS[kind].shape((4, 4)) == SHAPES[kind]
    parts = parts_of(tmp_path, stage, SHAPES[kind])
    check_parts(parts)
    losses = train(parts, tmp_path)
    assert all(0 < loss < 100 for loss in losses), losses

    def draw(numbers: list[int]) -> Tensor:
        sampling = parts["sampling"].with_scale(1.0)
        given = (parts["denoiser"], Conditioners(), stage, sampling, {}, torch.tensor(numbers), 0, SIDE)
        return generate(*given)

    images = draw([0, 1, 2])
    assert images.shape == (3, 3, SIDE, SIDE) and images.isfinite().all()
    torch.testing.assert_close(draw([1]), images[1:2], rtol=0, atol=1e-5)


def shards_without_images(folder: Path) -> str:
    path, generator = folder / "points.tar", np.random.default_rng(0)
    with wds.TarWriter(str(path)) as writer:
        for number in range(8):
            writer.write({"__key__": f"k{number}", "npy": generator.standard_normal((2, 3), dtype=np.float32)})
    return str(path)


def test_data_without_images_is_read_and_trained_on(tmp_path):
    shards = shards_without_images(tmp_path)

    def data(**options: Any) -> ShardData:
        fields = {"point": Embeddings(num_tokens=2)}
        return ShardData(shards, image_size=SIDE, batch_size=4, validation=shards, fields=fields, **options)

    batch = next(iter(data(with_images=False).train_loader()))
    assert "image" not in batch and batch["point"].shape == (4, 2, 3)
    with pytest.raises(ValueError, match="no image"):
        next(iter(data().train_loader()))

    spec = LatentSpec(1, 3, "sequence", False, *WHITENING, "points", length=2)
    parts = parts_of(tmp_path, Tokens(spec), (3, 2), data=data(with_images=False))
    check_parts(parts)
    losses = train(parts, tmp_path)
    assert all(0 < loss < 100 for loss in losses), losses
    assert parts["task"].panels(batch) == {}

    images = parts_of(tmp_path, Pooled(SPECS["vector"]), (3,), data=data(with_images=False))
    with pytest.raises(
        ValueError, match=r"data\.with_images=false: what is modelled is 'image', and a batch has .*point"
    ):
        check_parts(images)


def test_a_model_of_tokens_is_not_trained_by_gaussian_noise(tmp_path):
    spec = LatentSpec(8, COLOURS, "grid", True, *WHITENING, "toy")
    with pytest.raises(ValueError, match="first_stage: its latents are tokens"):
        _ = parts_of(tmp_path, Pooled(spec), SHAPES["grid"])["task"]
