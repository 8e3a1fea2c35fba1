"""Conditioners: drop all is null, merging by slot, addressed drops, a text encoding that depends on its text alone."""

import pytest
import torch
from torch import nn

from ldm.conditioners.base import Conditioners, check_network
from ldm.conditioners.image import ImageConcat
from ldm.conditioners.label import Label
from ldm.conditioners.text import TextEncoder, TextTokens, text_tokens
from ldm.networks.unet import UNet

WORDS = ["a", "red", "blue", "heart", "cat", "dog", "on", "the", "moon"]
BATCH = {
    "caption": ["a red heart", "the cat on the moon", "a dog"],
    "label": torch.tensor([0, 2, 1]),
    "image": torch.rand(3, 3, 8, 8),
}


@pytest.fixture(scope="module")
def encoder():
    from transformers import BertConfig, BertModel, BertTokenizer

    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = BertConfig(
        vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=16,
    )  # fmt: skip
    return TextEncoder(BertModel(config), BertTokenizer(vocab={w: i for i, w in enumerate(words)}), max_tokens=6)


@pytest.fixture
def conditioners(encoder):
    torch.manual_seed(0)
    return Conditioners(
        {
            "text": TextTokens(encoder, drop_prob=0.5),
            "label": Label(3, width=8, slot="tokens"),
            "class_vector": Label(3, width=5, slot="vector"),
            "low": ImageConcat("image", 3, downscale=2),
        }
    )


def test_slots_are_merged_and_widths_declared(conditioners):
    cond = conditioners(BATCH, drop=conditioners.drop_none(3))
    assert {key: tuple(value.shape) for key, value in cond.items()} == {
        "tokens": (3, 7, 8),
        "tokens_mask": (3, 7),
        "vector": (3, 5),
        "concat": (3, 3, 4, 4),
    }
    assert conditioners.widths() == {"tokens_width": 8, "vector_width": 5, "concat_channels": 3}
    assert Conditioners({}).widths() == {"tokens_width": 0, "vector_width": 0, "concat_channels": 0}
    assert Conditioners({})(BATCH, drop={}) == {}


def test_drop_all_is_the_null_whatever_the_batch(conditioners):
    other = {"image": torch.rand(3, 3, 8, 8)}
    drop = conditioners.drop_all(3)
    null, same = conditioners(BATCH, drop=drop), conditioners(other, drop=drop)
    assert all(torch.equal(null[key], same[key]) for key in null)
    assert all(torch.equal(value[0], value[1]) for value in null.values())


def test_a_dropped_sample_gets_the_null_and_the_others_keep_their_condition(conditioners):
    drop = {name: torch.tensor([False, True, False]) for name in conditioners.drop_none(3)}
    kept, null = (conditioners(BATCH, drop=d) for d in (conditioners.drop_none(3), conditioners.drop_all(3)))
    mixed = conditioners(BATCH, drop=drop)
    for key, value in mixed.items():
        assert torch.allclose(value[1].float(), null[key][1].float(), atol=1e-6)
        assert torch.allclose(value[[0, 2]].float(), kept[key][[0, 2]].float(), atol=1e-6)


def test_drops_are_addressed_by_seed_name_and_sample_number(conditioners):
    numbers = torch.arange(4000)
    drop = conditioners.draw_drop(0, numbers)
    assert abs(drop["text"].float().mean() - 0.5) < 0.03
    assert abs(drop["label"].float().mean() - 0.1) < 0.03
    assert not drop["low"].any()
    some = conditioners.draw_drop(0, numbers[100:200:7])
    assert all(torch.equal(drop[name][100:200:7], some[name]) for name in drop)
    assert not torch.equal(conditioners.draw_drop(1, numbers)["text"], drop["text"])


def test_what_is_trained_and_saved(conditioners):
    saved = {key.removeprefix("parts.") for key in conditioners.state_dict()}
    assert saved == {"label.embedding.weight", "class_vector.embedding.weight"}
    assert {name.removeprefix("parts.") for name, _ in conditioners.named_parameters()} == saved


# Text


def test_the_mask_marks_real_tokens_and_the_rest_is_zero(encoder):
    tokens, mask = encoder(["a cat", ""])
    assert mask.tolist() == [[True] * 4 + [False] * 2, [True] * 2 + [False] * 4]  # [CLS] ... [SEP]
    assert not tokens[~mask].any() and tokens[mask].any(-1).all()
    assert not tokens.requires_grad


def test_with_a_memo_an_embedding_depends_on_its_caption_alone(encoder):
    drop = torch.zeros(3, dtype=torch.bool)
    fresh = TextTokens(encoder, memo_captions=2)  # smaller than the captions there are
    first = fresh(BATCH, drop)["tokens"]
    again = fresh({"caption": BATCH["caption"][::-1]}, drop)["tokens"].flip(0)
    alone = torch.cat(
        [TextTokens(encoder, memo_captions=9)({"caption": [c]}, drop[:1])["tokens"] for c in BATCH["caption"]]
    )
    assert torch.equal(first, again) and torch.equal(first, alone)
    assert torch.allclose(first, TextTokens(encoder)(BATCH, drop)["tokens"], atol=1e-6)


def test_the_memo_saves_encodings(encoder, monkeypatch):
    text, calls = TextTokens(encoder, memo_captions=10), []
    forward = encoder.model.forward
    monkeypatch.setattr(encoder.model, "forward", lambda **given: calls.append(1) or forward(**given))
    for _ in range(3):
        text({"caption": ["a cat", "a dog", "a cat"]}, torch.zeros(3, dtype=torch.bool))
    assert len(calls) == 2


def test_text_encodings_are_fp32_also_under_autocast(encoder):
    drop = torch.zeros(3, dtype=torch.bool)
    plain = TextTokens(encoder)(BATCH, drop)["tokens"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(TextTokens(encoder)(BATCH, drop)["tokens"], plain)


def test_long_captions_are_cut_with_a_counted_warning(encoder, caplog):
    encoder.num_cut = 0
    tokens, _ = encoder(["a red heart on the moon", "a cat"])
    assert tokens.shape == (2, 6, 8) and encoder.num_cut == 1
    assert "1 captions so far" in caplog.text and "a red heart on the moon" in caplog.text
    caplog.clear()
    encoder(["a cat"])
    assert not caplog.text


def test_a_saved_encoder_is_loaded_from_its_folder(encoder, tmp_path):
    encoder.model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    loaded = text_tokens(path=str(tmp_path), max_tokens=6, drop_prob=0.0)
    drop = torch.zeros(3, dtype=torch.bool)
    assert torch.allclose(loaded(BATCH, drop)["tokens"], TextTokens(encoder)(BATCH, drop)["tokens"], atol=1e-6)
    with pytest.raises(ValueError, match="no encoder there"):
        text_tokens(path=str(tmp_path / "nothing"))


# Errors


def test_missing_fields_and_wrong_labels_are_named(conditioners):
    drop = torch.zeros(1, dtype=torch.bool)
    text, label = conditioners.parts["text"], conditioners.parts["label"]
    with pytest.raises(ValueError, match="text needs 'caption'"):
        text({"label": BATCH["label"]}, drop)
    with pytest.raises(ValueError, match=r"num_classes=3 asks for 0\.\.2"):
        label({"label": torch.tensor([3])}, drop)
    with pytest.raises(ValueError, match="downscale=2"):
        conditioners.parts["low"]({"image": torch.zeros(1, 3, 7, 8)}, drop)


def test_impossible_conditioners_are_refused(encoder):
    with pytest.raises(ValueError, match="equal width"):
        Conditioners({"text": TextTokens(encoder), "label": Label(3, width=9)})
    with pytest.raises(ValueError, match="slot"):
        Label(3, slot="concat")
    with pytest.raises(ValueError, match="drop_prob"):
        Label(3, drop_prob=1.5)


def test_a_network_that_does_not_take_a_condition_is_refused_by_name(conditioners):
    class Plain(nn.Module):
        def forward(self, x, c_noise, *, vector=None):
            return x

    with pytest.raises(ValueError, match=r"conditioner\.text.*Plain"):
        check_network(Plain(), conditioners)
    check_network(Plain(), Conditioners({"label": Label(3, slot="vector")}))
    check_network(UNet(3, 3, 32, [1], num_heads=1), conditioners)


def test_conditions_fit_the_network_built_for_their_widths(conditioners):
    network = UNet(3, 3, 16, [1, 2], num_blocks=1, num_heads=2, norm_groups=8, **conditioners.widths())
    cond = conditioners(BATCH, drop=conditioners.drop_none(3))
    assert network(torch.zeros(3, 3, 4, 4), torch.ones(3), **cond).shape == (3, 3, 4, 4)
