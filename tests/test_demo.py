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
from ldm.config import compose
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
    tuned_words,
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
MAP = [
    "data=segmented_shards", "data.train=nowhere.tar", "conditioner=[semantic_map]",
    "conditioner.semantic_map.num_classes=3", "conditioner.semantic_map.factor=1",
]  # fmt: skip
NOISE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
BOX = '[{"category": 3, "box": [%s]}]'


def asked(run, values, folder):
    """A model of the page, with the words and the tree of sample.py for the values of its inputs."""
    drawer = load_drawer(run)
    words = words_of(inputs_of(drawer), values, folder, drawer.image_size)
    return drawer, words, tree_of(str(run), "ema", words, 4, "cpu", folder)


def drawn(drawer, words, tree, folder, say=print):
    """The files that the page makes."""
    *_, files = pictures(drawer, tree, words, torch.device("cpu"), folder, lambda share, done: None, say)
    return files


def painted(*box):
    """What an editor gives of a picture that is painted over in a box, if there is one."""
    layer = Image.new("RGBA", (16, 12))
    if box:
        layer.paste((255, 255, 255, 255), box)
    return {"background": Image.fromarray(NOISE), "layers": [layer]}


def saved(path, pixels, **how):
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **how)
    return str(path)


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
    assert (tree["compile"], tree["precision"]) == (False, "fp32")


def test_a_picture_of_a_page_in_bf16_says_so_and_so_does_its_line_in_a_shell(tmp_path):
    page = compose("demo", ["model=x", "precision=bf16", "compile=true"])
    tuned = tuned_words(page)
    tree = tree_of("x", "ema", ["label=1"], 4, "cpu", tmp_path, tuned)
    assert (tree["compile"], tree["precision"]) == (True, "bf16"), "its recipe has them, and again= draws by them"
    line = shlex.split(command("x", "ema", ["label=1"], 4, tuned))[2:]
    assert compose("sample", [*line, f"out={tmp_path}", "device=cpu"]) == tree
    assert tuned_words(compose("demo", ["model=x"])) == []


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
        pictures(load_drawer(run), tree, words, torch.device("cpu"), folder, lambda *given: told.append(given), print)
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


UNUSABLE = {
    "a condition that the model does not take": (
        LOW, {"low": NOISE, "more": "low_noise=0.1"}, "low_noise: this model reads no low_noise"
    ),
    "a small picture larger than the images": (
        LOW, {"low": NOISE, "more": "image_size=8"}, "low=.* is larger than the images"
    ),
    "a palette with other classes": (
        MAP, {"map": NOISE[..., 0] % 9}, r"map=.*segmentation 0\.\.8: .*num_classes=3 asks for 0\.\.2"
    ),
    "a map in colours": (MAP, {"map": NOISE}, "map=.*: unusable map .*mode RGB"),
    "boxes outside": (LAYOUT, {"boxes": BOX % "0.2, 0.2, 1.4, 0.5"}, "boxes=.*shares of the image"),
    "boxes of no area": (LAYOUT, {"boxes": BOX % "0.5, 0.2, 0.5, 0.5"}, "boxes=.*has no area"),
    "a hole of nothing": (HOLES, {"image": painted()}, "mask=.*: hides nothing"),
    "a hole of everything": (HOLES, {"image": painted(0, 0, 16, 12)}, "mask=.*: hides everything"),
    "a class that there is not": ([], {"label": 7}, r"label 7\.\.7: .*num_classes=5"),
}  # fmt: skip


@pytest.mark.parametrize("what", UNUSABLE)
def test_what_cannot_be_used_is_one_line_the_same_on_the_page_and_in_a_shell(tmp_path, what):
    model, given, problem = UNUSABLE[what]
    values = {key: saved(tmp_path / f"{key}.png", value) if isinstance(value, np.ndarray) else value
              for key, value in given.items()}  # fmt: skip
    folder = new_folder(tmp_path / "out")
    drawer, words, tree = asked(untrained_run(tmp_path / "run", *model), values, folder)
    with pytest.raises(ValueError, match=problem) as page:
        drawn(drawer, words, tree, folder)
    with pytest.raises(ValueError, match=problem) as shell:
        sample.main([f"model={tmp_path}/run", *words, f"out={tmp_path}/same"])
    assert str(page.value) == str(shell.value) and "\n" not in str(page.value)
    assert not list(folder.glob("0*.png")) and not (tmp_path / "same").exists()


@pytest.mark.parametrize("kind", ["transparent", "16 bit", "CMYK", "turned"])
def test_a_picture_of_any_kind_is_drawn_from_as_in_a_shell(tmp_path, kind):
    how = {}
    if kind == "transparent":
        picture = Image.fromarray(np.dstack([NOISE, np.where(NOISE[..., :1] > 99, 255, 0).astype(np.uint8)]))
    elif kind == "16 bit":
        picture = Image.fromarray(NOISE[..., 0].astype(np.uint16) * 257)
    elif kind == "CMYK":
        picture = Image.fromarray(np.dstack([NOISE, NOISE[..., 0]]), "CMYK")
    else:
        picture, exif = Image.fromarray(NOISE), Image.Exif()
        exif[0x0112], how["exif"] = 6, exif
    path = saved(tmp_path / f"up.{'tiff' if kind == 'CMYK' else 'png'}", picture, **how)
    run, folder = untrained_run(tmp_path / "run", *LOW, "derived.low_resolution.factor=1"), new_folder(tmp_path / "out")
    files = drawn(*asked(run, {"low": path, "num_images": 1, "num_steps": 2}, folder), folder)
    words = [f"model={run}", f"low={path}", "num_images=1", "num_steps=2", f"out={tmp_path}/same"]
    assert sample.main(words) == 0
    page, shell = Image.open(files[0]), Image.open(next((tmp_path / "same").glob("*_0000.png")))
    assert page.size == ((12, 16) if kind == "turned" else (16, 12)) and np.array_equal(
        np.asarray(page), np.asarray(shell)
    )


def test_what_is_told_in_a_shell_is_told_on_the_page(tmp_path):
    told, folder = [], new_folder(tmp_path / "out")
    text = untrained_run(tmp_path / "text", *TEXTS)
    long = "a red heart on a table beside a cup of tea and TWO old chairs, in the evening sun"
    drawn(*asked(text, {"prompt": long, "num_images": 5, "num_steps": 1}, folder), folder, told.append)
    [line] = told
    assert "max_tokens=16, so that the end is not read: 'chairs, in the evening sun'" in line
    maps, path = untrained_run(tmp_path / "maps", *MAP), saved(tmp_path / "map.png", NOISE[..., 0] % 3)
    drawn(*asked(maps, {"map": path, "height": "6", "num_steps": 1}, folder), folder, told.append)
    assert told[1:] == [f"map={folder}/map.png: its 16 x 12 px are resized to 8 x 6"]


def test_progress_does_not_jump_where_experts_come_and_go(tmp_path):
    runs = [untrained_run(tmp_path / name, f"expert.node=[1,{name}]") for name in "01"]
    write_manifest(tmp_path / "e.yaml", runs)
    words, shares = ["label=[1,2]", "num_images=1", "num_steps=4"], []
    tree = tree_of(str(tmp_path / "e.yaml"), "ema", words, 1, "cpu", tmp_path)
    model = load_drawer(tmp_path / "e.yaml", residency="one")
    drawn = pictures(model, tree, words, torch.device("cpu"), tmp_path, lambda share, said: shares.append(share), print)
    assert len(list(drawn)) == 2 and model.residency["switches"] > 0
    assert shares == sorted(shares) and len(shares) == 2 * 4, "one for each evaluation of the denoiser"


def page_script():
    spec = importlib.util.spec_from_file_location("demo_script", ROOT / "scripts" / "demo.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_on_a_cpu_what_an_evaluation_frees_is_kept_for_the_next(tmp_path, monkeypatch):
    kept: list[bool] = []
    monkeypatch.setattr("ldm.device.keep_memory", lambda: kept.append(True))
    monkeypatch.setattr("ldm.demo.page.serve", lambda *of: None)
    assert page_script().main([f"model={untrained_run(tmp_path / 'run')}", "device=cpu"]) == 0
    assert kept == [True]


def test_without_gradio_the_page_says_what_to_install(monkeypatch):
    script = page_script()
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


class Visitor:
    """Who has the page of some runs open in headless Chromium."""

    def __init__(self, executable, runs, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.origin, self.out = f"http://127.0.0.1:{port}/", folder / "out"
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "GRADIO_TEMP_DIR": str(folder / "cache")}
        words = [f"model=[{','.join(map(str, runs))}]", f"port={port}", f"out={self.out}", "device=cpu"]
        self.server = subprocess.Popen(
            [sys.executable, ROOT / "scripts" / "demo.py", *words], stdout=subprocess.PIPE, text=True, env=environment
        )
        self.browser = None
        assert self.server.stdout.readline().strip() == self.origin
        self.browser = Browser(executable, folder / "profile")

    def open(self, width):
        self.browser.open(self.origin, width, "light")
        self.until("Boolean(document.querySelector('.draw'))")

    def until(self, expression):
        deadline = time.monotonic() + 60
        while not (value := self.browser.evaluate(expression)):
            assert time.monotonic() < deadline, (expression, self.browser.evaluate(STATE))
            time.sleep(0.05)
        return value

    def press(self, selector, text=""):
        found = f"[...document.querySelectorAll({selector!r})]{VISIBLE}.filter(e => e.innerText.includes({text!r}))"
        self.until(f"(() => {{ const e = {found}[0]; if (e) e.click(); return Boolean(e); }})()")

    def fill(self, selector, value):
        self.until(FILL.replace("SELECTOR", selector).replace("VISIBLE", VISIBLE).replace("VALUE", json.dumps(value)))
        time.sleep(1)  # the page hears of what is typed a moment later

    def upload(self, selector, path):
        root = self.browser("DOM.getDocument")["root"]["nodeId"]
        node = self.browser("DOM.querySelector", nodeId=root, selector=f"{selector} input[type=file]")["nodeId"]
        self.browser("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def drag(self, selector, *places):
        """The mouse held down over an element, from one place in shares of its sides to the next; one is a click."""
        corner = "(e => { e.scrollIntoView({block: 'center'}); const r = e.getBoundingClientRect(); "
        corner += f"return [r.x, r.y, r.width, r.height]; }})([...document.querySelectorAll({selector!r})]{VISIBLE}[0])"
        left, top, width, height = self.until(corner)
        spots = [(left + x * width, top + y * height) for x, y in places]
        held = {"button": "left", "buttons": 1, "clickCount": 1}
        for kind, (x, y), how in (
            ("mouseMoved", spots[0], {}), ("mousePressed", spots[0], held),
            *[("mouseMoved", spot, held) for spot in spots[1:]], ("mouseReleased", spots[-1], held),
        ):  # fmt: skip
            self.browser("Input.dispatchMouseEvent", type=kind, x=x, y=y, **how)

    def shown(self, count):
        """The pictures of the gallery, and the line that draws the same in a shell."""
        sources, found = self.until(f"{SHOWN}.length >= {count} && {SHOWN}"), []
        for source in dict.fromkeys(sources):
            content = self.browser("Runtime.evaluate", expression=READ.replace("URL", json.dumps(source)),
                                   awaitPromise=True, returnByValue=True)["result"]["value"]  # fmt: skip
            found.append(Image.open(io.BytesIO(base64.b64decode(content))))
        line = self.browser.evaluate(f"[...document.querySelectorAll('.command textarea')]{VISIBLE}[0].value")
        return found[:count], line

    def close(self):
        self.server.terminate()
        self.server.wait(20)
        if self.browser is not None:
            self.browser.close()


@pytest.fixture
def visit(tmp_path):
    """A visitor of the page of runs."""
    executable, visitors = shutil.which("chromium") or shutil.which("google-chrome"), []
    if not executable:
        pytest.skip("no Chromium on this machine")

    def opened(*runs):
        visitors.append(Visitor(executable, runs, tmp_path))
        return visitors[-1]

    yield opened
    for visitor in visitors:
        visitor.close()


def same_in_a_shell(pictures_shown, line, out):
    """Whether a line of the page makes the pictures that it shows."""
    assert sample.main([*shlex.split(line)[2:], f"out={out}"]) == 0
    files = sorted(path for path in out.glob("*_0*.png"))
    return len(files) == len(pictures_shown) and all(
        np.array_equal(np.asarray(picture.convert("RGB")), np.asarray(Image.open(file)))
        for picture, file in zip(pictures_shown, files, strict=True)
    )


@pytest.mark.slow
def test_a_visitor_in_a_browser_gets_the_pictures_of_sample_py(tmp_path, visit):
    runs = [untrained_run(tmp_path / "labels"), untrained_run(tmp_path / "texts", *TEXTS)]
    page = visit(*runs)
    for width in (400, 1400):
        page.open(width)
        assert page.browser.evaluate("document.documentElement.scrollWidth") == width, "the page scrolls sideways"
    page.press("button.draw")
    page.until(f"{STATE}.startsWith('4 images in ')")
    shown, line = page.shown(4)
    for path in (tmp_path / "out" / "0001" / "0000.png", tmp_path / "out" / "0001" / "0000.json"):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{page.origin}gradio_api/file={path}")
    recipes = [json.loads(picture.text["recipe"]) for picture in shown]
    assert [recipe["drawn"]["number"] for recipe in recipes] == [0, 1, 2, 3], "their recipes went along"
    assert line.startswith(f"python sample.py model={runs[0]} ") and "label=0" in line
    assert same_in_a_shell(shown, line, tmp_path / "same"), "the pictures of sample.py"
    page.press("[role=tab]", runs[1].name)
    page.fill(".prompt", "a red heart")
    page.press("button.draw")
    page.until(f"{STATE}.startsWith('4 images in ')")
    line = page.browser.evaluate(f"[...document.querySelectorAll('.command textarea')]{VISIBLE}[0].value")
    assert "'prompt=a red heart'" in line and str(runs[1]) in line
    page.press("button.label-wrap", "Paint phrases")
    page.until(f"[...document.querySelectorAll('.paint-red')]{VISIBLE}.length")
    time.sleep(3)  # what has just been opened does not hear of it at once
    page.fill(".paint-red", "red heart")
    page.press("button.draw")
    page.until(f"{STATE}.startsWith(\"error: phrases: 'red heart' is {BRUSHES['red']}, and paint=\")")
    page.fill(".num-steps", "many")
    page.press("button.draw")
    page.until(f"{STATE} === \"error: num_steps='many': expected int | None\"")


@pytest.mark.slow
def test_a_visitor_in_a_browser_paints_a_hole_over_a_picture_and_draws_boxes(tmp_path, visit):
    runs = [untrained_run(tmp_path / "holes", *HOLES), untrained_run(tmp_path / "layout", *LAYOUT)]
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = saved(tmp_path / "photo.png", np.full((480, 640, 3), (200, 120, 30), np.uint8), exif=exif)
    page = visit(*runs)
    page.open(1400)
    time.sleep(2)
    page.upload(".image-picture", photo)
    page.until(f"[...document.querySelectorAll('.image-picture canvas')]{VISIBLE}.length")
    time.sleep(3)  # until it lies on the canvas
    page.drag(".image-picture canvas", (0.45, 0.45), (0.5, 0.5), (0.55, 0.5))
    time.sleep(1)
    page.press("button.draw")
    page.until(f"{STATE}.startsWith('4 images in ')")
    shown, line = page.shown(4)
    hole = np.asarray(Image.open(page.out / "0001" / "image-hole.png"))
    assert hole.shape == (640, 480) and 0 < (hole > 0).mean() < 0.5 and hole[320, 240] == 255, "upright, in the middle"
    assert same_in_a_shell(shown, line, tmp_path / "filled")
    page.press("[role=tab]", runs[1].name)
    page.until(f"[...document.querySelectorAll('.corners img')]{VISIBLE}.length")
    for corner in ((0.25, 0.25), (0.75, 0.5)):
        time.sleep(2)
        page.drag(".corners img", corner)
    written = "[...document.querySelectorAll('.boxes .cm-content')].map(e => e.innerText).join()"
    page.until(f"{written}.includes('box')")
    page.press("button.draw")
    page.until(f"{STATE}.startsWith('4 images in ')")
    shown, line = page.shown(4)
    [found] = json.loads((page.out / "0002" / "boxes.json").read_text())["objects"]
    assert found["category"] == 0 and found["box"] == pytest.approx([0.25, 0.25, 0.75, 0.5], abs=0.02)
    assert same_in_a_shell(shown, line, tmp_path / "laid")
