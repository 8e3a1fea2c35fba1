"""Conditioners: drop all is null, merging by slot, addressed drops, a text encoding that depends on its text alone."""

import pytest
import torch
from torch import nn

from ldm.conditioners.base import Conditioner, Conditioners, check_network
from ldm.conditioners.embeddings import Embeddings
from ldm.conditioners.image import LowResolution, MaskedImage, SemanticMap
from ldm.conditioners.label import Label
from ldm.conditioners.text import TextEncoder, TextTokens, TextVector, text_tokens
from ldm.conditioners.transformer import CaptionTransformer, LayoutTransformer
from ldm.networks.unet import UNet

WORDS = ["a", "red", "blue", "heart", "cat", "dog", "on", "the", "moon"]
BATCH = {
    "caption": ["a red heart", "the cat on the moon", "a dog"],
    "label": torch.tensor([0, 2, 1]),
    "low_resolution": torch.rand(3, 3, 4, 4),
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
            "low": LowResolution(factor=2),
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
    other = {"low_resolution": torch.rand(3, 3, 4, 4)}
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


def test_conditions_that_drop_together_are_given_together(encoder):
    both = Conditioners({"text": TextTokens(encoder), "pooled": TextVector(encoder), "label": Label(3, width=8)})
    assert both.names == ("text", "label")
    drop = both.drop_all_but(["text"], 2)
    assert {name: value.tolist() for name, value in drop.items()} == {
        "text": [False] * 2, "pooled": [False] * 2, "label": [True] * 2,
    }  # fmt: skip


def test_a_negative_is_the_null_of_the_conditions_that_read_it(conditioners):
    negative = {"caption": ["a moon"] * 3}
    drop = conditioners.drop_all_but(["low"], 3)
    cond = conditioners(BATCH, drop=drop, negative=negative)
    expected = conditioners({**BATCH, **negative}, drop=conditioners.drop_all_but(["low", "text"], 3))
    assert all(torch.equal(cond[key], expected[key]) for key in expected)
    kept = conditioners.drop_none(3)
    assert torch.equal(
        conditioners(BATCH, drop=kept, negative=negative)["tokens"], conditioners(BATCH, drop=kept)["tokens"]
    )


def test_every_conditioner_says_which_field_it_reads():
    assert all(isinstance(kind.key, str) for kind in Conditioner.__subclasses__())


def test_a_condition_of_two_fields_needs_both():
    holes = Conditioners({"holes": MaskedImage(Encoder(), in_channels=2)})
    assert holes.missing({}) == holes.missing({"mask": 1}) == {"holes": "image"}
    assert holes.missing({"image": 1}) == {"holes": "mask"} and not holes.missing({"image": 1, "mask": 1})


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
    with pytest.raises(ValueError, match="low_resolution needs 'low_resolution'"):
        conditioners.parts["low"]({"image": torch.zeros(1, 3, 8, 8)}, drop)


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


# Images, layouts, transformers


class Encoder:
    """A first stage's encoding, f = 4: averages, two channels."""

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(image, 4)[:, :2]


KEEP = torch.zeros(2, dtype=torch.bool)


def test_a_masked_image_hides_what_is_in_the_hole_and_says_where_it_is():
    conditioner = MaskedImage(Encoder(), in_channels=2)
    image, other = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 16, 16)
    mask[:, :, 4:12] = 1
    concat = conditioner({"image": image, "mask": mask}, KEEP)["concat"]
    assert concat.shape == (2, 3, 4, 4) == (2, conditioner.width, 4, 4)
    assert torch.equal(concat[0, 2, :, 0], torch.tensor([-1.0, 1, 1, -1]))
    filled = conditioner({"image": image.where(mask < 1, other), "mask": mask}, KEEP)["concat"]
    assert torch.equal(filled, concat) and torch.equal(concat[:, :2, 1:3], torch.full((2, 2, 2, 4), -1.0))
    assert torch.equal(concat[:, :2, 0], Encoder()(image)[:, :, 0])


def test_a_semantic_map_mixes_the_shares_of_its_classes():
    conditioner = SemanticMap(num_classes=3, channels=2, factor=4)
    classes = torch.zeros(1, 8, 8, dtype=torch.int64)
    classes[:, :, 4:] = 2
    concat = conditioner({"segmentation": classes}, KEEP[:1])["concat"]
    weight = conditioner.channel_mapper.weight[:, :, 0, 0]  # [channels, classes]
    torch.testing.assert_close(concat[0, :, 0, 0], weight[:, 0])
    torch.testing.assert_close(concat[0, :, 1, 1], weight[:, 2])
    with pytest.raises(ValueError, match="num_classes=3"):
        conditioner({"segmentation": classes + 1}, KEEP[:1])
    with pytest.raises(ValueError, match="power of 2"):
        SemanticMap(num_classes=3, factor=3)


def test_layouts_and_embeddings_have_their_nulls_and_their_sizes():
    layout = LayoutTransformer(width=8, depth=1, vocabulary=50, num_tokens=5)
    ids = torch.randint(0, 49, (2, 5), generator=torch.Generator().manual_seed(0))
    tokens = layout({"layout": ids}, torch.tensor([False, True]))["tokens"]
    assert tokens.shape == (2, 5, 8)
    torch.testing.assert_close(tokens[1:], layout({"layout": torch.full((1, 5), 49)}, KEEP[:1])["tokens"])
    assert torch.equal(layout({}, ~KEEP)["tokens"][0], layout({}, ~KEEP)["tokens"][1])
    for wrong in (ids[:, :4], ids + 40):
        with pytest.raises(ValueError, match="layout_transformer"):
            layout({"layout": wrong}, KEEP)

    embeddings = Embeddings(width=4, num_tokens=3)
    given = torch.rand(2, 3, 4)
    tokens = embeddings({"embeddings": given}, torch.tensor([False, True]))["tokens"]
    assert torch.equal(tokens[0], given[0]) and not tokens[1].any()
    assert torch.equal(embeddings({}, ~KEEP)["tokens"], torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match=r"embeddings\.width=4"):
        embeddings({"embeddings": given[..., :2]}, KEEP)


def test_a_caption_transformer_is_trained_and_its_logits_are_not(tmp_path):
    conditioner = CaptionTransformer(width=8, depth=1, max_tokens=9)
    tokens = conditioner({"caption": ["a red heart", "x"]}, torch.tensor([False, True]))["tokens"]
    assert tokens.shape == (2, 9, 8)
    torch.testing.assert_close(tokens[1], conditioner({"caption": [""]}, KEEP[:1])["tokens"][0])
    tokens.sum().backward()
    without = {name for name, parameter in conditioner.named_parameters() if parameter.grad is None}
    assert without == {"transformer.to_logits.weight", "transformer.to_logits.bias"}
    small = CaptionTransformer(width=8, depth=1, vocabulary=10)
    with pytest.raises(ValueError, match=r"caption_transformer\.vocabulary=10"):
        small({"caption": ["a"]}, KEEP[:1])
