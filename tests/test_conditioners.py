"""Conditioners: drop all is null, merging by slot, addressed drops, a text encoding that depends on its text alone."""

import pytest
import torch
from torch import nn

from ldm.conditioners.base import Conditioner, Conditioners, check_network
from ldm.conditioners.caption_encoder import CaptionEncoder
from ldm.conditioners.embeddings import Embeddings
from ldm.conditioners.image import LowResolution, MaskedImage, SemanticMap
from ldm.conditioners.label import Label
from ldm.conditioners.null_token import NullToken
from ldm.conditioners.text import FrozenText, TextEncoder, frozen_text
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


def text_of(encoder: TextEncoder, memo_captions: int = 0, zero_null: bool = False, **given) -> FrozenText:
    return FrozenText(CaptionEncoder(encoder, memo_captions, zero_null=zero_null), **given)


@pytest.fixture
def conditioners(encoder):
    torch.manual_seed(0)
    return Conditioners(
        {
            "text": text_of(encoder, drop_prob=0.5),
            "label": Label(3, width=8, slot="tokens"),
            "class_vector": Label(3, width=5, slot="vector"),
            "low": LowResolution(2, factor=2, drop_prob=0.2),
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
    assert abs(drop["low"].float().mean() - 0.2) < 0.03
    some = conditioners.draw_drop(0, numbers[100:200:7])
    assert all(torch.equal(drop[name][100:200:7], some[name]) for name in drop)
    assert not torch.equal(conditioners.draw_drop(1, numbers)["text"], drop["text"])


def test_one_condition_fills_several_slots_by_one_draw(encoder):
    text = text_of(encoder, slots=["tokens", "vector"], drop_prob=0.5)
    both = Conditioners({"text": text, "label": Label(3, width=5, slot="vector")})
    assert both.names == ("text", "label")
    assert both.widths() == {"tokens_width": 8, "vector_width": 8 + 5, "concat_channels": 0}
    kept, null = (both(BATCH, drop=drop) for drop in (both.drop_none(3), both.drop_all(3)))
    mixed = both(BATCH, drop={"text": torch.tensor([True, False, False]), "label": torch.zeros(3, dtype=torch.bool)})
    for key in ("tokens", "tokens_mask"):
        assert torch.equal(mixed[key][0], null[key][0]) and torch.equal(mixed[key][1:], kept[key][1:])
    assert torch.allclose(mixed["vector"][0, :8], null["vector"][0, :8], atol=1e-6)
    assert torch.allclose(mixed["vector"][1:], kept["vector"][1:], atol=1e-6)
    assert torch.equal(mixed["vector"][0, 8:], kept["vector"][0, 8:])
    assert torch.allclose(kept["vector"][:, :8].var(1, correction=0), torch.ones(3), atol=1e-3)


def test_what_no_training_left_out_is_never_dropped(encoder):
    fixed = {"low": LowResolution(2, factor=2), "fixed": Label(3, width=8, drop_prob=0)}
    conditioners = Conditioners({"text": text_of(encoder), **fixed})
    assert conditioners.names == ("text",) == conditioners.guidable()
    for drop in (conditioners.drop_all(3), conditioners.draw_drop(0, torch.arange(3))):
        assert not drop["low"].any() and not drop["fixed"].any()
    reference, full = (conditioners(BATCH, drop=drop) for drop in (conditioners.drop_all(3), conditioners.drop_none(3)))
    assert torch.equal(reference["concat"], full["concat"])
    assert torch.equal(reference["tokens"][:, -1], full["tokens"][:, -1])
    assert conditioners.missing({"label": BATCH["label"], "low_resolution": 0}) == {}
    assert conditioners.missing({"caption": BATCH["caption"]}) == {"low": "low_resolution", "fixed": "label"}


def test_a_sample_may_use_some_conditions_only(conditioners):
    assert list(conditioners.used(["label"])) == ["label"] == list(conditioners.guidable(use=["label"]))
    assert conditioners.missing({"label": 0}, use=["label"]) == {}
    assert conditioners.missing({"caption": 0}, use=["label"]) == {"label": "label"}, "no other stands for it"
    assert conditioners.absent({"label": 0}, use=["label", "text"]) == {"text"}
    with pytest.raises(ValueError, match="use_conditions: no condition t5; the conditions of this model: text, label"):
        conditioners.used(["t5"])
    fixed = Conditioners({"low": LowResolution(2, factor=2), "label": Label(3)})
    assert list(fixed.used([])) == ["low"] and fixed.guidable(use=[]) == ()


def test_a_condition_may_read_nothing():
    conditioners = Conditioners({"null_token": NullToken(width=8, num_tokens=2), "label": Label(3, width=8)})
    assert conditioners.fields == {"label"} and conditioners.names == ("label",)
    assert conditioners.missing({}) == {"label": "label"}, "a token that is always there gives no condition"
    assert conditioners.missing({"label": 0}) == {}
    drop = conditioners.drop_all(3)
    cond = conditioners({}, drop=drop)
    assert cond["tokens"].shape == (3, 3, 8) and cond["tokens_mask"].all()
    cond["tokens"].sum().backward()
    assert conditioners.parts["null_token"].tokens.grad.eq(3).all()


def test_tokens_of_other_encoders_are_projected_to_one_width(encoder):
    caption = CaptionEncoder(encoder, 0, zero_null=True)
    wide = FrozenText(caption, slots=["tokens", "vector"], width=12)
    conditioners = Conditioners({"wide": wide, "embeddings": Embeddings(12, 3, embedding_width=4)})
    assert conditioners.widths() == {"tokens_width": 12, "vector_width": 8, "concat_channels": 0}
    given = {**BATCH, "embeddings": torch.rand(3, 3, 4)}
    cond = conditioners(given, drop=conditioners.drop_none(3))
    assert cond["tokens"].shape == (3, 6 + 3, 12)
    tokens, mask = caption(BATCH, torch.zeros(3, dtype=torch.bool)).values()
    torch.testing.assert_close(cond["tokens"][:, :6], tokens @ wide.project.weight.T)
    assert not cond["tokens"][:, :6][~mask].any(), "zeros stay zeros"
    cond["tokens"].sum().backward()
    for drop in (conditioners.drop_all(3), conditioners.drop_none(3)):  # a rank that drops all trains the same weights
        conditioners.zero_grad()
        conditioners(given, drop=drop)["tokens"].sum().backward()
        assert all(parameter.grad is not None for parameter in conditioners.parameters())
    assert {name for name, _ in conditioners.named_parameters()} == {
        "parts.wide.project.weight", "parts.embeddings.project.weight",
    }  # fmt: skip


def test_a_text_may_have_zeros_for_its_null(encoder, monkeypatch):
    text = text_of(encoder, zero_null=True, slots=["tokens", "vector"])
    mixed, kept = (text(BATCH, torch.tensor(drop)) for drop in ([False, True, False], [False] * 3))
    assert not mixed["tokens"][1].any() and mixed["tokens_mask"][1].all() and not mixed["vector"][1].any()
    assert all(torch.equal(mixed[key][[0, 2]], kept[key][[0, 2]]) for key in kept)
    monkeypatch.setattr(encoder.model, "forward", lambda **given: pytest.fail("asked for a null that is zero"))
    assert not text({}, torch.ones(2, dtype=torch.bool))["tokens"].any()


def test_every_condition_of_tokens_says_how_many_its_null_has(encoder):
    parts = [
        text_of(encoder), text_of(encoder, zero_null=True), Label(3, width=8),
        Embeddings(4, num_tokens=3), LayoutTransformer(8, 1, vocabulary=50, num_tokens=5), NullToken(8, num_tokens=2),
    ]  # fmt: skip
    for part in parts:
        assert part({}, torch.ones(2, dtype=torch.bool))["tokens"].shape == (2, part.num_tokens, part.widths["tokens"])
    assert Label(3, slot="vector").num_tokens == 0


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


def test_a_negative_is_not_for_conditions_that_are_not_used(encoder):
    both = Conditioners({name: text_of(encoder) for name in ("one", "other")})
    negative, drop = {"caption": ["a moon"] * 3}, both.drop_all(3)
    led, null = (both(BATCH, drop=drop, negative=given, use=["one"])["tokens"] for given in (negative, None))
    assert torch.equal(led[:, 6:], null[:, 6:]) and not torch.equal(led[:, :6], null[:, :6])


def test_a_bias_is_for_the_tokens_of_what_is_given(conditioners):
    text = torch.rand(3, 6, 4, 4, generator=torch.Generator().manual_seed(0))
    batch, none = {**BATCH, "tokens_bias": {"text": text}}, conditioners.drop_none(3)
    plain = conditioners(BATCH, drop=none)
    given = conditioners(batch, drop=none)
    assert torch.equal(given["tokens_bias"][:, :6], text) and not given["tokens_bias"][:, 6:].any(), "label has none"
    assert given["tokens_bias"].shape == (3, given["tokens"].shape[1], 4, 4)
    assert all(torch.equal(given[key], value) for key, value in plain.items())
    zero = conditioners({**BATCH, "tokens_bias": {"text": 0 * text}}, drop=none)
    assert zero.keys() == plain.keys(), "the network computes what it does without"
    for dropped in (conditioners.drop_all(3), conditioners.drop_all_but(["label"], 3)):
        assert "tokens_bias" not in conditioners(batch, drop=dropped)
        assert "tokens_bias" not in conditioners(batch, drop=dropped, negative={"caption": ["a cat"] * 3})
    some = {**none, "text": torch.tensor([False, True, False])}
    expected = text * torch.tensor([1.0, 0, 1]).view(3, 1, 1, 1)
    assert torch.equal(conditioners(batch, drop=some)["tokens_bias"][:, :6], expected)
    with pytest.raises(ValueError, match=r"tokens_bias of text: of \[3, 5, 4, 4\], must be \[3, 6, h, w\]"):
        conditioners({**BATCH, "tokens_bias": {"text": text[:, 1:]}}, drop=none)


def test_a_conditioner_may_give_a_bias_of_its_own():
    class Pointing(NullToken):
        def forward(self, batch, drop):
            given = super().forward(batch, drop)
            return {**given, "tokens_bias": torch.ones(*given["tokens"].shape[:2], 2, 2)}

    pointing = Conditioners({"a": NullToken(width=4), "b": Pointing(width=4, num_tokens=3)})
    cond = pointing({"tokens_bias": {"b": torch.ones(2, 3, 2, 2)}}, drop=pointing.drop_none(2))
    assert torch.equal(cond["tokens_bias"], torch.tensor([0.0, 2, 2, 2]).view(1, 4, 1, 1).expand(2, 4, 2, 2))


def test_every_conditioner_says_which_field_it_reads():
    assert all(isinstance(kind.key, str) for kind in Conditioner.__subclasses__() if kind is not NullToken)


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
    fresh = text_of(encoder, 2)  # smaller than the captions there are
    first = fresh(BATCH, drop)["tokens"]
    again = fresh({"caption": BATCH["caption"][::-1]}, drop)["tokens"].flip(0)
    alone = torch.cat([text_of(encoder, 9)({"caption": [c]}, drop[:1])["tokens"] for c in BATCH["caption"]])
    assert torch.equal(first, again) and torch.equal(first, alone)
    assert torch.allclose(first, text_of(encoder)(BATCH, drop)["tokens"], atol=1e-6)


def test_the_memo_saves_encodings(encoder, monkeypatch):
    text, calls = text_of(encoder, 10), []
    forward = encoder.model.forward
    monkeypatch.setattr(encoder.model, "forward", lambda **given: calls.append(1) or forward(**given))
    for _ in range(3):
        text({"caption": ["a cat", "a dog", "a cat"]}, torch.zeros(3, dtype=torch.bool))
    assert len(calls) == 2


def test_text_encodings_are_fp32_also_under_autocast(encoder):
    drop = torch.zeros(3, dtype=torch.bool)
    plain = text_of(encoder)(BATCH, drop)["tokens"]
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(text_of(encoder)(BATCH, drop)["tokens"], plain)


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
    loaded = frozen_text(path=str(tmp_path), max_tokens=6, drop_prob=0.0)
    drop = torch.zeros(3, dtype=torch.bool)
    assert torch.allclose(loaded(BATCH, drop)["tokens"], text_of(encoder)(BATCH, drop)["tokens"], atol=1e-6)
    with pytest.raises(ValueError, match="no encoder there"):
        frozen_text(path=str(tmp_path / "nothing"))


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
    with pytest.raises(ValueError, match=r"equal width; text has 8, label has 9: set conditioner\.label\.width=8"):
        Conditioners({"text": text_of(encoder), "label": Label(3, width=9)})
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
    assert concat.shape == (2, 3, 4, 4) == (2, conditioner.widths["concat"], 4, 4)
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
    with pytest.raises(ValueError, match=r"takes them 4 wide; conditioner\.embeddings\.embedding_width=2"):
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


@pytest.mark.parametrize(("latent_f", "factor"), [(4, 4), (4, 2), (8, 2), (1, 4), (2, 4)])
def test_a_low_resolution_of_any_factor_stands_beside_the_latent_pixel_by_pixel(latent_f: int, factor: int):
    low = torch.zeros(1, 3, 32 // factor, 64 // factor)
    low[:, :, 0, 0] = 1
    own = LowResolution(latent_f, factor=factor)
    made = own({"low_resolution": low}, torch.tensor([False]))["concat"]
    assert made.shape == (1, own.widths["concat"], 32 // latent_f, 64 // latent_f)
    assert own.widths["concat"] == 3 * max(1, latent_f // factor) ** 2
    corner = made[..., : max(1, factor // latent_f), : max(1, factor // latent_f)]
    assert corner.max() == made.max() > 0.5 and not made[..., -1, -1].any(), "nothing is moved"
    if latent_f >= factor:
        assert made.sum() == 3, "nor changed"
    assert not own({"low_resolution": low}, torch.tensor([True]))["concat"].any()


def test_a_low_resolution_is_made_noisy_by_a_level_that_the_network_is_told():
    own, numbers = LowResolution(1, factor=2, seed=3, max_noise_level=0.8, noise_level=0.2), torch.arange(400)
    batch, keep = {"low_resolution": torch.zeros(400, 3, 4, 4), "number": numbers}, torch.zeros(400, dtype=torch.bool)
    assert own.widths == {"concat": 3, "vector": 64} and "low_noise" in own.may_read
    drawn = own.train()(batch, keep)
    assert len(drawn["vector"].unique(dim=0)) == 400, "a level for each"
    few = own({name: value[5:9] for name, value in batch.items()}, keep[5:9])
    assert all(torch.equal(drawn[slot][5:9], few[slot]) for slot in drawn), "addressed by number"
    stds = own._noised(batch["low_resolution"], own._levels(batch, 400).float(), numbers).flatten(1).std(1)
    assert stds.min() < 0.05 and 0.85 < stds.max() < 1.2, "sin(pi l / 2), l uniform up to 0.8"
    fixed = own.eval()(batch, keep)
    assert len(fixed["vector"].unique(dim=0)) == 1
    same = own({**batch, "low_noise": torch.full((400,), 0.2)}, keep)
    assert all(torch.equal(fixed[slot], same[slot]) for slot in fixed)
    clean = own({**batch, "low_noise": torch.zeros(400)}, keep)
    assert not clean["concat"].any() and not torch.equal(clean["vector"], fixed["vector"])
    assert not any(value.any() for value in own(batch, ~keep).values()), "the null is zero"
    with pytest.raises(ValueError, match=r"low_noise=0\.9: must lie in \[0, 0\.8\]"):
        own.check({**batch, "low_noise": torch.tensor([0.9])})
    with pytest.raises(ValueError, match=r"noise_level=0\.5 and max_noise_level=0\.4"):
        LowResolution(1, max_noise_level=0.4, noise_level=0.5)


def test_a_low_resolution_beside_no_whole_number_of_latents_is_refused():
    with pytest.raises(ValueError, match=r"low_resolution\.factor=3: .* 4 times smaller .* multiple or a divisor"):
        LowResolution(4, factor=3)
