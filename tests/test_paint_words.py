"""Paint-with-words as it is asked for: phrases in every tokenizer, regions of tokens, the command line, refusals."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from toys import clip_folder, clip_image_folder, t5_folder, text_folder
from untrained import untrained_run

import sample
from ldm import load
from ldm.conditioners.base import Conditioners
from ldm.conditioners.clip import ClipText
from ldm.conditioners.label import Label
from ldm.conditioners.paint import Paint, check_painted
from ldm.conditioners.spans import NOTHING, aligned, occurrences, spans_of
from ldm.conditioners.t5 import t5_tokens
from ldm.conditioners.text import frozen_text
from ldm.conditioners.transformer import CaptionTransformer
from ldm.config import overriding
from ldm.diffusion.denoiser import Denoiser
from ldm.ensemble import write_manifest
from ldm.networks.bias import largest_of_batch, largest_of_head, largest_of_sample, spread_of_sample
from ldm.networks.huggingface import load_tokenizer
from ldm.phrases import read_phrases

PROMPT = "A red heart on a key, a red  Heart's key and a monkey"
HEARTS, KEYS = [(2, 11), (24, 34)], [(17, 20), (37, 40)]
PHRASES = 'phrases={"red heart": "#ff0000", "key": "#00ff00"}'
WORDS = ["conditioner=[text]", "network.attention_factors=[1]"]

# Where phrases are


@pytest.mark.parametrize(
    ("phrase", "text", "expected"),
    [
        ("red heart", PROMPT, HEARTS),
        ("key", PROMPT, KEYS),
        (" KEY ", PROMPT, KEYS),
        ("keys", PROMPT, []),
        ("heart", "hearts, sweetheart", []),
        ("a.c", "abc a.c", [(4, 7)]),
        ("7", "17 7 a7", [(3, 4)]),
        ("心", "红心和钥匙", [(1, 2)]),
        ("heart", "", []),
    ],
)
def test_every_occurrence_of_a_phrase_is_found_and_no_part_of_a_word(phrase, text, expected):
    assert occurrences(phrase, text) == expected


def readers() -> dict:
    """A conditioner of each kind of tokenizer: WordPiece frozen and trained, T5's, CLIP's BPE."""
    return {
        "text": frozen_text(path=str(text_folder()), max_tokens=24),
        "t5": t5_tokens(str(t5_folder()), max_tokens=40, dtype="fp32"),
        "clip_text": ClipText(str(clip_folder())),
        "caption_transformer": CaptionTransformer(8, 1, str(text_folder()), max_tokens=30),
    }


def test_phrases_are_found_in_the_tokens_of_every_tokenizer():
    for name, reader in readers().items():
        spans = reader.spans(PROMPT)
        assert len(spans.tokens) == reader.num_tokens and spans.read == len(PROMPT), name
        tokenizer = reader.tokenizer if name == "caption_transformer" else reader.frozen.encoder.module.tokenizer
        ids = tokenizer(PROMPT, padding="max_length", max_length=reader.num_tokens).input_ids
        assert [span == NOTHING for span in spans.tokens].count(False) > 14
        for found, word in ((HEARTS, "heart"), (KEYS, "key")):
            chosen = spans.meeting(found)
            assert {place for at in found for place in spans.meeting([at])} == set(chosen)
            said = tokenizer.decode([ids[place] for place in chosen]).lower()
            assert name == "t5" or (said.count(word) == 2 and "mon" not in said and "on" not in said.split()), said
        assert not set(spans.meeting(HEARTS)) & set(spans.meeting(KEYS)), name


def test_a_tokenizer_that_tells_no_offsets_is_followed_letter_by_letter():
    fast = load_tokenizer(text_folder(), "k")
    slow = SimpleNamespace(
        is_fast=False, all_special_ids=fast.all_special_ids, unk_token_id=fast.unk_token_id,
        convert_ids_to_tokens=fast.convert_ids_to_tokens, __call__=None,
    )  # fmt: skip
    slow = type("Slow", (), {**vars(slow), "__call__": staticmethod(fast)})()
    for length in (24, 9):
        assert spans_of(slow, PROMPT, length) == spans_of(fast, PROMPT, length)
    assert aligned("Ein Käse!", ["▁ein", None, "▁K", "??", "!"]) == [(0, 3), NOTHING, (4, 5), (5, 8), (8, 9)]


def test_regions_are_for_the_tokens_of_each_encoder_and_for_no_other():
    torch.manual_seed(0)
    parts = {"a": frozen_text(path=str(text_folder()), max_tokens=9), "label": Label(3, width=8, slot="tokens"),
             "b": t5_tokens(str(t5_folder()), max_tokens=7, dtype="fp32")}  # fmt: skip
    both = Conditioners(parts)
    region = torch.rand(3, 2)
    batch = {"caption": ["a red heart", "heart, red"], "label": torch.tensor([0, 1]),
             "paint": Paint({"heart": region, "red": -2 * region})}  # fmt: skip
    given = both(batch, drop=both.drop_none(2))
    bias, none = given["tokens_bias"], torch.zeros(3, 2)
    assert bias.shape == (2, 9 + 1 + 7, 3, 2)
    assert torch.equal(bias[0, 1:5], torch.stack([none, -2 * region, region, none]))  # [CLS] a red heart [SEP]
    assert torch.equal(bias[1, 1:5], torch.stack([region, none, -2 * region, none]))
    assert not bias[:, 9].any() and torch.equal(bias[0, 10:14], torch.stack([none, -2 * region, region, none]))
    assert "tokens_bias" not in both(batch, drop=both.drop_all(2)), "the reference of guidance is never painted"
    text_alone = both(batch, drop=both.drop_all_but(["a"], 2))["tokens_bias"]
    assert text_alone[:, :9].any() and not text_alone[:, 9:].any()


def test_a_phrase_that_an_encoder_does_not_read_is_named_with_it():
    parts, paint = readers(), Paint({"key": torch.ones(2, 2)})
    assert check_painted(parts, {"caption": [PROMPT], "paint": paint})
    short = {**parts, "text": frozen_text(path=str(text_folder()), max_tokens=6)}
    with pytest.raises(
        ValueError, match=r"conditioner\.text does not read 'key': its 6 tokens end after 'A red heart on'"
    ):
        check_painted(short, {"caption": [PROMPT], "paint": paint})
    with pytest.raises(ValueError, match="'key' is not in the prompt, 'a monkey'"):
        check_painted(parts, {"caption": [PROMPT, "a monkey"], "paint": paint})
    assert not check_painted({"label": Label(3, width=8, slot="tokens")}, {"label": torch.tensor([0]), "paint": paint})
    vector = ClipText(str(clip_image_folder()), slots=["vector"])
    assert not check_painted({"clip_text": vector}, {"caption": [PROMPT], "paint": paint}), "no token is looked at"


# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs in pixel space at 8 px: of text, two experts, of text beside a hole, of labels, of the mean of a text alone;
    a sheet of two colours.
    """
    folder = tmp_path_factory.mktemp("paint")
    untrained_run(folder / "text", *WORDS, "network.channels=8")
    members = [untrained_run(folder / f"e{n}", *WORDS, f"expert.node=[1,{n}]", seed=n) for n in range(2)]
    write_manifest(folder / "experts.yaml", members)
    untrained_run(folder / "holes", "conditioner=[text,masked_image]", "derived=[holes]", WORDS[1])
    untrained_run(folder / "label")
    untrained_run(folder / "vector", "conditioner=[text]", "conditioner.text.slots=[vector]")
    sheet = np.full((16, 16, 3), 255, np.uint8)
    sheet[:8, :8], sheet[8:, 6:] = (255, 0, 0), (0, 255, 0)
    Image.fromarray(sheet).save(folder / "sheet.png")
    Image.fromarray(sheet[:, :8]).save(folder / "tall.png")
    Image.fromarray(np.pad(np.full((4, 4), 255, np.uint8), 2)).save(folder / "hole.png")
    return folder


def draw(folder: Path, out: str, *words: str, model: str = "text", paint: bool = True) -> np.ndarray:
    """The images [N, H, W, 3], painted or not."""
    given = [f"paint={folder}/sheet.png", PHRASES] if paint else []
    prompt = "prompt=a red heart on a key"
    more = ["num_images=2", "num_steps=2", "guidance.scale=2", f"out={folder / out}"]
    assert sample.main(overriding([f"model={folder / model}", prompt, *given, *more, *words])) == 0
    paths = sorted(path for path in (folder / out).glob("a-red*.png"))
    return np.stack([np.asarray(Image.open(path)).astype(int) for path in paths])


@pytest.fixture
def seen(monkeypatch) -> list:
    """(x, sigma, conditions) of each call of a network."""
    found, forward = [], Denoiser.forward
    monkeypatch.setattr(Denoiser, "forward", lambda *given: found.append(given[1:]) or forward(*given))
    return found


def test_regions_reach_the_conditional_branch_by_the_published_weight(folder, seen):
    draw(folder, "weight", "batch_size=1", "painting.scale=0.3")
    painted = [(sigma, cond) for _, sigma, cond in seen if "tokens_bias" in cond]
    assert 0 < len(painted) == len(seen) / 2, "each beside a reference that is not painted"
    for sigma, cond in painted:
        values = cond["tokens_bias"].values / (0.3 * sigma.log1p())
        assert torch.allclose(values[0, [2, 3], :3, :3], torch.ones(2, 3, 3)), "[CLS] a red heart on a key [SEP]"
        assert not values[0, [0, 1, 4, 5, 7]].any() and not values[0, [2, 3], 5:].any()
        assert values[0, 6, 5:, 4:].min() > 0.99 and not values[0, 6, :3].any()


def test_scale_0_is_the_plain_sample_and_variants_are_in_other_units(folder, seen):
    plain = draw(folder, "plain", paint=False)
    assert np.array_equal(draw(folder, "zero", "painting.scale=0"), plain)
    own = draw(folder, "own", "painting.scale=30")
    assert not np.array_equal(own, plain)
    assert np.abs(draw(folder, "one by one", "painting.scale=30", "batch_size=1") - own).max() <= 1
    units = {"per_head": largest_of_head, "whole_tensor": largest_of_batch, "std": spread_of_sample}
    for name, unit in {"per_sample": largest_of_sample, **units}.items():
        seen.clear()
        draw(folder, name, f"painting={name}", "num_images=1", "num_steps=1")
        assert {cond["tokens_bias"].unit for _, _, cond in seen if "tokens_bias" in cond} == {unit}
    assert (folder / "own" / "conditions.png").exists() and not (folder / "plain" / "conditions.png").exists()


def test_it_goes_with_sizes_windows_experts_holes_and_canvases(folder):
    image, hole, strong = f"{folder}/sheet.png", f"{folder}/hole.png", "painting.scale=30"
    for name, words, model in (
        ("windows", ["image_size=16", "tiling=blended", "tiling.size=8"], "text"),
        ("experts", [], "experts.yaml"),
        ("holes", [f"image={image}", f"mask={hole}"], "holes"),
        ("canvas", [f"start={image}", "canvas=[0,4,4,0]", "tiling=null"], "text"),
    ):
        words = [*words, "num_images=1"]
        painted = draw(folder, name, strong, *words, model=model)
        assert not np.array_equal(painted, draw(folder, f"{name} plain", *words, model=model, paint=False)), name
    assert painted.shape[1:3] == (20, 20) and (painted[:, :16, :16] == np.asarray(Image.open(image))).all()


def test_strength_blur_and_names_of_colours(folder, seen):
    phrases = {"red heart": {"colour": "red", "strength": -0.5}, "key": {"colour": "lime", "blur": 1}}
    (folder / "phrases.json").write_text(json.dumps(phrases, indent="\t"), "utf-8-sig")
    draw(folder, "strength", f"paint={folder}/sheet.png", f"phrases={folder}/phrases.json", paint=False)
    bias = next(cond["tokens_bias"].values for _, _, cond in seen if "tokens_bias" in cond)
    assert bias[0, 2].min() < 0 <= bias[0, 6].min() and len(bias[0, 6].unique()) > 6, "kept out; with a soft edge"


def test_a_phrase_is_kept_out_of_what_is_outside_of_its_region(folder, seen):
    given = '{"red heart": {"colour": "red", "strength": 2, "outside": -0.5}, "key": "lime"}'
    draw(folder, "outside", f"paint={folder}/sheet.png", f"phrases={given}", paint=False)
    heart, key = (
        next(cond["tokens_bias"].values for _, _, cond in seen if "tokens_bias" in cond)[0, n] for n in (2, 6)
    )
    assert (heart.amax() / heart.amin()).item() == pytest.approx(-4), "2 inside, -0.5 elsewhere"
    assert (heart[key > key.max() / 2] < 0).all() and key.min() == 0
    outlined = np.asarray(Image.open(folder / "outside" / "conditions.png").convert("RGB")).astype(int)
    assert 0 < (outlined == (255, 0, 0)).all(-1).mean() < 0.2, "the outline is that of the colour on the sheet"


def test_a_painted_picture_is_made_anew_and_python_gives_the_same(folder, tmp_path, capsys):
    (tmp_path / "phrases.json").write_text(PHRASES.partition("=")[2])
    words = [f"paint={folder}/sheet.png", f"phrases={tmp_path}/phrases.json", "painting=std", "painting.scale=5"]
    images = draw(folder, "anew", *words, paint=False)
    (tmp_path / "phrases.json").unlink()
    picture = folder / "anew" / "a-red-heart-on-a-key_0001.png"
    assert sample.main([f"again={picture}", f"out={tmp_path}"]) == 0 and "bit for bit" in capsys.readouterr().out
    recipe = json.loads(Image.open(picture).text["recipe"])
    assert recipe["painting"] == {"std": {"scale": 5, "squared_sigma": True}} and recipe["files"]["paint"]["sha256"]
    found = load(folder / "text", device="cpu").sample(
        "a red heart on a key", paint=Image.open(folder / "sheet.png"), phrases=recipe["options"]["phrases"],
        painting={"std": {"scale": 5}}, num_images=2, num_steps=2, guidance=2,
    )  # fmt: skip
    assert np.array_equal(np.stack([np.asarray(image) for image in found]), images)


SHEET = "paint=sheet.png"


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ([SHEET, 'phrases={"blue heart": "red"}'], "'blue heart' is not in the prompt, 'a red heart on a key'"),
        ([SHEET, 'phrases={"hear": "red"}'], "'hear' is not in the prompt"),
        (
            [SHEET, 'phrases={"key": "#00fe00"}'],
            "'key' is #00fe00, and paint=sheet.png has no such pixel, the nearest is",
        ),
        ([SHEET, "phrases={red heart:#ff0000}"], r"is no colour.*; write phrases='\{.*in single quotes"),
        ([SHEET, "phrases={key: [}"], "cannot be read as colours of phrases"),
        ([SHEET, 'phrases={"key": "red", "key": "#00ff00"}'], "phrases: 'key' is there twice"),
        ([SHEET, 'phrases={key: red, key: "#00ff00"}'], "phrases: 'key' is there twice"),
        ([SHEET, "phrases={}"], "not a colour for each of some phrases"),
        ([SHEET, "phrases=no.json"], "phrases=no.json: no such file"),
        ([SHEET, 'phrases={"key": {"colour": "lime", "streng": 1}}'], "no such key streng; there are colour, strength"),
        ([SHEET, 'phrases={"key": {"colour": "lime", "outside": -101}}'], "outside=-101: must be -100 to 100"),
        ([SHEET, 'phrases={"key": {"colour": "lime", "strength": .nan}}'], "strength=nan: must be -100 to 100"),
        ([SHEET, 'phrases={"key": {"colour": "lime", "blur": -1}}'], "blur=-1: must be 0 px or more"),
        ([SHEET], "needs phrases="),
        ([PHRASES], "phrases: says how the picture paint=FILE is meant"),
        (["painting.scale=1"], "painting: says how the picture paint=FILE is meant"),
        ([SHEET, PHRASES, "painting.scale=-1"], "painting.scale=-1: must be a number from 0 on"),
        ([SHEET, PHRASES, "painting=null"], "painting=null"),
        (["paint=no.png", PHRASES], "paint=no.png: no such file"),
        (["paint=tall.png", PHRASES], "paint=tall.png: has 8 x 16 px, and the images will have 8 x 8"),
        ([SHEET, 'phrases={"red heart":"red"', 'phrases="key":"lime"}'], "phrases is given 2 times; the shell expands"),
        (
            [SHEET, PHRASES, "model=vector"],
            "vector has no cross-attention to words of a prompt; it is conditioned on text",
        ),
    ],
)
def test_what_is_painted_wrongly_is_one_line_before_anything_is_drawn(folder, monkeypatch, words, problem):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Denoiser, "forward", None)
    with pytest.raises((ValueError, OSError), match=problem) as caught:
        given = ["model=text", "prompt=a red heart on a key", "out=never", "guidance.scale=1", *words]
        sample.main(overriding(given) if "model=vector" in words else given)
    assert "\n" not in str(caught.value) and not Path("never").exists()


def test_a_model_of_labels_says_that_it_reads_no_words(folder):
    with pytest.raises(
        ValueError, match="label has no cross-attention to words of a prompt; it is conditioned on label"
    ):
        sample.main([f"model={folder}/label", "label=1", f"paint={folder}/sheet.png", PHRASES, f"out={folder}/never"])


def test_phrases_in_words_are_those_of_a_mapping():
    own = {"red heart": "#ff0000", "key": {"colour": "#0f0", "strength": 2}}
    bare = '{red heart: "#ff0000", key: {colour: "#0f0", strength: 2}}'
    assert read_phrases(json.dumps(own)) == read_phrases(own) == read_phrases(bare)
