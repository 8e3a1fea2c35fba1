"""T5's tokens: those of transformers, masked; zero where dropped; the decoder stays away."""

import pytest
import torch
from toys import t5_folder

from ldm.conditioners.base import Conditioners
from ldm.conditioners.t5 import t5_tokens

BATCH = {"caption": ["a red heart", "red", "heart a"]}
KEEP = torch.zeros(3, dtype=torch.bool)


def make(**given):
    return t5_tokens(str(t5_folder()), **{"max_tokens": 6, "dtype": "fp32", **given})


@pytest.mark.parametrize(("dtype", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_tokens_are_those_of_transformers(dtype: str, kind: torch.dtype):
    from transformers import AutoTokenizer, T5Model

    whole = T5Model.from_pretrained(t5_folder(), dtype=kind).eval()
    given = AutoTokenizer.from_pretrained(t5_folder())(BATCH["caption"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = whole.encoder(**given).last_hidden_state.float()
    conditioner = make(dtype=dtype)
    kept = conditioner(BATCH, KEEP)
    assert conditioner.width == 8 and kept["tokens"].shape == (3, 6, 8) and kept["tokens"].dtype == torch.float32
    assert kept["tokens_mask"].sum(1).tolist() == [4, 2, 3]  # </s> is one of them
    mask = given.attention_mask.bool()
    assert torch.equal(kept["tokens"][:, :4][mask], expected[mask])
    assert not kept["tokens"][~kept["tokens_mask"]].any()


def test_the_decoder_is_not_loaded_and_nothing_is_trained_or_saved():
    conditioner = make()
    model = conditioner.frozen.encoder.module.model
    assert type(model).__name__ == "T5EncoderModel" and not any("decoder" in name for name in model.state_dict())
    assert not conditioner.state_dict() and not list(conditioner.parameters())
    assert make().frozen.encoder.module is conditioner.frozen.encoder.module, "one for the whole process"


def test_what_is_dropped_is_zero_and_seen():
    conditioner = make(memo_captions=9)
    kept, null = conditioner(BATCH, KEEP), conditioner({}, ~KEEP)
    assert not null["tokens"].any() and null["tokens_mask"].all() and null["tokens_mask"].dtype == torch.bool
    mixed = conditioner(BATCH, torch.tensor([False, True, False]))
    for key in mixed:
        assert torch.equal(mixed[key][[0, 2]], kept[key][[0, 2]]) and torch.equal(mixed[key][1], null[key][1])
    negative = Conditioners({"t5": conditioner})(BATCH, drop={"t5": ~KEEP}, negative={"caption": ["red"] * 3})
    assert torch.equal(negative["tokens"][2], kept["tokens"][1])


def test_messages_name_it(caplog):
    with pytest.raises(ValueError, match=r"conditioner\.t5\.max_tokens=513: must lie in 2 to 512"):
        make(max_tokens=513)
    with pytest.raises(ValueError, match="conditioner t5 needs 'caption'"):
        make()({}, KEEP)
    make(max_tokens=3)({"caption": ["a red heart"]}, KEEP[:1])
    assert "conditioner.t5.max_tokens=3" in caplog.text
