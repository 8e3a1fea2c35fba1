"""Style transfer as a sheet: both numbers with intervals, from the same noise with and without the picture."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import clip_image_folder
from untrained import untrained_run

from ldm.config import compose, overriding
from ldm.ensemble import write_manifest
from ldm.evaluation.stand_ins import stand_ins
from ldm.evaluation.style_sheet import style_sheet
from ldm.holding import FolderHeld, held
from ldm.loading import load_drawer
from ldm.metrics.similarity import style_statistics

CONDITIONS = [
    "conditioner=[clip_text,clip_image]", f"conditioner.clip_text.path={clip_image_folder()}",
    f"conditioner.clip_image.path={clip_image_folder()}", "derived=[style]", "derived.style.size=16",
    "conditioner.clip_image.slots=[vector,tokens]", "conditioner.clip_image.width=8", "data.max_samples=40",
    "data.validation_samples=40",
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained_run(tmp_path_factory.mktemp("runs") / "model", *CONDITIONS)


def sheet(model: Path, out: Path, *more: str) -> tuple[dict[str, dict], Path]:
    words = [f"model={model}", f"out={out}", "device=cpu", "~logger", "num_prompts=3", "num_styles=2", "num_images=2",
             "resamples=50", *more]  # fmt: skip
    words = overriding(words)
    rows, folder = style_sheet(compose("style_sheet", words), words)
    return {row["metric"].partition("/")[0]: row for row in rows}, folder


def test_both_numbers_and_their_intervals(model: Path, tmp_path: Path):
    rows, folder = sheet(model, tmp_path / "a")
    assert rows.keys() == {"similarity", "alignment_score"}
    assert rows["similarity"]["metric"] == "similarity/vgg16_statistics@64"
    for row in rows.values():
        assert row["gain"] == pytest.approx(row["styled"] - row["plain"]) and row["gain"] != 0
        for name in ("styled", "plain", "gain", "styled_other"):
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
        assert (row["prompts"], row["styles"]) == (3, 2)
    pairs = list(csv.DictReader((folder / "pairs.csv").open()))
    assert len(pairs) == 6 and len({pair["prompt"] for pair in pairs}) == 3
    gains = [float(pair["similarity"]) - float(pair["similarity_plain"]) for pair in pairs]
    assert np.mean(gains) == pytest.approx(rows["similarity"]["gain"])
    assert Image.open(folder / "sheet.png").size[0] > 100 and (folder / "style.csv").exists()
    again, _ = sheet(model, tmp_path / "b", "batch_size=5")
    assert again["similarity"]["gain"] == pytest.approx(rows["similarity"]["gain"], abs=1e-4), "whatever the batch"
    with held(tmp_path / "a", "evaluating into"), pytest.raises(FolderHeld, match="is evaluating into"):
        sheet(model, tmp_path / "a")


def test_the_sheet_has_a_row_of_styles_and_one_for_each_prompt(model: Path, tmp_path: Path):
    _, folder = sheet(model, tmp_path / "a")
    with Image.open(folder / "sheet.png") as image:
        across, down = 3 * (96 + 6) + 6, 18 + 4 * (18 + 96 + 6) + 6 + 18
        assert image.size == (across, down)
        styles = np.asarray(image)[36:132, 108:204]
    assert len(np.unique(styles.reshape(-1, 3), axis=0)) > 10, "a picture of the data"


def test_experts_that_come_and_go_make_the_same_sheet(tmp_path: Path):
    experts = [untrained_run(tmp_path / f"e{n}", f"expert.node=[1,{n}]", *CONDITIONS, seed=n) for n in range(2)]
    write_manifest(tmp_path / "e.yaml", experts)
    found = [sheet(tmp_path / "e.yaml", tmp_path / mode, f"residency={mode}")[0] for mode in ("all", "one")]
    assert found[0] == found[1]


def test_without_guidance_by_anything_a_style_changes_nothing(model: Path, tmp_path: Path):
    (tmp_path / "prompts.txt").write_text("a red heart\na key\n")
    files = []
    for name, value in (("a", 30), ("b", 220)):
        Image.fromarray(np.full((20, 30, 3), value, np.uint8)).save(tmp_path / f"{name}.png")
        files.append(f"{tmp_path}/{name}.png")
    rows, _ = sheet(
        model, tmp_path / "a", f"prompts={tmp_path}/prompts.txt", f"styles=[{','.join(files)}]", "guidance.scale=0"
    )
    assert rows["similarity"]["prompts"] == 2
    for row in rows.values():
        assert row["gain"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(OSError, match=r"styles=.*absent\.png: no such file"):
        sheet(model, tmp_path / "b", f"styles=[{tmp_path}/absent.png]")


def test_a_model_that_takes_no_style_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"takes no style beside a text, it is conditioned on label"):
        sheet(untrained_run(tmp_path / "labelled"), tmp_path / "a")
    with pytest.raises(ValueError, match="num_images=0: must be at least 1"):
        sheet(tmp_path / "labelled", tmp_path / "a", "num_images=0")


def test_stand_ins_are_named(model: Path, tmp_path: Path):
    assert stand_ins(load_drawer(model)) == []
    words = ["conditioner=[image_features]", "conditioner.image_features.size=32", "derived=[style]"]
    assert stand_ins(load_drawer(untrained_run(tmp_path / "run", *words))) == ["image_features"]


def test_statistics_are_of_the_style_and_not_of_the_place():
    similarity = style_statistics()
    generator = torch.Generator().manual_seed(0)
    stripes = (torch.arange(64) // 4 % 2 * 2.0 - 1).expand(1, 3, 64, 64)
    noise = torch.rand(1, 3, 64, 64, generator=generator) * 2 - 1
    found = similarity(torch.cat([stripes, stripes.roll(4, 3), noise]))
    assert torch.allclose(found.norm(dim=1), torch.ones(3))
    near = found @ found.T
    assert near[0, 1] > 0.98 and near[0, 1] > near[0, 2] + 0.05
