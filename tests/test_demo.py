"""The demo page: inputs of a model's fields, words of sample.py for what is filled in, and the page in a browser."""

import base64
import importlib.util
import io
import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageColor
from test_report import Browser
from toys import ROOT
from untrained import untrained_run

import sample
from ldm.demo import inputs
from ldm.demo.drawing import new_folder, packed, pictures
from ldm.demo.inputs import (
    BOXES,
    BRUSHES,
    CLASS,
    FILE,
    PAINT,
    PICTURE_AND_HOLE,
    TEXT,
    Input,
    command,
    inputs_of,
    more_words,
    tree_of,
    words_of,
)
from ldm.ensemble import write_manifest
from ldm.loading import load_drawer

HOLES = ["conditioner=[masked_image]", "derived=[holes]"]
LAYOUT = [
    "data=layout_shards", "data.train=nowhere.tar", "conditioner=[layout_transformer]",
    "conditioner.layout_transformer.width=8", "conditioner.layout_transformer.depth=1",
    "network.attention_factors=[1]", "network.channels=8",
]  # fmt: skip
LOW = ["conditioner=[low_resolution]", "conditioner.low_resolution.factor=1", "derived=[low_resolution]"]
TEXTS = ["conditioner=[text]", "network.attention_factors=[1]"]


def test_each_field_that_a_model_reads_has_an_input(tmp_path):
    start = ("start", PICTURE_AND_HOLE)
    for name, words, expected in (
        ("label", [], [("label", CLASS), start]),
        ("text", TEXTS, [("prompt", TEXT), ("negative_prompt", TEXT), ("paint", PAINT), start]),
        ("holes", HOLES, [("image", PICTURE_AND_HOLE), start]),
        ("layout", LAYOUT, [("boxes", BOXES), start]),
        ("low", LOW, [("image", FILE), ("low", FILE), start]),
    ):
        found = inputs_of(load_drawer(untrained_run(tmp_path / name, *words)))
        assert [(each.key, each.kind) for each in found] == expected, name


def test_what_is_filled_in_are_words_of_sample_py(tmp_path, monkeypatch):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    layer = Image.new("RGBA", (16, 12))
    layer.paste((255, 255, 255, 255), (4, 4, 8, 8))
    (tmp_path / "uploads").mkdir()
    picture.save(tmp_path / "uploads" / "up.png")
    fields = [
        Input("low", FILE),
        Input("prompt", TEXT),
        Input("image", PICTURE_AND_HOLE),
        Input("start", PICTURE_AND_HOLE),
        Input("boxes", BOXES),
    ]
    values = {
        "prompt": "a, 'b' ${x}", "seed": 3, "num_steps": None, "guidance.scale": 2.5, "strength": 0.5,
        "image": {"background": picture, "layers": [layer]}, "start": {"background": picture, "layers": []},
        "boxes": '[{"category": 1, "box": [0, 0, 1, 1]}]', "more": "guidance.limits.sigma_lo=0.3 'tiling=blended'",
    }  # fmt: skip
    words = words_of(fields, values, tmp_path, 8)
    assert words == [
        "guidance.limits.sigma_lo=0.3", "tiling=blended", "seed=3", "guidance.scale=2.5", "prompt=a, 'b' ${x}",
        f"image={tmp_path}/image.png", f"mask={tmp_path}/image-hole.png", f"start={tmp_path}/start.png",
        f"boxes={tmp_path}/boxes.json", "strength=0.5",
    ]  # fmt: skip
    assert np.array_equal(np.asarray(Image.open(tmp_path / "image.png")), np.asarray(picture))
    assert np.argwhere(np.asarray(Image.open(tmp_path / "image-hole.png"))).min(0).tolist() == [4, 4]
    assert Image.open(tmp_path / "start.png").size == (8, 8), "as large as the images will be"
    small = {"low": str(tmp_path / "uploads" / "up.png")}
    assert words_of([Input("low", FILE)], small, tmp_path, 8) == [f"low={tmp_path}/low.png"]
    assert (tmp_path / "low.png").read_bytes() == (tmp_path / "uploads" / "up.png").read_bytes(), "kept"
    words_of([fields[3], Input("low", FILE, sets_size=True)], {**small, "start": values["start"]}, tmp_path, 8)
    assert Image.open(tmp_path / "start.png").size == (16, 12), "as it is, where another file sets the size"
    assert json.loads((tmp_path / "boxes.json").read_text())["objects"][0]["box"] == [0, 0, 1, 1]
    assert shlex.split(command("x", "ema", words, 4))[2:] == ["model=x", "batch_size=4", *words]
    monkeypatch.setattr(inputs, "named", lambda: ["mine"])
    assert "plugins=[mine]" in shlex.split(command("x", "ema", words, 4)), "a shell needs the packages too"
    monkeypatch.undo()
    tree = tree_of("x", "ema", words, 4, "cpu", tmp_path)
    assert tree["prompt"] == "a, 'b' ${x}" and tree["guidance"]["limits"]["sigma_lo"] == 0.3


def test_strokes_are_a_sheet_in_the_colours_of_the_brushes(tmp_path):
    red, blue = (ImageColor.getrgb(BRUSHES[name]) for name in ("red", "blue"))
    layer = Image.new("RGBA", (32, 32))
    layer.paste((*red, 255), (0, 0, 16, 32))
    layer.paste((red[0] - 9, red[1] + 9, red[2], 130), (16, 0, 18, 32))  # a soft edge
    layer.paste((*red, 90), (18, 0, 20, 32))
    layer.paste((*blue, 255), (24, 24, 32, 32))
    value = {"background": Image.new("RGB", (32, 32), "white"), "layers": [layer]}
    given = {"paint": value, "paint.red": " a heart ", "paint.blue": "key", "painting.scale": "0.7", "prompt": ""}
    words = words_of([Input("prompt", TEXT), Input("paint", PAINT)], given, tmp_path, 16)
    phrases = json.dumps({"a heart": BRUSHES["red"], "key": BRUSHES["blue"]})
    assert words == ["prompt=", f"paint={tmp_path}/paint.png", f"phrases={phrases}", "painting.scale=0.7"]
    sheet = np.asarray(Image.open(tmp_path / "paint.png"))
    assert sheet.shape == (16, 16, 3) and (sheet[:, :9] == red).all() and (sheet[12:, 12:] == blue).all()
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) == 3
    blank = {"background": value["background"], "layers": [Image.new("RGBA", (32, 32))]}
    assert words_of([Input("paint", PAINT)], {"paint": blank, "painting.scale": "1"}, tmp_path, 16) == []
    assert words_of([Input("paint", PAINT)], {"paint": None, "paint.red": "x"}, tmp_path, 16)[1].startswith("phrases=")
    with pytest.raises(ValueError, match="same phrase is written for two colours"):
        words_of([Input("paint", PAINT)], {**given, "paint.blue": "a heart"}, tmp_path, 16)


@pytest.mark.parametrize(
    "word",
    ["plugins=[os]", "model=x", "image=/etc/passwd", "given.style=/etc/passwd", "prompts=/etc/passwd",
     "phrases=/etc/passwd", "paint=/etc/passwd", "device=cuda",
     "alignment=open_clip", "distance.path=x", "classifier=x", "out=/tmp/x", "seed=${oc.env:HOME}",
     "+sampler={_target_:x}", "a b", "'"],
)  # fmt: skip
def test_a_visitor_names_no_files_and_no_code(word):
    with pytest.raises(ValueError, match=r"no setting that this page takes|plain values|more settings"):
        list(more_words(word))


def test_pictures_come_batch_by_batch_with_their_recipes(tmp_path):
    run = untrained_run(tmp_path / "toy")
    folder, told = new_folder(tmp_path / "out"), []
    start = {"background": Image.new("RGB", (9, 8), "red")}
    words = ["label=1", "num_images=3", "sampler=heun",
             *words_of([Input("start", PICTURE_AND_HOLE)], {"start": start, "strength": 1}, folder, 8)]  # fmt: skip
    tree = tree_of(str(run), "ema", words, 2, "cpu", folder)
    found = list(
        pictures(load_drawer(run), tree, words, torch.device("cpu"), folder, lambda *given: told.append(given))
    )
    assert [len(files) for files in found] == [2, 3] and new_folder(tmp_path / "out") == tmp_path / "out" / "0002"
    shares = [share for share, _ in told]
    assert (
        shares == sorted(shares) and 0 <= shares[0] < 0.1 and 0.8 < shares[-1] <= 1 and told[-1][1] == "2 of 3 images"
    )
    assert "recipe" in Image.open(found[-1][-1]).text
    with zipfile.ZipFile(packed(folder)) as file:
        file.extractall(tmp_path / "elsewhere")
    assert sample.main([f"again={tmp_path}/elsewhere/0001.png", f"model={run}", f"out={tmp_path}/new"]) == 0


def test_progress_does_not_jump_where_experts_come_and_go(tmp_path):
    runs = [untrained_run(tmp_path / name, f"expert.node=[1,{name}]") for name in "01"]
    write_manifest(tmp_path / "e.yaml", runs)
    words, shares = ["label=[1,2]", "num_images=1", "num_steps=4"], []
    tree = tree_of(str(tmp_path / "e.yaml"), "ema", words, 1, "cpu", tmp_path)
    model = load_drawer(tmp_path / "e.yaml", residency="one")
    drawn = pictures(model, tree, words, torch.device("cpu"), tmp_path, lambda share, said: shares.append(share))
    assert len(list(drawn)) == 2 and model.residency["switches"] > 0
    assert shares == sorted(shares) and len(shares) == 2 * 4, "one for each evaluation of the denoiser"


def test_without_gradio_the_page_says_what_to_install(monkeypatch):
    spec = importlib.util.spec_from_file_location("demo_script", ROOT / "scripts" / "demo.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "find_spec", lambda name: True)
    with pytest.raises(ValueError, match=r"model=\[\]: names no model"):
        script.main(["model=[]"])
    monkeypatch.setattr(script, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs gradio, which is not installed: pip install '\.\[demo\]'"):
        script.main(["model=x"])


# In a browser

VISIBLE = ".filter(e => e.offsetParent)"
FILL = """(() => { const area = [...document.querySelectorAll('SELECTOR textarea, SELECTOR input')]VISIBLE[0];
  if (!area) return false;
  area.value = VALUE; area.dispatchEvent(new Event('input', {bubbles: true})); return true; })()"""
STATE = "[...document.querySelectorAll('.status textarea')].filter(e => e.offsetParent).map(e => e.value).join()"
SHOWN = "[...document.querySelectorAll('.pictures img')].filter(e => e.offsetParent && e.naturalWidth).map(e => e.src)"
READ = """(async () => { const bytes = new Uint8Array(await (await fetch(URL)).arrayBuffer());
  return btoa(String.fromCharCode(...bytes)); })()"""


@pytest.mark.slow
def test_a_visitor_in_a_browser_gets_the_pictures_of_sample_py(tmp_path):
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        pytest.skip("no Chromium on this machine")
    runs = [untrained_run(tmp_path / "labels"), untrained_run(tmp_path / "texts", *TEXTS)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GRADIO_TEMP_DIR": str(tmp_path / "cache")}
    words = [f"model=[{','.join(map(str, runs))}]", f"port={port}", f"out={tmp_path}/out", "device=cpu"]
    server = subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "demo.py", *words], stdout=subprocess.PIPE, text=True, env=environment
    )
    browser = None
    try:
        assert server.stdout.readline().strip() == f"http://127.0.0.1:{port}/"
        browser = Browser(executable, tmp_path / "profile")

        def until(expression: str) -> object:
            deadline = time.monotonic() + 60
            while not (value := browser.evaluate(expression)):
                assert time.monotonic() < deadline, (expression, browser.evaluate(STATE))
                time.sleep(0.05)
            return value

        def press(selector: str, text: str = "") -> None:
            found = f"[...document.querySelectorAll({selector!r})]{VISIBLE}.filter(e => e.innerText.includes({text!r}))"
            until(f"(() => {{ const e = {found}[0]; if (e) e.click(); return Boolean(e); }})()")

        def fill(selector: str, value: str) -> None:
            until(FILL.replace("SELECTOR", selector).replace("VISIBLE", VISIBLE).replace("VALUE", json.dumps(value)))

        origin = f"http://127.0.0.1:{port}/"
        for width in (400, 1400):
            browser.open(origin, width, "light")
            until("Boolean(document.querySelector('.draw'))")
            assert browser.evaluate("document.documentElement.scrollWidth") == width, "the page scrolls sideways"
        press("button.draw")
        until(f"{STATE}.startsWith('4 images in ')")
        sources = until(f"{SHOWN}.length >= 4 && {SHOWN}")
        shown = []
        for source in dict.fromkeys(sources):
            content = browser("Runtime.evaluate", expression=READ.replace("URL", json.dumps(source)), awaitPromise=True,
                              returnByValue=True)["result"]["value"]  # fmt: skip
            shown.append(Image.open(io.BytesIO(base64.b64decode(content))))
        for path in (tmp_path / "out" / "0001" / "0000.png", tmp_path / "out" / "0001" / "0000.json"):
            with pytest.raises(urllib.error.HTTPError, match="403"):
                urllib.request.urlopen(f"{origin}gradio_api/file={path}")
        recipes = [json.loads(picture.text["recipe"]) for picture in shown[:4]]
        assert [recipe["drawn"]["number"] for recipe in recipes] == [0, 1, 2, 3], "their recipes went along"
        line = browser.evaluate("document.querySelector('.command textarea').value")
        assert line.startswith(f"python sample.py model={runs[0]} ") and "label=0" in line
        assert sample.main([*shlex.split(line)[2:], f"out={tmp_path}/same"]) == 0
        for number, picture in enumerate(shown[:4]):
            same = Image.open(tmp_path / "same" / f"0_{number:04d}.png")
            assert np.array_equal(np.asarray(picture.convert("RGB")), np.asarray(same)), "the pictures of sample.py"
        press("[role=tab]", runs[1].name)
        fill(".prompt", "a red heart")
        press("button.draw")
        until(f"{STATE}.startsWith('4 images in ')")
        line = browser.evaluate(f"[...document.querySelectorAll('.command textarea')]{VISIBLE}[0].value")
        assert "'prompt=a red heart'" in line and str(runs[1]) in line
        press("button.label-wrap", "Paint phrases")
        until(f"[...document.querySelectorAll('.paint-red')]{VISIBLE}.length")
        time.sleep(3)  # what has just been opened hears of what is typed a moment later
        fill(".paint-red", "red heart")
        time.sleep(1)
        press("button.draw")
        until(f"{STATE}.startsWith(\"error: phrases: 'red heart' is {BRUSHES['red']}, and paint=\")")
        fill(".num-steps", "many")
        press("button.draw")
        until(f"{STATE} === \"error: num_steps='many': expected int | None\"")
    finally:
        server.terminate()
        server.wait(20)
        if browser is not None:
            browser.close()
