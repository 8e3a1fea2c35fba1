"""The page itself, of gradio's parts: a tab for each model."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image, ImageDraw

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # it would ask its makers' server
import gradio as gr
from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

from ldm.config.registry import groups
from ldm.data.errors import told
from ldm.demo import inputs as kinds
from ldm.demo.drawing import new_folder, packed, pictures
from ldm.demo.inputs import BRUSHES, Input, command, inputs_of, tree_of, tuned_words, words_of
from ldm.drawer import Drawer
from ldm.errors import UserError

LABELS = {
    "prompt": "Prompt",
    "negative_prompt": "Negative prompt: what guidance leads away from",
    "label": "Class",
    "image": "Picture; paint over what is to be drawn anew",
    "start": "Picture to begin from; paint over what is to be drawn anew, or nothing for all of it",
    "low": "Small picture to enlarge",
    "map": "Map of classes",
    "boxes": "Boxes, in shares of the image",
    "paint": "Where each is, in shares of the image",
    "style": "Picture whose style is taken",
}
OWN = "as the run says"
CSS = ".gradio-container {max-width: 1400px !important} #status textarea {font-family: monospace}"
PALETTE = ("#d62728", "#1f77b4", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f")


class Shown(NamedTuple):
    """A model on the page: its path and name, its average, itself."""

    path: str
    name: str
    ema: str
    drawer: Drawer


def page(models: Sequence[Shown], tree: Mapping[str, Any], device: torch.device) -> gr.Blocks:
    """The page of `models` under the settings of `tree` (conf/demo.yaml)."""
    with gr.Blocks(title="Samples", analytics_enabled=False) as blocks:
        for shown in models:
            with gr.Tab(shown.name):
                _tab(shown, tree, device)
    return blocks


def serve(blocks: gr.Blocks, tree: Mapping[str, Any]) -> None:
    """Serve the page until interrupted; its address is printed."""
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no font from elsewhere
    blocks.queue(default_concurrency_limit=1).launch(
        server_name=tree["host"], server_port=tree["port"], share=False, quiet=True, prevent_thread_lock=True,
        footer_links=[], theme=theme, css=CSS, ssr_mode=False,
    )  # fmt: skip
    print(f"http://{tree['host']}:{tree['port']}/", flush=True)
    blocks.block_thread()


def _tab(shown: Shown, tree: Mapping[str, Any], device: torch.device) -> None:
    inputs = inputs_of(shown.drawer)
    with gr.Row():
        with gr.Column(min_width=300):
            apart = ("start", "paint")
            fields = {each.key: _component(each, shown.drawer) for each in inputs if each.key not in apart}
            fields |= _settings()
            for each in inputs:
                if each.kind == kinds.PAINT:
                    with gr.Accordion("Paint phrases of the prompt", open=False):
                        fields |= {each.key: _component(each, shown.drawer), **_phrases()}
                if each.key == "start":
                    with gr.Accordion("Begin from a picture", open=False):
                        fields["start"] = _component(each, shown.drawer)
                        fields["strength"] = _setting(
                            "strength", "Strength", usual="0.8, and 1 where a part is painted over"
                        )
            button = gr.Button("Draw", variant="primary", elem_classes="draw")
        with gr.Column(min_width=300):
            status = gr.Textbox(label="State", interactive=False, elem_classes="status", lines=1)
            gallery = gr.Gallery(label="Pictures", columns=3, format="png", elem_classes="pictures", interactive=False)
            download = gr.DownloadButton("Download all, with their recipes", interactive=False, elem_classes="download")
            line = gr.Textbox(label="The same in a shell", interactive=False, elem_classes="command")
            recipe = gr.Code(label="Recipe", language="json", interactive=False, elem_classes="recipe")
    files = gr.State([])
    names, out, tuned = list(fields), Path(tree["out"]).absolute(), tuned_words(tree)

    def draw(*values: Any, progress: gr.Progress = gr.Progress()) -> Iterator[tuple]:  # noqa: B008  # gradio's way
        given = {key: None if value == OWN else value for key, value in zip(names, values, strict=True)}
        done: list[Path] = []
        beside: list[str] = []
        yield "drawing", [], gr.update(interactive=False), "", "", []
        try:
            folder = new_folder(out)
            words = words_of(inputs, given, folder, shown.drawer.image_size)
            asked = tree_of(shown.path, shown.ema, words, tree["batch_size"], tree["device"], folder, tuned)
            line = command(shown.path, shown.ema, words, tree["batch_size"], tuned)
            for done in pictures(shown.drawer, asked, words, device, folder, progress, beside.append):
                state = "\n".join([f"{len(done)} images", *beside])
                yield state, [_served(path) for path in done], gr.skip(), line, _recipe(done, 0), done
        except (UserError, OSError) as error:
            yield f"error: {told(error)}", gr.skip(), gr.skip(), gr.skip(), gr.skip(), done
            return
        everything = gr.update(value=_served(packed(folder)), interactive=True)
        yield "\n".join([f"{len(done)} images in {folder}", *beside]), gr.skip(), everything, gr.skip(), gr.skip(), done

    def chosen(done: list[Path], event: gr.SelectData) -> str:
        return _recipe(done, event.index)

    outputs = [status, gallery, download, line, recipe, files]
    button.click(draw, list(fields.values()), outputs, concurrency_id="draw", concurrency_limit=1)
    gallery.select(chosen, [files], [recipe])


def _served(path: Path) -> str:
    """A copy of a file in the folder that is served, at a place that only who sees the page is told: out= is not."""
    return save_file_to_cache(path, get_upload_folder())


def _recipe(done: Sequence[Path], place: int) -> str:
    return Path(done[place]).with_suffix(".json").read_text() if done else ""


def _settings() -> dict[str, Any]:
    """Inputs for the settings of sample.py, texts as on its command line; what is left open is as the run says."""

    with gr.Row():
        found = {"num_images": _setting("num_images", "Images", "4"), "seed": _setting("seed", "Seed", "0")}
    with gr.Row():
        found["num_steps"] = _setting("num_steps", "Steps")
        found["guidance.scale"] = _setting("guidance.scale", "Guidance scale")
    with gr.Accordion("More settings", open=False):
        for group, label in (("sampler", "Sampler"), ("sigmas", "Sigma schedule")):
            found[group] = gr.Dropdown([OWN, *groups()[group]], value=OWN, label=label)
        with gr.Row():
            found |= {key: _setting(key, f"{key.capitalize()}, px") for key in ("height", "width")}
        example = "guidance.limits.sigma_lo=0.3"
        found["more"] = gr.Textbox(label="Further words of sample.py", placeholder=example, elem_classes="further")
    return found


def _setting(key: str, label: str, value: str = "", usual: str = OWN) -> Any:
    name = key.replace(".", "-").replace("_", "-")
    return gr.Textbox(value, label=label, placeholder=usual, lines=1, min_width=100, elem_classes=name)


def _phrases() -> dict[str, Any]:
    """The phrase of each colour, and how strongly all of them weigh."""
    found = {
        f"paint.{name}": _setting(f"paint.{name}", f"What is {name}", usual="a phrase of the prompt")
        for name in BRUSHES
    }
    return {**found, "painting.scale": _setting("painting.scale", "Weight", usual="0.4")}


def _classes(label: str, names: Sequence[str]) -> Any:
    """A class by its name where names are known, else by its number."""
    if not names:
        return gr.Number(0, label=label, precision=0, minimum=0)
    return gr.Dropdown([(name, place) for place, name in enumerate(names)], value=0, label=label)


def _component(each: Input, drawer: Drawer) -> Any:
    label = LABELS.get(each.key, each.key.removeprefix("given."))
    if each.kind == kinds.TEXT:
        return gr.Textbox(label=label, lines=1, elem_classes=each.key)
    if each.kind == kinds.CLASS:
        return _classes(label, each.choices)
    if each.kind == kinds.PICTURE_AND_HOLE:
        brush = gr.Brush(colors=["#ffffff"], color_mode="fixed", default_size="auto")
        return gr.ImageEditor(label=label, type="pil", brush=brush, transforms=(), layers=False, format="png",
                              elem_classes=f"{each.key}-picture")  # fmt: skip
    if each.kind == kinds.PAINT:
        side = max(drawer.image_size, 384)
        brush = gr.Brush(colors=list(BRUSHES.values()), color_mode="fixed", default_size=side // 12)
        blank = Image.new("RGB", (side, side), "white")
        return gr.ImageEditor(blank, label=label, type="pil", brush=brush, sources=(), transforms=(), layers=False,
                              format="png", elem_classes=each.key)  # fmt: skip
    if each.kind == kinds.BOXES:
        return _boxes(label, each.choices, drawer.image_size)
    assert each.kind == kinds.FILE
    return gr.File(label=label, type="filepath")


def _boxes(label: str, names: Sequence[str], size: int) -> Any:
    """A canvas on which two clicks are the corners of a box, and the boxes as text, which may be written too."""
    side = max(size, 384)
    category = _classes("Class of the next box", names)
    canvas = gr.Image(_drawn([], [], side), label="Two clicks are a box", interactive=False, height=400, buttons=[],
                      elem_classes="corners")  # fmt: skip
    text = gr.Code("[]", label=label, language="json", elem_classes="boxes")
    corner = gr.State([])

    def clicked(text: str, corner: list[float], category: int, event: gr.SelectData) -> tuple[Any, list[float], str]:
        boxes, here = _read_boxes(text), [event.index[0] / side, event.index[1] / side]
        if not corner:
            return _drawn(boxes, here, side), here, text
        (left, right), (top, bottom) = sorted((corner[0], here[0])), sorted((corner[1], here[1]))
        box = [round(value, 4) for value in (left, top, right, bottom)]
        boxes.append({"category": int(category), "box": box})
        return _drawn(boxes, [], side), [], json.dumps(boxes)

    canvas.select(clicked, [text, corner, category], [canvas, corner, text])
    text.blur(lambda text: _drawn(_read_boxes(text), [], side), [text], [canvas])
    gr.Button("Without boxes", size="sm").click(lambda: ("[]", [], _drawn([], [], side)), None, [text, corner, canvas])
    return text


def _read_boxes(text: str) -> list[Any]:
    """The boxes that are written; none where that is no list, which drawing then says."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


def _is_box(each: Any) -> bool:
    box = each.get("box") if isinstance(each, dict) else None
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(value, int | float) for value in box)
    return numbers and box[0] <= box[2] and box[1] <= box[3]


def _drawn(boxes: Sequence[Any], corner: Sequence[float], side: int) -> Image.Image:
    """Boxes on a white square of `side` px, each class in a colour, and the corner that waits for another."""
    image = Image.new("RGB", (side, side), "white")
    pen: Any = ImageDraw.Draw(image)
    for each in filter(_is_box, boxes):
        number, box = each.get("category"), each["box"]
        colour = PALETTE[number % len(PALETTE)] if isinstance(number, int) else "black"
        pen.rectangle([value * side for value in box], outline=colour, width=3)
        pen.text((box[0] * side + 5, box[1] * side + 5), str(number), fill=colour)
    if corner:
        x, y = (value * side for value in corner)
        pen.ellipse([x - 4, y - 4, x + 4, y + 4], fill="black")
    return image
