"""What samples are compared with as files, and samples as a file for other evaluators."""

import hashlib
import json
import logging
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from toys import Process
from untrained import untrained_run

from ldm.config import compose, overriding
from ldm.errors import UserError
from ldm.evaluation import reference_job
from ldm.evaluation.evaluate import evaluate
from ldm.evaluation.npz import Npz, write_images
from ldm.evaluation.reference_file import read_reference, write_reference
from ldm.evaluation.reference_job import make
from ldm.evaluation.stored_reference import stored as stored_reference
from ldm.evaluation.table import ends
from ldm.evaluation.yardsticks import Yardsticks
from ldm.images import to_uint8
from ldm.metrics.features import Features
from ldm.model import Model, load_model
from ldm.networks import downloads
from ldm.spool import Spool

pytestmark = pytest.mark.filterwarnings("ignore:Frechet distance from")
BACKBONE = "toy@32"
OPTIONS = ["metric.size=32", "num_samples=7", "batch_size=4", "device=cpu", "num_steps=1", "guidance.scale=[1]"]
OF_FEATURES = {f"kid_std/{BACKBONE}"}.union(
    *((key, *ends(key)) for key in (f"{name}/{BACKBONE}" for name in ("kid", "precision", "recall")))
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = ["data.max_samples=6", "conditioner.label.num_classes=9", "~data.fields.caption"]
    return untrained_run(tmp_path_factory.mktemp("runs") / "run", *words)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the user that has the weights, for whole processes, and nothing else."""
    usual = downloads.cache_folder()
    (tmp_path / "cache").mkdir()
    for entry in usual.iterdir():
        if entry.name not in ("features", "index"):
            (tmp_path / "cache" / entry.name).symlink_to(entry)
    monkeypatch.setenv("LDM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


class NoAlignment(nn.Module):
    """Data without captions ask for none."""

    metric, name = "alignment_score", "none"


class Toy(Features):
    """A backbone of six features, which takes no time; called as the metric that is asked for."""

    def __init__(self, size: int, resize: str):
        super().__init__()
        self.name, self.dim, self.frechet = f"toy@{size}{'' if resize == 'bicubic' else f':{resize}'}", 6, "fd"
        self.weight = nn.Parameter(torch.rand(12, 6, generator=torch.Generator().manual_seed(0)), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) @ self.weight

    def classify(self, features: torch.Tensor) -> torch.Tensor:
        return features


@pytest.fixture(autouse=True)
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_job, "instantiate", lambda node, *_: Toy(node["size"], node["resize"]))


def measured(run: Path, out: Path, *words: str) -> dict[str, float]:
    """The one row of an evaluation under the toy."""
    tree = compose("evaluate", overriding([f"model={run}", f"out={out}", *OPTIONS, *words]))
    toy = Toy(tree["metric"]["size"], tree["metric"]["resize"])
    [row] = evaluate(tree, Yardsticks(toy, NoAlignment(), torch.device("cpu")))[0]
    return row


def stored(path: Path, *words: str) -> Path:
    make(compose("reference", [f"out={path}", "metric.size=32", "device=cpu", *words]))
    return path


def never(*_: object, **__: object) -> None:
    raise AssertionError("sampled")


# References


def test_a_stored_reference_is_the_images_it_was_made_of(run: Path, tmp_path: Path, own_cache: Path):
    expected = measured(run, tmp_path / "own")
    path = stored(tmp_path / "r.safetensors", f"model={run}")
    assert measured(run, tmp_path / "stored", f"reference={path}") == expected
    reference = read_reference(path)
    assert reference.features.shape == (6, 6) and reference.moments.count == 6
    assert reference.made_of == {
        "data": load_model(run).data.fingerprint, "images": 6, "image_size": 8, "backbone": BACKBONE,
        "resize": "short side to 8 px, centre crop, 8 px, decoder pil", "weights": reference.made_of["weights"],
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Toy, "forward", never)
        assert stored(path, f"model={run}") == path, "it is there"
    with pytest.raises(ValueError, match="there is another reference"):
        stored(path, f"model={run}", "max_samples=5")
    assert len(list(own_cache.iterdir())) == 1, "the training images alone"


def test_moments_alone_leave_out_what_needs_features_and_say_so(run: Path, tmp_path: Path, caplog):
    path = stored(tmp_path / "m.safetensors", f"model={run}", "features=false")
    expected = measured(run, tmp_path / "own")
    with caplog.at_level(logging.WARNING):
        found = measured(run, tmp_path / "out", f"reference={path}")
    assert "moments alone; KID, precision and recall are left out" in caplog.text
    assert found == {name: value for name, value in expected.items() if name not in OF_FEATURES}


def test_shards_are_looked_at_without_a_model(tmp_path: Path):
    shards = "shards=data/quickstart/validation-*.tar"
    path = stored(tmp_path / "r.safetensors", shards, "image_size=8", "max_samples=5")
    assert read_reference(path).made_of["images"] == 5


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["metric.size=48"], r"backbone is toy@32, that of this evaluation toy@48"),
        (["metric.resize=clean"], r"backbone is toy@32, .* toy@32:clean"),
        (["model=OTHER"], r"image_size is 8, that of this evaluation 16"),
        (["model=CROPPED"], r"resize is short side to 8 px, .* that of this evaluation short side to 10 px"),
        (["reference=ABSENT.safetensors"], "there is no such file"),
        (["reference=BAD.safetensors"], "not a reference; scripts/reference.py makes one"),
    ],
)
def test_a_reference_of_something_else_is_refused_before_anything_is_sampled(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], problem: str
):
    path = stored(tmp_path / "r.safetensors", f"model={run}")
    save_file({"features": torch.zeros(4, 2)}, tmp_path / "BAD.safetensors")
    untrained_run(tmp_path / "OTHER", "image_size=16", "conditioner.label.num_classes=9")
    untrained_run(tmp_path / "CROPPED", "image_size=10", "crop_size=8", "conditioner.label.num_classes=9")
    monkeypatch.setattr(Model, "generate", never)
    key, _, value = words[0].partition("=")
    given = f"{key}={tmp_path / value}" if value.isupper() or ".safetensors" in value else words[0]
    with pytest.raises(ValueError, match=problem):
        measured(run, tmp_path / "out", f"reference={path}", given)


def test_models_that_read_the_same_images_in_another_way_have_references_of_their_own(run: Path, tmp_path: Path):
    cropped = untrained_run(
        tmp_path / "c", "image_size=10", "crop_size=8", "data.max_samples=6", "~data.fields.caption"
    )
    one, other = (load_model(path).data for path in (run, cropped))
    assert one.image_size == other.framing.window == 8
    by = Yardsticks(Toy(32, "bicubic"), NoAlignment(), torch.device("cpu"))
    found = [by.reference(data) for data in (one, other, one)]
    assert found[0] is found[2] and found[0].made_of != found[1].made_of
    path = str(stored(tmp_path / "r.safetensors", f"model={run}"))
    assert by.reference(stored_reference(path, one)).made_of == found[0].made_of
    with pytest.raises(UserError, match="its resize is short side to 8 px"):
        by.reference(stored_reference(path, other))


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["out=r.npz", "shards=x.tar", "image_size=8"], r"out=r\.npz: .*FILE\.safetensors"),
        (["out=r.safetensors"], "model: name a run"),
        (["out=r.safetensors", "shards=x.tar"], "model: name a run"),
        (["out=r.safetensors", "shards=x.tar", "image_size=8", "num_workers=-1"], "num_workers=-1: must be at least 0"),
        (["out=r.safetensors", "model=x", "image_size=8"], "image_size=8: images are read as model= reads them"),
    ],
)
def test_what_no_reference_can_be_made_of_is_refused(words: list[str], problem: str):
    with pytest.raises(ValueError, match=problem):
        make(compose("reference", words))


def test_a_cache_of_an_earlier_version_or_a_damaged_one_is_made_anew_and_that_is_said(
    run: Path, tmp_path: Path, own_cache: Path, caplog
):
    data = load_model(run).data
    facts = f"{data.fingerprint}/{data.num_train}/{data.image_size}/{BACKBONE}"
    old = own_cache / f"{hashlib.sha256(facts.encode()).hexdigest()[:24]}.safetensors"
    own_cache.mkdir()
    save_file({"features": torch.full((6, 6), torch.nan)}, old)
    expected = measured(run, tmp_path / "0")
    assert "does not say with which weights it was made; it is made anew" in caplog.text and not old.exists()
    [kept] = own_cache.iterdir()
    whole = kept.read_bytes()
    for number, content in enumerate([whole[: len(whole) // 2], b""], 1):
        kept.write_bytes(content)
        caplog.clear()
        assert measured(run, tmp_path / str(number)) == expected
        assert "not a reference" in caplog.text and "made anew" in caplog.text and kept.read_bytes() == whole


def test_features_that_are_not_finite_never_enter_a_reference(
    run: Path, tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    forward = Toy.forward
    monkeypatch.setattr(Toy, "forward", lambda *given: forward(*given).log() * torch.inf)
    with pytest.raises(ValueError, match=r"the features of .* under toy@32 are not finite"):
        measured(run, tmp_path / "out")
    assert not list(own_cache.iterdir())
    with pytest.raises(ValueError, match="features that are not finite"):
        write_reference(tmp_path / "r", torch.full((4, 2), torch.nan), {"backbone": "toy"})


# Published references


def pictures(run: Path) -> torch.Tensor:
    """The training images of the run, uint8 [6, 8, 8, 3]."""
    data = load_model(run).data
    data.setup()
    return torch.cat([to_uint8(batch["image"]) for batch in data.statistics_loader(0, 1, 4)]).permute(0, 2, 3, 1)


def test_images_of_an_npz_are_compared_with_as_the_same_images_in_shards(run: Path, tmp_path: Path, own_cache: Path):
    np.savez_compressed(tmp_path / "a.npz", arr_0=pictures(run).numpy(), arr_1=np.arange(6))
    expected = measured(run, tmp_path / "own")
    found = measured(run, tmp_path / "npz", f"reference={tmp_path}/a.npz")
    assert found == pytest.approx(expected, rel=1e-6)
    assert len(list(own_cache.iterdir())) == 2
    with pytest.MonkeyPatch.context() as patch:  # 7 samples of 2 batches; the images are not looked at again
        asked, forward = [], Toy.forward
        patch.setattr(Toy, "forward", lambda *given: asked.append(1) or forward(*given))
        assert measured(run, tmp_path / "again", f"reference={tmp_path}/a.npz") == found and len(asked) == 3


def test_published_moments_are_those_of_inception(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog):
    measured(run, tmp_path / "own")
    known = read_reference(next((tmp_path / "cache" / "features").iterdir())).moments
    arrays = {"mu": known.mean.numpy(), "sigma": known.covariance.numpy()}
    np.savez(tmp_path / "m.npz", **arrays, mu_s=np.zeros(3), sigma_s=np.eye(3))
    words = f"reference={tmp_path}/m.npz"
    with pytest.raises(ValueError, match=r"backbone is inception_v3 \(mu, sigma\), that of this evaluation toy"):
        measured(run, tmp_path / "out", words)
    monkeypatch.setattr("ldm.evaluation.stored_reference.PUBLISHED", BACKBONE)  # whose moments these are
    expected = measured(run, tmp_path / "own")
    found = measured(run, tmp_path / "out", words)
    left = {name: value for name, value in expected.items() if name not in OF_FEATURES}
    assert found == pytest.approx(left, rel=1e-9), "of which the distance begins depends on their numbers"
    assert "moments alone" in caplog.text
    np.savez(tmp_path / "both.npz", mu=arrays["mu"] + 1, sigma=arrays["sigma"], arr_0=pictures(run).numpy())
    both = measured(run, tmp_path / "both", f"reference={tmp_path}/both.npz")
    assert both.keys() == expected.keys() and both[f"kid/{BACKBONE}"] == pytest.approx(expected[f"kid/{BACKBONE}"])
    assert both[f"fd/{BACKBONE}"] != pytest.approx(expected[f"fd/{BACKBONE}"], rel=0.1), "of the moments in the file"


def lying(path: Path, shape: tuple[int, ...]) -> None:
    """A header that says more than there is."""
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "|u1", "fortran_order": False, "shape": shape})
        member.write(b"0" * 100)


def test_an_npz_that_cannot_be_used_is_told_in_a_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Model, "generate", never)
    monkeypatch.setattr("ldm.evaluation.stored_reference.PUBLISHED", BACKBONE)
    images, path = pictures(run).numpy(), tmp_path / "a.npz"

    def refused(problem: str) -> None:
        with pytest.raises(ValueError, match=rf"a\.npz.*{problem}") as error:
            measured(run, tmp_path / "out", f"reference={path}")
        assert "\n" not in str(error.value)

    np.savez(path, arr_0=np.repeat(images, 2, axis=1))
    refused("image size is 8 x 16 px, that of this evaluation 8 x 8 px")
    np.savez(path, arr_0=images.astype(np.float32))
    refused(r"arr_0 is float32 \[6, 8, 8, 3\], expected uint8")
    np.savez(path, arr_0=images[..., 0])
    refused(r"arr_0 is \[6, 8, 8\], expected uint8 \[N, H, W, 3\]")
    np.savez(path, arr_0=np.array([{}] * 3, dtype=object))
    refused("no plain array")
    np.savez(path, other=images)
    refused("neither mu and sigma nor arr_0, but other")
    np.savez(path, mu=np.full(6, np.nan), sigma=np.eye(6))
    refused("mu has values that are not finite")
    np.savez(path, mu=np.zeros(6), sigma=np.eye(3))
    refused("expected 6 features")
    for shape in ((1 << 40, 8, 8, 3), (1 << 62, 1 << 62, 8, 3)):
        lying(path, shape)
        refused("no plain array, or has been cut")
    for content in (b"", b"PK\3\4" + b"x" * 100, pickle.dumps([1])):
        path.write_bytes(content)
        refused(r"cannot be read as \.npz")


# Samples for other evaluators


def test_samples_are_written_as_they_are_drawn_and_once(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn, generate = [], Model.generate
    monkeypatch.setattr(Model, "generate", lambda *given: drawn.append(generate(*given)) or drawn[-1])
    path = tmp_path / "folder" / "s.npz"
    row = measured(run, tmp_path / "out", f"npz={path}")
    with np.load(path, allow_pickle=False) as archive:
        assert archive.files == ["arr_0"]
        found = archive["arr_0"]
    assert np.array_equal(found, to_uint8(torch.cat(drawn)).permute(0, 2, 3, 1).numpy()) and found.shape == (7, 8, 8, 3)
    content = path.read_bytes()
    assert [file.name for file in path.parent.iterdir()] == ["s.npz"]
    monkeypatch.setattr(Model, "generate", never)
    assert measured(run, tmp_path / "out", f"npz={path}") == row and path.read_bytes() == content, "it is there"
    with pytest.raises(ValueError, match="there is a file already, and not of this evaluation"):
        measured(run, tmp_path / "out", f"npz={path}", "seed=1")
    monkeypatch.setattr(Model, "generate", generate)
    path.unlink()
    path.with_name(".writing-1-s.npz").write_bytes(b"of a process that was killed")
    assert measured(run, tmp_path / "out", f"npz={path}") == row and path.read_bytes() == content, "drawn again"
    assert [file.name for file in path.parent.iterdir()] == ["s.npz"]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["npz=s.png"], r"npz=s\.png: samples are written as FILE\.npz"),
        (["npz=s.npz", "guidance.scale=[1,2]"], "has the samples of one point, and 2 are asked for"),
        (["npz=s.npz", "num_steps=[1,2]"], "has the samples of one point, and 2 are asked for"),
    ],
)
def test_samples_that_cannot_be_written_are_told_before_they_are_drawn(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], problem: str
):
    monkeypatch.setattr(Model, "generate", never)
    with pytest.raises(ValueError, match=problem):
        measured(run, tmp_path / "out", *words)


def test_rows_lie_on_disk_and_leave_nothing(tmp_path: Path):
    spool, rows = Spool(tmp_path / "rows"), torch.rand(10, 3, 2)
    spool.add(rows[:4])
    assert torch.equal(spool.whole(), rows[:4])
    spool.add(rows[4:].numpy())
    assert torch.equal(spool.whole(), rows) and torch.equal(torch.cat(list(spool.blocks())), rows)
    assert len(spool) == 10 and not list((tmp_path / "rows").iterdir())
    with pytest.raises(ValueError, match="do not go with those before"):
        spool.add(rows[:, :2])


def test_an_npz_is_the_same_bytes_whatever_the_blocks(tmp_path: Path):
    images = torch.randint(0, 256, (9, 4, 4, 3), dtype=torch.uint8)
    for size in (1, 4, 9):
        write_images(tmp_path / f"{size}.npz", images.split(size), (9, 4, 4, 3), "words")
    assert len({(tmp_path / f"{size}.npz").read_bytes() for size in (1, 4, 9)}) == 1
    npz = Npz(tmp_path / "4.npz")
    assert (npz.names, npz.shape("arr_0"), npz.comment) == (["arr_0"], (9, 4, 4, 3), b"words")
    read = torch.cat([to_uint8(batch) for batch in npz.images("arr_0", 2)]).permute(0, 2, 3, 1)
    assert torch.equal(read, images)


TORCHRUN = ["-m", "torch.distributed.run", "--standalone"]


@pytest.mark.slow
def test_two_ranks_write_the_bytes_of_one(run: Path, tmp_path: Path):
    words = [f"model={run}", *OPTIONS]
    for ranks in (1, 2, 3):
        for script, more in (
            ("reference", [f"model={run}", "metric.size=32", "device=cpu", f"out={tmp_path}/{ranks}.safetensors"]),
            ("evaluate", [*words, f"out={tmp_path}/{ranks}", f"npz={tmp_path}/{ranks}.npz"]),
        ):
            process = Process(
                [*TORCHRUN, f"--nproc_per_node={ranks}", f"scripts/{script}.py", *more], tmp_path / "said"
            )
            assert process.wait() == 0, process.said
    assert (tmp_path / "1.npz").read_bytes() == (tmp_path / "2.npz").read_bytes() == (tmp_path / "3.npz").read_bytes()
    one, *others = (read_reference(tmp_path / f"{ranks}.safetensors") for ranks in (1, 2, 3))
    for other in others:
        assert torch.allclose(one.features, other.features, atol=1e-5) and one.made_of == other.made_of


MEMORY = """
import json, sys, threading, time
from ldm.evaluation.reference_file import read_reference
from ldm.metrics.frechet import frechet_distance, moments
from ldm.metrics.kid import kernel_distance
from ldm.metrics.precision_recall import precision_recall
import torch

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) / 1024

def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.01)

real = read_reference(sys.argv[1])
fake = real.features[: len(real.features) // 2]
before, peak = anonymous(), [0]
threading.Thread(target=watch, daemon=True).start()
frechet_distance(real.moments, moments(fake))
kernel_distance(real.features, fake, torch.Generator(), num_subsets=3)
precision_recall(real.features, fake)
print(json.dumps(peak[0] - before))
"""


@pytest.mark.slow
def test_distances_of_a_stored_reference_take_little_memory(tmp_path: Path):
    features = torch.randn(12_000, 256)  # 24 MiB in float64; distances of each to each other 1.1 GiB
    write_reference(tmp_path / "r.safetensors", features, {"backbone": "toy"})
    process = Process(["-c", MEMORY, str(tmp_path / "r.safetensors")], tmp_path / "said")
    assert process.wait() == 0, process.said
    assert json.loads(process.said.splitlines()[-1]) < 700  # MiB
    with safe_open(tmp_path / "r.safetensors", "pt") as file:
        assert set(file.keys()) == {"features", "mean", "covariance"} and sys.getsizeof(file.metadata())
