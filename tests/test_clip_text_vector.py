"""CLIP's vector of a text: that of transformers, by the draw of its tokens; eDiff-I's conditions as one sequence."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toys import annotated_shard, assert_equal_runs, clip_folder, clip_image_folder, t5_folder, train
from untrained import randomise

from ldm.conditioners.base import Conditioners
from ldm.conditioners.clip import ClipText
from ldm.conditioners.clip_image import clip_image
from ldm.conditioners.null_token import NullToken
from ldm.conditioners.t5 import t5_tokens
from ldm.config import compose
from ldm.latent_cache import encode
from ldm.networks.dit import DiT

TEXTS = ["a red heart", "a key that is very, very long: " + "and so on " * 60, ""]
BATCH = {"caption": TEXTS}
KEEP = torch.zeros(3, dtype=torch.bool)


def make(**given) -> ClipText:
    return ClipText(str(clip_image_folder()), **{"slots": ["tokens", "vector"], "drop_prob": 0.2, **given})


def test_tokens_and_vector_are_those_of_transformers():
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    ids = CLIPTokenizer.from_pretrained(clip_image_folder())(
        TEXTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        expected = CLIPTextModelWithProjection.from_pretrained(clip_image_folder()).eval()(input_ids=ids)
    found = make()(BATCH, KEEP)
    assert torch.equal(found["vector"], expected.text_embeds) and found["vector"].shape == (3, 6)
    assert torch.equal(found["tokens"], expected.last_hidden_state) and found["tokens"].shape == (3, 77, 8)
    assert torch.equal(make(slots=["vector"])(BATCH, KEEP)["vector"], found["vector"])
    assert torch.equal(make(slots=["tokens"])(BATCH, KEEP)["tokens"], found["tokens"]), "of a whole CLIP too"
    torch.testing.assert_close(make(memo_captions=9)(BATCH, KEEP)["vector"], found["vector"])  # encoded one by one


@pytest.mark.parametrize("zero_null", [True, False])
def test_one_draw_drops_tokens_and_vector(zero_null: bool):
    conditioner = make(zero_null=zero_null, width=5)
    kept, null = conditioner(BATCH, KEEP), conditioner({}, ~KEEP)
    mixed = conditioner(BATCH, torch.tensor([False, True, False]))
    assert bool(null["vector"].any()) is not zero_null and conditioner.widths == {"tokens": 5, "vector": 6}
    for slot in ("tokens", "vector"):
        torch.testing.assert_close(mixed[slot][[0, 2]], kept[slot][[0, 2]])
        torch.testing.assert_close(mixed[slot][1], null[slot][1])
    drop = Conditioners({"clip_text": conditioner}).draw_drop(0, torch.arange(2000))
    assert drop.keys() == {"clip_text"} and abs(drop["clip_text"].float().mean() - 0.2) < 0.03


def test_a_vector_needs_clip_s_own_projection():
    with pytest.raises(ValueError, match=r"clip_text\.path=.*text_projection"):
        ClipText(str(clip_folder()), slots=["tokens", "vector"])
    with pytest.raises(ValueError, match=r"clip_text\.slots: the vector needs path="):
        ClipText(None, slots=["vector"])


def test_ediffi_s_conditions_are_one_sequence_of_192_tokens_and_one_vector():
    """77 of CLIP's text, 113 of T5's, one of CLIP's image, a learned one; each width by a projection of its own."""
    width = 12
    parts = {
        "clip_text": make(width=width, zero_null=True, drop_prob=0.2),
        "t5": t5_tokens(str(t5_folder()), max_tokens=113, dtype="fp32", width=width),
        "clip_image": clip_image(str(clip_image_folder()), ["vector", "tokens"], width),
        "null_token": NullToken(width),
    }
    conditioners = Conditioners(parts)
    assert [part.drop_prob for part in parts.values()] == [0.2, 0.25, 0.9, 0.0]
    assert conditioners.widths() == {"tokens_width": width, "vector_width": 6 + 6, "concat_channels": 0}
    batch = {**BATCH, "style": torch.rand(3, 3, 20, 20)}
    cond = conditioners(batch, drop=conditioners.drop_none(3))
    assert cond["tokens"].shape == (3, 77 + 113 + 1 + 1, width) and cond["vector"].shape == (3, 12)
    null = conditioners(batch, drop=conditioners.drop_all(3))
    assert not null["vector"].any() and not null["tokens"][:, :191].any() and null["tokens"][:, 191].any()
    assert null["tokens_mask"].all()
    network = DiT(3, 3, patch_size=4, width=8, depth=1, num_heads=2, tokens_width=width, vector_width=12)
    randomise(network, 0.2, seed=0)
    network(torch.rand(3, 3, 8, 8), torch.zeros(3), **cond).square().sum().backward()
    for name in ("clip_text.project.weight", "t5.project.weight", "clip_image.project.weight", "null_token.tokens"):
        assert conditioners.get_parameter(f"parts.{name}").grad.any(), name


def test_a_cache_of_all_embeddings_trains_a_pixel_model_bit_for_bit(tmp_path: Path):
    """Without a first stage: T5's tokens, CLIP's text with its vector, and the embedding of the picture.

    None of the pictures is dropped: the others would be encoded in smaller batches, which round in another way.
    """
    conditions = [
        "conditioner=[t5,clip_text,clip_image]", f"conditioner.t5.path={t5_folder()}", "conditioner.t5.max_tokens=8",
        "conditioner.t5.dtype=fp32", "conditioner.t5.memo_captions=99",
        f"conditioner.clip_text.path={clip_image_folder()}",
        "conditioner.clip_text.slots=[tokens,vector]", "conditioner.clip_text.memo_captions=99",
        f"conditioner.clip_image.path={clip_image_folder()}", "conditioner.clip_image.slots=[vector,tokens]",
        "conditioner.clip_image.width=8", "conditioner.clip_image.drop_prob=0.0", "derived=[style]",
        "derived.style.size=16",
    ]  # fmt: skip
    data = [f"data.train={annotated_shard()}", f"data.validation={annotated_shard()}"]
    out = f"out={tmp_path}/cache"
    encode(compose("encode", ["data=quickstart", *data, *conditions, out, "image_size=32", "device=cpu", "batch_size=4",
                              "precision=fp32"]))  # fmt: skip
    [file] = (tmp_path / "cache").glob("*.safetensors")
    names = [name for name in load_file(file) if "." in name]
    assert {"embedding", "mask", "pooled", "tokens"} <= {name.rpartition(".")[2] for name in names}
    assert not any(name.startswith("moments") for name in names)
    own = ("data=quickstart", *data, *conditions, "task.keep_latents=false", "max_steps=4")
    images = train("quickstart/diffusion", tmp_path, "~conditioner.text", *own, run="images")
    cached = train("quickstart/diffusion", tmp_path, "~conditioner.text", *own, f"data.cache={tmp_path}/cache", run="c")
    assert_equal_runs(cached.folder, images.folder, step=4)
