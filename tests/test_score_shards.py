"""Scores in the json of shards: those of their networks, of all else nothing is changed, and filters read them."""

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from test_metrics_backbones import TINY_CLIP
from toys import QUICKSTART

from ldm.config import compose
from ldm.data.decoding import PilDecoder
from ldm.data.module import ShardData
from ldm.data.transforms import to_tensor
from ldm.data.writing import write_shard
from ldm.evaluation.score_shards import score_shards
from ldm.metrics.aesthetic import aesthetic_score, read_predictor
from ldm.metrics.clip_score import open_clip_score


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP, a predictor, and two shards of built-in images, in one of which a picture is broken."""
    folder = tmp_path_factory.mktemp("scores")
    (folder / "tiny-clip.json").write_text(json.dumps(TINY_CLIP))
    open_clip.add_model_config(folder / "tiny-clip.json")
    torch.manual_seed(0)
    torch.save(open_clip.create_model("tiny-clip").state_dict(), folder / "mine.pt")
    torch.save({"weight": torch.randn(1, 16), "bias": torch.tensor([5.0])}, folder / "linear.pth")
    rows: dict[str, dict[str, Any]] = {}
    for name, content in list(members(QUICKSTART / "validation-00000.tar").items())[:32]:
        key, _, extension = name.partition(".")
        rows.setdefault(key, {"__key__": key})[extension] = content
    samples = [{**row, "note": b"kept"} for row in list(rows.values())[:8]]
    samples[2]["webp"] = b"no picture"
    (folder / "in").mkdir()
    for number in range(2):
        write_shard(folder / "in" / f"train-{number}.tar", samples[4 * number : 4 * number + 4])
    return folder


def words(folder: Path, out: str, *more: str) -> list[str]:
    return [f"shards={folder}/in/*.tar", f"out={folder}/{out}", "image_size=32", "batch_size=3", "device=cpu",
            "alignment=open_clip", "alignment.model=tiny-clip", f"alignment.weights={folder}/mine.pt",
            "aesthetic=laion", "aesthetic.model=tiny-clip", f"aesthetic.weights={folder}/mine.pt",
            f"aesthetic.path={folder}/linear.pth", *more]  # fmt: skip


@pytest.fixture(scope="module")
def scored(folder: Path) -> Path:
    out, manifest = score_shards(compose("score_shards", words(folder, "out")))
    assert manifest["samples"] == 8 and set(manifest["made_with"]["scores"]) == {"clip_score", "aesthetic_score"}
    return out


def test_scores_are_the_networks_own_and_all_else_is_kept(folder: Path, scored: Path):
    clip = open_clip_score("tiny-clip", f"{folder}/mine.pt")
    aesthetic = aesthetic_score(folder / "linear.pth", "tiny-clip", f"{folder}/mine.pt")
    for name in ("train-0.tar", "train-1.tar"):
        before, after = members(folder / "in" / name), members(scored / name)
        assert list(before) == list(after)
        for member, content in before.items():
            if not member.endswith(".json"):
                assert after[member] == content
                continue
            was, found = json.loads(content), json.loads(after[member])
            picture = before[member.replace(".json", ".webp")]
            if picture == b"no picture":
                assert found == was
                continue
            image = to_tensor([PilDecoder()(picture, 32)])
            with torch.no_grad():
                expected = {"clip_score": clip(image, [was["caption"]]), "aesthetic_score": aesthetic(image)}
            assert {key: found.pop(key) for key in expected} == pytest.approx(
                {key: value.item() for key, value in expected.items()}, abs=1e-4
            )
            assert found == was


def test_filters_take_what_is_above_a_threshold(scored: Path):
    files = [content for name in ("train-0.tar", "train-1.tar") for content in members(scored / name).items()]
    scores = sorted(json.loads(text)["aesthetic_score"] for name, text in files if "aesthetic" in text.decode("latin1"))
    assert len(scores) == 7
    data = ShardData(
        f"{scored}/*.tar", image_size=8, batch_size=2, filters={"ranges": {"aesthetic_score": [scores[4], None]}}
    )
    data.setup()
    assert data.num_train == 3 and data.removed == {"ranges.aesthetic_score": 5}


def test_it_goes_on_and_never_mixes_scores(folder: Path, scored: Path):
    before = {path.name: path.stat().st_mtime_ns for path in scored.glob("*.tar")}
    score_shards(compose("score_shards", words(folder, "out")))
    assert before == {path.name: path.stat().st_mtime_ns for path in scored.glob("*.tar")}
    others = shutil.copytree(folder / "in", folder / "others")
    with pytest.raises(ValueError, match=r"train-0\.tar there is .*in/train-0\.tar with scores"):
        score_shards(compose("score_shards", [w.replace(f"{folder}/in", str(others)) for w in words(folder, "out")]))
    with pytest.raises(ValueError, match="holds scores made with"):
        score_shards(compose("score_shards", words(folder, "out", "~aesthetic")[:8]))
    with pytest.raises(ValueError, match="the shards lie there themselves"):
        score_shards(compose("score_shards", words(folder, "in")))


def test_a_json_that_could_not_be_written_again_stays_as_it_is(folder: Path, tmp_path: Path):
    good = next(content for name, content in members(folder / "in/train-0.tar").items() if name.endswith(".json"))
    picture = next(content for name, content in members(folder / "in/train-0.tar").items() if name.endswith(".webp"))
    odd = [b'{"caption": "a key", "x": {"y": 1, "y": 2}}', b'["a key", "a red key"]']
    rows = [{"__key__": f"{n}", "webp": picture, "json": text} for n, text in enumerate([good, *odd])]
    (tmp_path / "in").mkdir()
    write_shard(tmp_path / "in/train-0.tar", rows)
    aesthetic = [word for word in words(folder, "x") if word.startswith("aesthetic")]
    more = [f"shards={tmp_path}/in/*.tar", f"out={tmp_path}/out", "device=cpu", "image_size=32"]
    score_shards(compose("score_shards", [*aesthetic, *more]))
    found = members(tmp_path / "out/train-0.tar")
    assert [found["1.json"], found["2.json"]] == odd and "aesthetic_score" in json.loads(found["0.json"])


def test_captions_may_be_text_members(folder: Path, tmp_path: Path):
    picture = next(content for name, content in members(folder / "in/train-0.tar").items() if name.endswith(".webp"))
    (tmp_path / "in").mkdir()
    write_shard(tmp_path / "in/train-0.tar", [{"__key__": "0", "webp": picture, "txt": b"a red key\n"}])
    own = [word for word in words(folder, "x")[:8] if not word.startswith(("shards=", "out="))]
    own += [f"shards={tmp_path}/in/*.tar", f"out={tmp_path}/out", "caption=null"]
    score_shards(compose("score_shards", own))
    image = to_tensor([PilDecoder()(picture, 32)])
    with torch.no_grad():
        expected = open_clip_score("tiny-clip", f"{folder}/mine.pt")(image, ["a red key"]).item()
    assert json.loads(members(tmp_path / "out/train-0.tar")["0.json"]) == {
        "clip_score": pytest.approx(expected, abs=1e-4)
    }


def test_predictors_of_both_layouts_are_one_linear_map(tmp_path: Path):
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(8, 6), torch.nn.Dropout(), torch.nn.Linear(6, 1)).eval()
    torch.save({f"layers.{name}": value for name, value in layers.state_dict().items()}, tmp_path / "several.pth")
    weight, bias = read_predictor(tmp_path / "several.pth")
    x = torch.rand(4, 8)
    torch.testing.assert_close(x @ weight.T + bias, layers(x))
    torch.save({"weight": torch.zeros(2, 8), "bias": torch.zeros(2)}, tmp_path / "two.pth")
    with pytest.raises(ValueError, match=r"aesthetic\.path=.*two\.pth: .*gives 2 numbers"):
        read_predictor(tmp_path / "two.pth")
    (tmp_path / "none.pth").write_bytes(io.BytesIO(b"nothing").read())
    with pytest.raises(ValueError, match="no linear predictor"):
        read_predictor(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_predictor(tmp_path / "absent.pth")
