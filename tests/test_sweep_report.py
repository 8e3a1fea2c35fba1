"""The report on a sweep of first stages: codecs' curves, rates, the table and the page."""

import csv
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from toys import train

from ldm.config import compose
from ldm.data.seals import sealed
from ldm.files import write_json
from ldm.first_stage.regularizers import KL
from ldm.networks.lpips import LPIPS
from ldm.run import Run
from ldm.sweep.codecs import at_bits, bicubic_point, codec_curve
from ldm.sweep.sweep_report import _bits, sweep_report


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    coarse = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.interpolate(coarse, scale_factor=8, mode="bicubic").clamp(-1, 1)


@pytest.mark.parametrize("codec", ["JPEG", "WebP"])
def test_a_codec_gets_larger_and_better_with_its_quality(codec, images):
    points = codec_curve(codec, images, LPIPS("alex"), qualities=(5, 50, 95))
    assert [p.bits for p in points] == sorted(p.bits for p in points)
    assert [p.errors["psnr"] for p in points] == sorted(p.errors["psnr"] for p in points)


def test_errors_at_equal_bits_lie_on_the_curve_and_not_beyond_it(images):
    points = codec_curve("JPEG", images, LPIPS("alex"), qualities=(5, 50, 95))
    assert at_bits(points, points[1].bits) == pytest.approx(points[1].errors)
    middle = at_bits(points, math.sqrt(points[0].bits * points[1].bits))
    assert middle["psnr"] == pytest.approx((points[0].errors["psnr"] + points[1].errors["psnr"]) / 2)
    assert at_bits(points, points[0].bits / 2) is None and at_bits(points, points[2].bits * 2) is None


def test_bicubic_keeps_24_bits_a_pixel(images):
    point = bicubic_point(images, 4, LPIPS("alex"))
    assert point.bits == 24 * 16 * 16 and 10 < point.errors["psnr"] < 60


def test_the_rate_of_a_latent_is_that_of_its_own_gaussian_whatever_its_scale():
    centre = torch.randn(8, 2, 16, 16, generator=torch.Generator().manual_seed(0))
    images, noise = torch.zeros(8, 3, 32, 32), 0.5
    bits = 2 * 16 * 16 * math.log2((1 + noise**2) ** 0.5 / noise)  # of a channel with noise: 1/2 ln(1 + SNR)
    for scale, shift in ((1.0, 0.0), (10.0, 5.0)):
        moments = torch.cat([shift + scale * centre, torch.full_like(centre, 2 * math.log(noise * scale))], 1)
        parts = {"autoencoder": SimpleNamespace(encode=lambda part, own=moments: own), "regularizer": KL(2)}
        assert _bits(parts, images) == pytest.approx(bits, rel=0.01)


@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_the_report_of_a_sweep(tmp_path: Path):
    train("sweep/autoencoder", tmp_path, run="sweep-autoencoder-f4-kl")
    vq = ("regularizer=vq", "regularizer.num_codes=32", "autoencoder.multipliers=[1,1,1,1]")
    train("sweep/autoencoder", tmp_path, *vq, run="sweep-autoencoder-f8-vq")
    page = sweep_report(compose("sweep_report", [f"runs_dir={tmp_path}", "metric.size=32", "device=cpu"]))
    assert "First stages" in page.read_text()
    with (page.parent / "table.csv").open() as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    other = rows["sweep-autoencoder-f8-vq"]
    assert (other["f"], other["regularizer"], other["codes"], float(other["bits"])) == ("8", "VQ", "32", 5.0 * 4 * 4)
    kl = rows["sweep-autoencoder-f4-kl"]
    assert float(kl["bits"]) > 0 and {"psnr", "ssim", "psim", "rfd/efficientnet_lite0@32"} <= kl.keys()
    assert (page.parent / "rate_psnr.png").exists() and (page.parent / kl["run"] / "reconstructions.png").exists()


def test_a_sweep_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(ValueError, match="begins with other"):
        sweep_report(compose("sweep_report", [f"runs_dir={tmp_path}", "prefix=other"]))


def test_runs_that_cannot_be_compared_are_named_before_any_is_measured(first_stage: Run, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("ldm.sweep.sweep_report.evaluate_first_stage", None)
    twin = tmp_path / "elsewhere" / first_stage.name
    shutil.copytree(first_stage.folder, twin)
    other = tmp_path / "other"
    shutil.copytree(first_stage.folder, other)
    config = (other / "config.yaml").read_text()
    for change, runs, problem in (
        (config, [first_stage.folder, twin], f"two are called {first_stage.name}"),
        (config.replace("image_size: 32", "image_size: 64"), [first_stage.folder, other],
         "other has 4 validation images of 64 px, .*, and quickstart-autoencoder 4 validation images of 32 px"),
        (config.replace("validation_samples: 4", "validation_samples: 3"), [first_stage.folder, other],
         "other has 3 validation"),
        (config.replace("validation_samples: 4", "validation_samples: 1"), [first_stage.folder, other],
         "1 validation images are measured"),
    ):  # fmt: skip
        (other / "config.yaml").write_text(change)
        named = ",".join(map(str, runs))
        with pytest.raises(ValueError, match=problem):
            sweep_report(compose("sweep_report", [f"runs=[{named}]", f"out={tmp_path}/report", "device=cpu"]))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"out=.*file: is a file"):
        sweep_report(compose("sweep_report", [f"runs=[{first_stage.folder}]", f"out={tmp_path}/file", "device=cpu"]))
    lineage = json.loads((other / "lineage.json").read_text())
    del lineage["finished_step"]
    (other / "config.yaml").write_text(config)
    write_json(other / "lineage.json", sealed(lineage))
    with pytest.raises(ValueError, match=r"runs: .*other has not finished"):
        sweep_report(compose("sweep_report", [f"runs=[{first_stage.folder},{other}]", "device=cpu"]))
    assert not (tmp_path / "report").exists()
