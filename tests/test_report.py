"""The report: escaping, whole files, images and plots as PNG, and what a real browser makes of the page."""

import base64
import contextlib
import functools
import http.server
import io
import itertools
import json
import math
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from ldm import images
from ldm.report import canvas, page, plots
from ldm.report.theme import DARK, LIGHT

HOSTILE = "</style><script>alert(1)</script><img src=//x.test/a.png> \"quoted\" 'single' & $x_1$ {{ 7 * 7 }}"


# --- images ---------------------------------------------------------------------------------------------------------


def test_saved_pixels_and_text_come_back(tmp_path):
    levels = torch.arange(256, dtype=torch.float32) / 127.5 - 1
    path = images.save_image(
        tmp_path / "deep" / "a.png",
        levels.reshape(1, 16, 16).expand(3, -1, -1),
        text={"prompt": "füchs 🦊 \udcff", "seed": 3},
    )
    with Image.open(path) as image:
        assert image.mode == "RGB" and list(image.getdata(0)) == list(range(256))
        assert image.text == {"prompt": "füchs 🦊 ?", "seed": "3"}


def test_out_of_range_is_clamped_and_nan_is_black():
    assert images.to_uint8(torch.tensor([-9.0, 9.0, math.nan, math.inf])).tolist() == [0, 255, 0, 255]


def test_one_channel_is_saved_as_grey(tmp_path):
    path = images.save_image(tmp_path / "mask.png", torch.zeros(1, 4, 6), factor=3)
    with Image.open(path) as image:
        assert image.mode == "L" and image.size == (18, 12)


@pytest.mark.parametrize("number, columns, padding", [(1, 1, 0), (5, 3, 2), (6, 3, 1), (2, 4, 2)])
def test_grid_keeps_every_image_at_its_place(number, columns, padding):
    batch = torch.rand(number, 3, 5, 7) * 2 - 1
    sheet = images.grid(batch, columns, padding, background=0.25)
    rows = math.ceil(number / columns)
    assert sheet.shape == (3, rows * (5 + padding) + padding, columns * (7 + padding) + padding)
    for place, image in enumerate(batch):
        top, left = padding + place // columns * (5 + padding), padding + place % columns * (7 + padding)
        assert torch.equal(sheet[:, top : top + 5, left : left + 7], image)
    assert (sheet == 0.25).sum() == sheet.numel() - batch.numel()


def test_enlarging_repeats_pixels():
    image = torch.rand(3, 4, 5)
    large = images.enlarge(image, 4)
    assert large.shape == (3, 16, 20)
    assert torch.equal(large[:, ::4, ::4], image) and torch.equal(large[:, 3::4, 3::4], image)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: images.save_image("a.jpg", torch.zeros(3, 2, 2)), ".png"),
        (lambda: images.save_image("a.png", torch.zeros(2, 3, 2, 2)), r"\[2, 3, 2, 2\]"),
        (lambda: images.grid(torch.zeros(0, 3, 2, 2), 2), "B >= 1"),
        (lambda: images.grid(torch.zeros(1, 3, 2, 2), 0), "columns"),
        (lambda: images.enlarge(torch.zeros(3, 2, 2), 0), "factor"),
    ],
)
def test_wrong_images_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# --- plots ----------------------------------------------------------------------------------------------------------

CURVES = {
    name: (
        list(range(0, 6000, 20)),
        [low + math.exp(-s / 500) + spread * math.sin(s * s + len(name)) ** 3 for s in range(0, 6000, 20)],
    )
    for name, low, spread in [("diffusion, training", 0.140, 0.03), ("diffusion, validation", 0.149, 0.002)]
}
TRADE_OFF = {
    "base": [
        (0, 0.093, 0.11),
        (0.5, 0.070, 0.19),
        (1, 0.056, 0.245),
        (2, 0.047, 0.297),
        (4, 0.055, 0.325),
        (8, 0.084, 0.331),
    ],
    "ensemble of base, (1,0), (1,1)": [
        (0, 0.090, 0.112),
        (0.5, 0.067, 0.196),
        (1, 0.052, 0.252),
        (2, 0.044, 0.303),
        (4, 0.051, 0.334),
        (8, 0.077, 0.343),
    ],
}
LABELS = {
    "quality_label": "KID, EfficientNet-lite0 features",
    "alignment_label": "alignment score, MiniLM × EfficientNet-lite0",
}
INTERVALS = {
    "(1, 0) against its parent": (0.0412, 0.0399, 0.0004),
    "(1, 1) against its parent": (0.2281, 0.2284, 0.0012),
}
TIMES = {
    "installation": 161.0,
    "autoencoder": 312.0,
    "latent statistics": 9.0,
    "diffusion": 421.0,
    "expert (1,0)": 55.0,
    "expert (1,1)": 57.0,
    "samples and curves": 96.0,
}
PLOTS = {
    "loss_curves": lambda path: plots.loss_curves(path, CURVES, log_y=True),
    "trade_off": lambda path: plots.trade_off(path, TRADE_OFF, **LABELS),
    "interval_bars": lambda path: plots.interval_bars(path, INTERVALS),
    "stage_times": lambda path: plots.stage_times(path, TIMES),
}


def _corner(image: Image.Image) -> str:
    return "#" + bytes(image.convert("RGB").getpixel((2, 2))).hex()


@pytest.mark.parametrize("name", PLOTS)
def test_plots_are_drawn_for_light_and_dark_wide_and_narrow_pages(name, tmp_path):
    path = PLOTS[name](tmp_path / "plots" / "a.png")
    narrow = canvas.narrow_path(path)
    for width, light in ((canvas.WIDTH, path), (canvas.NARROW, narrow)):
        for file, theme in ((light, LIGHT), (canvas.dark_path(light), DARK)):
            with Image.open(file) as image:
                assert image.width == 2 * width and image.height > 250
                assert _corner(image) == theme.surface
                assert len(image.convert("RGB").getcolors(1 << 20)) > 50
    names = ["a.dark.png", "a.narrow.dark.png", "a.narrow.png", "a.png"]
    assert sorted(file.name for file in path.parent.iterdir()) == names


def test_plots_leave_matplotlib_as_it_was(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.stage_times(tmp_path / "a.png", {"$weird_name$ \\": 3.0})
    assert dict(matplotlib.rcParams) == before


def test_values_given_are_not_changed(tmp_path):
    values = np.array([0.5, -1.0, math.nan, 0.25])
    before = values.copy()
    plots.loss_curves(tmp_path / "a.png", {"_hidden": (range(4), values)}, log_y=True)
    np.testing.assert_array_equal(values, before)


def test_smoothing_has_no_start_up_bias_and_steps_over_gaps():
    assert plots.smooth([4.0] * 5, 0.9) == pytest.approx([4.0] * 5)
    assert plots.smooth([1.0, 2.0, 7.0], 0) == pytest.approx([1.0, 2.0, 7.0])
    kept = plots.smooth([1.0, math.nan, 3.0, math.inf], 0.5)
    assert kept == pytest.approx([1.0, 1.0, 7 / 3, 7 / 3])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda path: plots.loss_curves(path, {"val": ([1, 2], [0.1])}), "'val': 2 steps for 1 values"),
        (lambda path: plots.loss_curves(path, {"val": ([1], [math.nan])}), "'val' has no finite"),
        (lambda path: plots.loss_curves(path, {"val": ([1], [-1.0])}, log_y=True), "'val' has no positive"),
        (lambda path: plots.loss_curves(path, {}), "at least one"),
        (lambda path: plots.loss_curves(path, {"val": ([1], [1.0])}, smoothing=1.0), "smoothing"),
        (lambda path: plots.trade_off(path, {"base": [(1, math.nan, 0)]}, **LABELS), "'base'"),
        (lambda path: plots.trade_off(path, {}, **LABELS), "at least one"),
        (lambda path: plots.interval_bars(path, {}), "at least one"),
        (lambda path: plots.interval_bars(path, {"(1,0)": (0.0, 0.1, 0.01)}), r"'\(1,0\)'"),
        (lambda path: plots.interval_bars(path, {"b": (0.1, 0.1, math.inf)}), "'b': .*half intervals must be finite"),
        (lambda path: plots.stage_times(path, {}), "took time"),
    ],
)
def test_numbers_that_cannot_be_drawn_are_named_and_leave_no_file(call, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        call(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (245, "4 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7625, "2 h 07 min"),
    ],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert plots.duration(seconds) == text


# --- theme ----------------------------------------------------------------------------------------------------------


def _luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: str, b: str) -> float:
    low, high = sorted((_luminance(a), _luminance(b)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_lines_have_the_contrast_of_wcag_aa(theme):
    for background, color in itertools.product(
        (theme.page, theme.surface), (theme.ink, theme.muted, theme.accent, theme.good, theme.bad)
    ):
        assert _contrast(color, background) >= 4.5, (color, background)
    for color in theme.series:
        assert _contrast(color, theme.surface) >= 3, color


def _lab(color: str, vision: list[list[float]]) -> torch.Tensor:
    """CIE Lab of a colour as seen with `vision`, a matrix on linear RGB."""
    srgb = torch.tensor(list(bytes.fromhex(color[1:]))) / 255
    linear = torch.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    to_xyz = torch.tensor([[0.4339, 0.3762, 0.1899], [0.2126, 0.7152, 0.0722], [0.0177, 0.1095, 0.8730]])  # white = 1
    xyz = to_xyz @ (torch.tensor(vision) @ linear).clamp(0, 1)
    f = torch.where(xyz > 0.008856, xyz ** (1 / 3), 7.787 * xyz + 16 / 116)
    return torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Complete colour blindness of each kind, Machado et al. (2009), table 1.
VISIONS = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colour_blind_readers_tell_the_series_apart(theme, vision):
    seen = [_lab(color, VISIONS[vision]) for color in theme.series]
    assert all((a - b).norm() > 10 for a, b in itertools.combinations(seen, 2))  # 2 is just noticeable


# --- page -----------------------------------------------------------------------------------------------------------


def _image(path: Path, size: int = 32) -> Path:
    return images.save_image(path, torch.linspace(-1, 1, size).expand(3, size, size))


def test_all_text_is_escaped(tmp_path):
    picture = _image(tmp_path / "a #1 & <b>.png")
    cell = page.Cell([picture], HOSTILE, HOSTILE)
    items = [
        page.Text(HOSTILE),
        page.Table([HOSTILE], [[HOSTILE]], HOSTILE, marked={(0, 0)}),
        page.Figure(picture, HOSTILE, HOSTILE),
        page.ImageGrid([[page.Cell(label=HOSTILE), cell]], [HOSTILE, HOSTILE], HOSTILE),
        page.ImageGrid([[cell]]),
        page.Stats([page.Stat(HOSTILE, HOSTILE, HOSTILE, HOSTILE, True)]),
        page.Code(HOSTILE, HOSTILE),
        page.Gallery([cell], caption=HOSTILE),
        page.Fold(HOSTILE, [page.Text(HOSTILE)]),
    ]
    text = page.write_report(tmp_path, HOSTILE, HOSTILE, [page.Section(HOSTILE, HOSTILE, items)]).read_text()
    assert "<script" not in text and "<img src=//" not in text and text.count("</style>") == 1 and "{{ 7 * 7 }}" in text
    assert text.count("alert(1)") == text.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 20
    assert 'src="a%20%231%20%26%20%3Cb%3E.png"' in text


def test_prompt_bytes_that_are_no_utf8_do_not_stop_the_report(tmp_path):
    path = page.write_report(tmp_path, "t", "", [page.Section("s", "", [page.Text("caf\udce9 \N{FOX FACE}")])])
    assert "caf? \N{FOX FACE}" in path.read_text(encoding="utf-8")


def test_images_from_outside_travel_with_the_folder(tmp_path):
    inside, outside = _image(tmp_path / "report" / "plots" / "a.png"), _image(tmp_path / "elsewhere" / "a.png", 16)
    grid = page.ImageGrid([[page.Cell([inside, outside, outside])]])
    text = page.write_report(tmp_path / "report", "t", "", [page.Section("s", "", [grid])]).read_text()
    copies = list((tmp_path / "report" / "assets").iterdir())
    assert len(copies) == 1 and copies[0].read_bytes() == outside.read_bytes()
    assert 'src="plots/a.png"' in text and text.count(f'src="assets/{copies[0].name}"') == 2


@pytest.mark.parametrize(
    "native, shown, crisp", [(32, 128, True), (48, 96, True), (128, 128, False), (256, 128, False)]
)
def test_grid_images_are_enlarged_by_whole_factors(native, shown, crisp, tmp_path):
    picture = _image(tmp_path / "a.png", native)
    text = page.ImageGrid([[page.Cell([picture])]], size=128).html(page.Assets(tmp_path))
    assert f"--w:{shown}px;--h:{shown}px" in text and ('class="crisp"' in text) == crisp


def test_goal_is_said_in_words(tmp_path):
    tiles = [page.Stat("a", "1", met=True), page.Stat("b", "2", met=False), page.Stat("c", "3")]
    text = page.Stats(tiles).html(page.Assets(tmp_path))
    assert text.count("goal met") == 1 and text.count("goal missed") == 1


def test_failure_leaves_the_old_report_whole(tmp_path, monkeypatch):
    index = page.write_report(tmp_path, "old", "", [])
    before = index.read_bytes()
    missing = page.Section("s", "", [page.Figure(tmp_path / "gone.png", "c", "a")])
    with pytest.raises(ValueError, match=r"gone\.png does not exist"):
        page.write_report(tmp_path, "new", "", [missing])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left on device: cannot write"):
        page.write_report(tmp_path, "new", "", [])
    assert index.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["index.html"]


@pytest.mark.parametrize(
    "item, words",
    [
        (page.Table(["a", "b"], [[1, 2], [3]], "times"), "'times': row 1 has 1 cells for 2 headers"),
        (page.ImageGrid([[page.Cell(label="x")]], ["a", "b"], "samples"), "'samples': row 0 has 1 cells for 2 headers"),
        (page.Figure(Path(__file__), "c", "a"), "not an image"),
    ],
)
def test_data_that_do_not_fit_are_named(item, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        page.write_report(tmp_path, "t", "", [page.Section("s", "", [item])])


# --- the page in a browser ------------------------------------------------------------------------------------------

PROMPTS = [
    "red heart",
    "blue heart",
    "grinning face",
    "alarm clock",
    "pizza",
    "cat face",
    "rocket",
    "soccer ball",
    "key",
    "tree",
]


def _icon(path: Path, name: str, seed: int, blur: float = 0.0) -> Path:
    """A drawing of `name` at 32 px that differs a little by seed, in the manner of an emoji on white."""
    place = PROMPTS.index(name)
    canvas = Image.new("RGB", (256, 256), "white")
    draw = ImageDraw.Draw(canvas)
    shift = [((seed + 1) * 37 * (i + 1)) % 17 - 8 for i in range(3)]
    x, y, color = (
        128 + shift[0],
        128 + shift[1],
        ["#e0245e", "#2a6fdb", "#ffcc33", "#c0392b", "#f0a030", "#f5b041", "#9aa5b1", "#f4f4f4", "#e6b422", "#2e9e4f"][
            place
        ],
    )
    r = 92 + shift[2]
    if "heart" in name:
        draw.pieslice((x - r, y - r, x, y + 10), 180, 360, fill=color)
        draw.pieslice((x, y - r, x + r, y + 10), 180, 360, fill=color)
        draw.polygon([(x - r, y - 45), (x + r, y - 45), (x, y + r)], fill=color)
    elif name in ("pizza", "tree", "rocket"):
        draw.polygon([(x, y - r), (x - r, y + r * 0.7), (x + r, y + r * 0.7)], fill=color)
        draw.ellipse((x - 18, y, x + 18, y + 36), fill="#b03a2e")
    elif name == "key":
        draw.ellipse((x - r, y - 40, x - r + 80, y + 40), fill=color)
        draw.rectangle((x - 20, y - 10, x + r, y + 10), fill=color)
    else:
        draw.ellipse((x - r, y - r, x + r, y + r), fill=color, outline="#444", width=4)
        draw.ellipse((x - 45, y - 35, x - 20, y - 5), fill="#333")
        draw.ellipse((x + 20, y - 35, x + 45, y - 5), fill="#333")
        draw.arc((x - 50, y - 20, x + 50, y + 55), 10, 170, fill="#333", width=10)
    small = canvas.resize((32, 32), Image.Resampling.LANCZOS)
    pixels = (
        torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).reshape(32, 32, 3).permute(2, 0, 1) / 127.5 - 1
    )
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(seed)) * blur
    return images.save_image(path, pixels + noise, text={"prompt": name, "seed": seed})


COLUMNS = [f"{name}/efficientnet_lite0@128" for name in ("fd", "kid", "kid_std", "precision", "recall", "is")]
COLUMNS += ["alignment_score/efficientnet_lite0@128+minilm"]


def _realistic_report(root: Path) -> Path:
    out, samples = root / "report", root / "samples"
    sample_rows = [
        [page.Cell(label=prompt, sublabel=f"rank {1 + 3 * place} of 1,689\nunconditional {200 + 57 * place}")]
        + [page.Cell([_icon(samples / f"{place}-{seed}.png", prompt, seed, 0.08)]) for seed in range(4)]
        + [page.Cell([_icon(samples / f"{place}-near.png", prompt, 9)], sublabel=f"LPIPS 0.{21 + place}")]
        for place, prompt in enumerate(PROMPTS)
    ]
    reconstructions = [
        [page.Cell(label=label, sublabel=sub)]
        + [
            page.Cell([_icon(out / "images" / f"{label}-{i}.png", prompt, 5, blur)], sublabel=value)
            for i, prompt in enumerate(PROMPTS[:6])
        ]
        for label, sub, blur, value in [
            ("original", "held out", 0.0, ""),
            ("reconstruction", "KL, f = 4", 0.04, "27.4 dB"),
            ("bicubic", "down and up by 4", 0.15, "21.9 dB"),
        ]
    ]
    wall = [
        page.Cell(
            [_icon(samples / f"wall-{i}.png", PROMPTS[i % 10], i)],
            f"{PROMPTS[i % 10]}, as a long prompt in full",
            f"seed {i}",
        )
        for i in range(9)
    ]
    sections = [
        page.Section(
            "At a glance",
            "What this run measured, and the goals it set itself.",
            [
                page.Stats(
                    [
                        page.Stat("Reconstruction L1", "0.048", "", "at most 0.056 in [-1, 1]", True),
                        page.Stat("Reconstruction PSNR", "27.4", "dB", "bicubic 21.9 dB"),
                        page.Stat("KID × 1000, EfficientNet-lite0", "44.1", "", "at guidance 2"),
                        page.Stat("Prompts ranked first", "6", "of 10", "at least 7", False),
                        page.Stat("Whole chain", plots.duration(sum(TIMES.values())), "", "at most 25 min", True),
                    ]
                )
            ],
        ),
        page.Section(
            "What does it draw?",
            "Ten prompts, four seeds.",
            [
                page.Gallery(
                    [
                        page.Cell([_icon(samples / f"{i}-{seed}.png", prompt, seed, 0.08) for seed in range(4)], prompt)
                        for i, prompt in enumerate(PROMPTS)
                    ]
                ),
                page.Fold(
                    "Sample and nearest",
                    [
                        page.Gallery(
                            [
                                page.Cell(
                                    [_icon(samples / f"{i}-{seed}.png", prompt, seed, 0.08) for seed in (0, 1)],
                                    prompt,
                                    "woman_with_headscarf_medium_dark_skin_tone, 0.91",
                                )
                                for i, prompt in enumerate(PROMPTS)
                            ],
                            wide=6,
                            narrow=3,
                        ),
                        page.Table(
                            ["model", *COLUMNS],
                            [["ensemble", *["1.21e+03"] * len(COLUMNS)]] * 2,
                            "All the numbers.",
                            numeric=range(1, 8),
                        ),
                    ],
                ),
            ],
        ),
        page.Section(
            "Samples",
            "Ten fixed prompts at seeds 0-3, guidance 3, all shown. Beside them the nearest training image.",
            [
                page.ImageGrid(
                    sample_rows,
                    ["", *(f"seed {s}" for s in range(4)), "nearest in training"],
                    "Rank: where the prompt stands among all training captions, by alignment.",
                ),
                page.ImageGrid([wall], caption="Unconditional samples, the first nine.", size=96),
            ],
        ),
        page.Section(
            "Reconstructions",
            "Held-out images through the autoencoder.",
            [page.ImageGrid(reconstructions, ["", *PROMPTS[:6]], size=96)],
        ),
        page.Section(
            "Training",
            "",
            [
                page.Figure(
                    plots.loss_curves(out / "plots" / "loss.png", CURVES, log_y=True),
                    "Diffusion loss, smoothed; raw values faint.",
                    "Loss falls from 1.1 to 0.14.",
                ),
                page.Figure(
                    plots.interval_bars(out / "plots" / "experts.png", INTERVALS),
                    "Fixed-seed validation loss inside each expert's own interval.",
                    "Change per expert.",
                ),
            ],
        ),
        page.Section(
            "Guidance",
            "The same 200 starting noises for both models at every scale.",
            [
                page.Figure(
                    plots.trade_off(out / "plots" / "guidance.png", TRADE_OFF, **LABELS),
                    "Quality against alignment, a point per guidance scale.",
                    "Trade-off.",
                ),
                page.Table(
                    ["model", "guidance", "KID × 1000", "alignment"],
                    [
                        [name, f"{s:g}", f"{1000 * q:.1f}", f"{a:.3f}"]
                        for name, points in TRADE_OFF.items()
                        for s, q, a in points
                    ],
                    "Best of each column in bold.",
                    numeric={1, 2, 3},
                    marked={(9, 2), (11, 3)},
                ),
            ],
        ),
        page.Section(
            "Times",
            "",
            [
                page.Figure(
                    plots.stage_times(out / "plots" / "times.png", TIMES),
                    "Wall clock on 2 CPU cores.",
                    "Stages one after the other.",
                ),
                page.Text("Two samples were skipped.\n\nEach is named in the log with its shard and key."),
                page.Code(
                    'python sample.py model=runs/quickstart-diffusion prompt="a red fox" guidance.scale=3',
                    "Draw your own",
                ),
            ],
        ),
    ]
    return page.write_report(
        out,
        "Quickstart",
        "Fluent emoji at 32 px · KL autoencoder f = 4 · text-conditional latent diffusion · two experts",
        sections,
    )


class Browser:
    """Headless Chromium over its debugging pipe (file descriptors 3 and 4, JSON ended by NUL)."""

    def __init__(self, executable: str, profile: Path) -> None:
        to_child, self.to_browser = os.pipe()
        self.from_browser, from_child = os.pipe()
        flags = (
            "headless",
            "no-sandbox",
            "disable-gpu",
            "disable-quic",
            "no-first-run",
            "disable-background-networking",
        )
        flags += ("disable-component-update", "disable-sync", "hide-scrollbars", "remote-debugging-pipe")
        command = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'
        self.process = subprocess.Popen(
            [
                "bash",
                "-c",
                command,
                str(to_child),
                str(from_child),
                executable,
                *(f"--{flag}" for flag in flags),
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            pass_fds=(to_child, from_child),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self.numbers, self.rest, self.events, self.session = itertools.count(1), b"", [], None
        target = next(t for t in self("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self.session = self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self(f"{domain}.enable")

    def __call__(self, method: str, **params: object) -> dict:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params} | (
            {"sessionId": self.session} if self.session else {}
        )
        os.write(self.to_browser, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> dict:
        while b"\0" not in self.rest:
            part = os.read(self.from_browser, 1 << 20)
            assert part, "the browser went away"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def open(self, url: str, width: int, scheme: str) -> None:
        # Away from the page before: the new scheme would make it load other plots, which navigation then aborts.
        self._go("about:blank")
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._go(url)

    def _go(self, url: str) -> None:
        self.events.clear()
        self("Page.navigate", url=url)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression: str) -> object:
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def screenshot(self) -> bytes:
        return base64.b64decode(self("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def close(self) -> None:
        with contextlib.suppress(AssertionError):
            self("Browser.close")
        self.process.wait(20)


# Elements that show less than they hold, or that reach beyond the page's sides.
CUT = """[...document.querySelectorAll('body *')].filter(e => {
  const box = e.getBoundingClientRect();
  return (e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1) || box.left < -0.5 || box.right > innerWidth + 0.5;
}).map(e => e.outerHTML.slice(0, 200))"""


@pytest.mark.slow
def test_browser_shows_the_report_whole_at_every_width_and_scheme(tmp_path):
    executable = shutil.which("chromium") or shutil.which("google-chrome")
    if not executable:
        pytest.skip("no Chromium on this machine")
    folder = _realistic_report(tmp_path).parent
    # From a server only what lies in the folder can be had; nothing else was linked if this suffices.
    served = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code="-", size="-"):
            served.append((self.path, int(code)))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser = Browser(executable, tmp_path / "profile")
    try:
        origin = f"http://127.0.0.1:{server.server_address[1]}/"
        sizes = [(1400, "light"), (1280, "dark"), (800, "dark"), (420, "dark"), (420, "light"), (400, "light")]
        for width, scheme in sizes:
            browser.open(origin + "index.html", width, scheme)
            browser.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true), 0")
            assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
            assert browser.evaluate("document.documentElement.scrollWidth") == width, "the page scrolls sideways"
            assert browser.evaluate(CUT) == []
            dark_plots = (
                "[...document.querySelectorAll('.plot img')].filter(i => i.currentSrc.endsWith('.dark.png')).length"
            )
            narrow_plots = (
                "[...document.querySelectorAll('.plot img')].filter(i => i.currentSrc.includes('.narrow.')).length"
            )
            assert browser.evaluate(dark_plots) == (4 if scheme == "dark" else 0)
            assert browser.evaluate(narrow_plots) == (4 if width < 480 else 0)
            picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
            assert picture.width == width and 2000 < picture.height < 16000
            expected = LIGHT if scheme == "light" else DARK
            assert _corner(picture) == expected.page
            picture.save(tmp_path / f"{scheme}-{width}.png")
            asked = {
                e["params"]["request"]["url"] for e in browser.events if e.get("method") == "Network.requestWillBeSent"
            }
            assert all(url.startswith((origin, "data:")) for url in asked), asked
            bad = ("Network.loadingFailed", "Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
            assert not [event for event in browser.events if event.get("method") in bad]
        browser("Page.printToPDF")
    finally:
        browser.close()
        server.shutdown()
    assert len(served) > 100 and {code for _, code in served} <= {200, 304}


def test_nothing_is_cut_on_a_narrow_page(tmp_path):
    picture = _image(tmp_path / "a.png", 32)
    cells = [page.Cell(label="row"), page.Cell([picture, picture]), page.Cell([picture])]
    grid = page.ImageGrid([cells], headers=["prompt", "one", "two"])
    table = page.Table(["kid_std/a@1", "b", "c", "d", "e"], [[1, 2, 3, 4, 5]])
    text = page.write_report(tmp_path / "report", "t", "", [page.Section("s", "", [grid, table])]).read_text()
    assert "--columns:2;--each:2;--head:var(--side)" in text and "aspect-ratio:128/128" in text
    assert '<th scope="col" class="empty"><span>prompt</span></th>' in text, "it goes where a row's heading goes"
    assert "kid_<wbr>std/<wbr>a@<wbr>1</th>" in text and '<td data-header="kid_std/a@1"' in text
    assert 'class="data wide"' in text
