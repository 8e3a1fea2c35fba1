"""Canvases of built-in emoji: what is said of them is so, and it depends on the number alone."""

import glob
import re
import shlex

import numpy as np
import pytest
import torch

from ldm.config import compose
from ldm.data.classes import class_names
from ldm.data.fields import Caption, Layout, Mask, SemanticMap
from ldm.data.making.canvas_shards import _facts as named_facts
from ldm.data.making.canvas_shards import asked_for, make_canvas_shards, named_shards, parse
from ldm.data.making.canvases import CanvasSettings, canvas, describe, members
from ldm.data.making.cutouts import SPLITS, cut, emoji, few_emoji
from ldm.data.making.cutouts import class_names as cutouts_names
from ldm.data.module import ShardData
from ldm.data.paths import expand
from ldm.data.user_error import UserError
from scripts import make_canvases

SETTINGS = [CanvasSettings(), CanvasSettings("validation", (32, 32)), CanvasSettings(size=(128, 256), objects=(8, 12))]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: f"{settings.size[0]}")
def test_boxes_maps_and_names_of_a_canvas_agree(settings):
    for number in range(12):
        made = canvas(settings, number)
        height, width = settings.size
        assert made.image.shape == (height, width, 3) and made.groups.shape == made.instances.shape == (height, width)
        assert settings.objects[0] <= len(made.objects) <= settings.objects[1]
        for place, found in enumerate(made.objects, 1):
            rows, columns = np.nonzero(made.instances == place)
            edges = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            np.testing.assert_allclose(np.array(found["box"]) * [width, height, width, height], edges, atol=1e-3)
            assert (made.groups[rows, columns] == found["category"] + 1).all()
            assert made.caption[slice(*found["span"])] == found["phrase"]
        assert ((made.groups > 0) == (made.instances > 0)).all()


def test_a_canvas_depends_on_seed_split_and_number():
    one = members(canvas(CanvasSettings(), 5))
    assert members(canvas(CanvasSettings(), 5)) == one
    for other in (canvas(CanvasSettings(), 6), canvas(CanvasSettings(seed=1), 5), canvas(SETTINGS[1], 5)):
        assert members(other)["png"] != one["png"]


def test_groups_are_shared_and_emoji_are_not():
    names = {}
    for split in SPLITS:
        assert sorted(emoji(split)) == list(range(9))
        names[split] = {one.caption for group in emoji(split).values() for one in group}
    assert not names["train"] & names["validation"]
    chosen = [
        found["category"] for number in range(150) for found in canvas(CanvasSettings(size=(32, 32)), number).objects
    ]
    assert min(np.bincount(chosen, minlength=9)) > len(chosen) / 9 / 2


def test_of_few_names_all_canvases_draw_the_same_ones():
    few = few_emoji("train", 2)
    names = {one.caption for group in few.values() for one in group}
    assert len(names) == 18 and {len({one.caption for one in group}) for group in few.values()} == {2}
    assert len({one.style for group in few.values() for one in group}) == 3
    for seed in (0, 1):
        drawn = [canvas(CanvasSettings(size=(32, 32), names=2, seed=seed), number) for number in range(40)]
        assert {own["phrase"] for one in drawn for own in one.objects} == names
    assert few_emoji("validation", 1000).keys() == emoji("validation").keys()
    assert CanvasSettings(names=1, objects=(2, 9)) and named_facts(CanvasSettings(names=1)) != named_facts(
        CanvasSettings()
    )
    assert "names" not in named_facts(CanvasSettings()), "what was made before there were names is the same still"
    for names in (0, 1):
        with pytest.raises(UserError, match=f"names={names} of each of 9 groups: too few for 10 objects"):
            CanvasSettings(names=names, objects=(2, 10))


def test_an_edge_is_unmixed_from_white():
    picture = np.full((20, 20, 3), 255, np.uint8)
    picture[4:16, 4:16] = (200, 0, 0)
    picture[4, 4:16] = (227, 127, 127)  # half of it
    pixels = cut(picture)
    assert pixels.shape == (12, 12, 4) and (pixels[..., :3] == (200, 0, 0)).all()
    assert abs(int(pixels[0, 5, 3]) - 128) <= 2 and (pixels[1:, :, 3] == 255).all()
    assert cut(np.full((20, 20, 3), 255, np.uint8)) is None


def test_captions_say_where_things_are():
    boxes = [[0, 0, 0.2, 0.2], [0, 0.6, 0.2, 0.9], [0.6, 0, 0.9, 0.2]]
    assert describe(["red heart", "apple"], boxes[:2])[0] == "a red heart above an apple"
    text, spans = describe(["key", "chopsticks", "cup"], [boxes[2], boxes[0], boxes[1]])
    assert text == "a key right of chopsticks, a cup" and text[slice(*spans[2])] == "cup"


def test_named_canvases_are_data_without_shards(tmp_path, monkeypatch):
    monkeypatch.setenv("LDM_CACHE", str(tmp_path))
    name = "canvases://train/size=48x32/samples=10/textured=0"
    fields = {"caption": Caption(), "layout": Layout(9, max_objects=4), "map": SemanticMap(), "mask": Mask()}
    assert class_names([name]) == class_names(f"[{name}]") == cutouts_names() and not list(tmp_path.iterdir())
    assert class_names([name, "shards/train-00000.tar"]) == []
    batches = [next(iter(ShardData(name, 32, 8, fields=fields).statistics_loader(batch_size=8))) for _ in range(2)]
    assert all(torch.equal(batches[0][key], batches[1][key]) for key in ("image", "layout", "map", "mask"))
    assert batches[0]["map"].max() <= 9 and torch.equal(batches[0]["map"] > 0, batches[0]["mask"][:, 0] > 0)
    [path] = named_shards(name.removeprefix("canvases://"), "data.train")
    before = path.stat().st_mtime_ns
    assert named_shards(name.removeprefix("canvases://"), "data.train") == [path] and path.stat().st_mtime_ns == before
    for wrong in ("test", "train/size=7", "train/colour=red", "train/size=a", "train/samples=0", "train/names=0",
                  "train/samples=1000001", "train/objects=1-2-3", "train/size=64/size=64"):  # fmt: skip
        with pytest.raises(UserError, match=r"data\.train: canvases://"):
            named_shards(wrong, "data.train")


def test_shards_of_canvases_are_confirmed_and_never_changed(tmp_path):
    words = [f"out={tmp_path}", "size=32", "samples=5", "validation_samples=3"]
    manifest = make_canvas_shards(tmp_path, asked_for(compose("make_canvases", words)))
    assert make_canvas_shards(tmp_path, asked_for(compose("make_canvases", words))) == manifest
    assert [manifest["splits"][split]["samples"] for split in SPLITS] == [5, 3] and len(manifest["class_names"]) == 9
    for word in ("seed=1", "samples=6", "samples=0"):
        with pytest.raises(UserError, match=re.escape(str(tmp_path))):
            make_canvas_shards(tmp_path, asked_for(compose("make_canvases", [*words[:2], *words[3:], word])))
    for word in ("size=[32]", "objects=[3,2]", "sides=[0,1]", "textured=2", "samples=-1", "samples=99999999999"):
        with pytest.raises(UserError, match=word.partition("=")[0]):
            asked_for(compose("make_canvases", [f"out={tmp_path}", word]))
    assert parse("validation").samples == 512


def test_a_file_in_the_place_of_the_folder_is_named_before_a_canvas_is_made(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match=r"out=.*out is a file; name a folder"):
        make_canvases.main([f"out={tmp_path}/out", "size=32", "samples=1", "validation_samples=1"])
    assert (tmp_path / "out").read_text() == "mine"


def test_the_line_to_train_with_names_what_was_made(tmp_path, capsys):
    for out, words, said in (
        ("both", ["samples=3", "validation_samples=2"],
         "data.train={}/train-*.tar data.validation={}/validation-*.tar"),
        ("held", ["samples=0", "validation_samples=2", "objects=[1,6]"],
         "data.validation={}/validation-*.tar data.fields.layout.max_objects=6"),
        ("train", ["samples=3", "validation_samples=0"], "data.train={}/train-*.tar"),
        ("it's my own", ["samples=3", "validation_samples=0"], "data.train={}/train-*.tar"),
        ("draft*", ["samples=3", "validation_samples=0"], "data.train={}/train-*.tar"),
    ):  # fmt: skip
        folder = tmp_path / out
        assert make_canvases.main([f"out={folder}", "size=32", *words]) == 0
        line = capsys.readouterr().out.splitlines()[-1]
        words = shlex.split(line)[2:]  # as a shell takes it, pasted
        place = glob.escape(str(folder))
        assert " ".join(words) == f"data=canvases {said.format(place, place)}"
        data = compose("config", ["experiment=tasks/canvas_autoencoder", *words])["data"]
        assert expand(data["validation" if out == "held" else "train"], "data")[0].parent == folder.resolve()
    data = compose("config", ["experiment=tasks/canvas_autoencoder"])["data"]
    assert data["fields"]["layout"]["max_objects"] == make_canvases.LAYOUT_OBJECTS
