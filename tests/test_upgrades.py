"""Trees of earlier versions: what they say in today's words is the same model, trained by the same draws."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import tiny
from untrained import untrained_run

from ldm.build import Parts
from ldm.config import completed, compose, dump, load_tree, registry
from ldm.config.upgrades import MOVED, upgrade, with_moved_keys
from ldm.diffusion.counter_random import uniform
from ldm.run import check_unchanged, load

SAVED = Path(__file__).parent / "saved"
TOKENS = {"_target_": "ldm.conditioners.text.text_tokens", "model": "minilm", "path": None, "max_tokens": 16}
VECTOR = {**TOKENS, "_target_": "ldm.conditioners.text.text_vector", "drop_prob": 0.1, "memo_captions": 3}
TOKENS = {**TOKENS, "drop_prob": 0.1, "memo_captions": 8}
LABEL = {"_target_": "ldm.conditioners.label.Label", "num_classes": 3, "slot": "vector"}


def upgraded(parts: dict[str, Any]) -> dict[str, Any]:
    return upgrade({"conditioner": parts})["conditioner"]


@pytest.mark.parametrize("path", sorted(SAVED.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_saved_tree_is_resumed_by_the_command_that_began_it(path: Path, tmp_path: Path):
    data = [f"data.{name}=data/quickstart/{name}-00000.tar" for name in ("train", "validation")]
    words = tiny("quickstart/diffusion", tmp_path, *data, "first_stage=runs/quickstart-autoencoder")
    saved, asked = load_tree(path), compose("config", words)
    check_unchanged(saved, asked, tmp_path)
    assert completed(saved["conditioner"]) == completed(asked["conditioner"])


def test_a_text_and_its_vector_are_one_condition_with_the_draw_of_the_text():
    numbers = torch.arange(1000)
    for parts in ({"text": TOKENS, "text_vector": VECTOR}, {"text_vector": VECTOR}, {"text": TOKENS}):
        conditioner = Parts({"conditioner": upgraded(parts)})["conditioner"]
        assert conditioner.names == ("text",)
        drawn = conditioner.draw_drop(7, numbers)["text"]
        assert torch.equal(drawn, uniform(7, "drop text", numbers)[:, 0] < 0.1)
        assert list(conditioner.parts["text"].widths) == [
            slot for slot, name in (("tokens", "text"), ("vector", "text_vector")) if name in parts
        ]
        assert conditioner.parts["text"].frozen.identity()["max_tokens"] == 16


def test_vectors_stay_in_the_order_in_which_the_network_has_learned_them():
    assert list(upgraded({"text": TOKENS, "label": LABEL, "text_vector": VECTOR})) == ["label", "text"]
    assert list(upgraded({"text_vector": VECTOR, "label": LABEL, "text": TOKENS})) == ["text", "label"]
    assert list(upgraded({"text_vector": VECTOR, "label": LABEL})) == ["text", "label"]


def test_a_text_and_a_vector_of_other_encoders_stay_two_conditions():
    two = upgraded({"text": TOKENS, "text_vector": {**VECTOR, "max_tokens": 8}})
    assert {name: part["slots"] for name, part in two.items()} == {"text": ["tokens"], "text_vector": ["vector"]}


def test_the_one_slot_of_an_image_is_a_list():
    image = {"_target_": "ldm.conditioners.clip_image.clip_image", "path": "x", "drop_prob": 0.9}
    assert upgraded({"clip_image": {**image, "slot": "tokens"}}) == {"clip_image": {**image, "slots": ["tokens"]}}
    assert upgraded({"clip_image": image}) == {"clip_image": image}


def test_what_is_saved_today_needs_no_upgrade():
    tree = compose("config", ["experiment=quickstart/diffusion"])
    assert upgrade(tree) == tree
    odd = [None, [1], {"text": 3}, {"text": {"_target_": [1]}}, {"text_vector": {}}]
    for strange in ({}, *({"conditioner": parts} for parts in odd)):
        assert upgrade(strange) == strange


# By what has moved: choices of a command whose tree names it.
MOVERS = {
    "ldm.diffusion.noise.Discrete": ["noise=discrete", "schedule=linear"],
    "ldm.diffusion.sigmas.ddim": ["sigmas=ddim", "schedule=linear"],
    "ldm.diffusion.weighting.EDM": ["weighting=edm"],
}


@pytest.mark.parametrize("old", MOVED)
def test_a_run_from_before_a_target_moved_is_resumed_by_its_command(old: str, tmp_path: Path):
    asked = compose("config", tiny("quickstart/diffusion", tmp_path, "first_stage=runs/ae", *MOVERS[old]))
    assert MOVED[old] in registry()
    assert old not in registry()
    text = dump(asked)
    assert f"_target_: {MOVED[old]}\n" in text
    path = tmp_path / "config.yaml"
    path.write_text(text.replace(f"_target_: {MOVED[old]}\n", f"_target_: {old}\n"))
    saved = load_tree(path)
    assert dump(saved) == text
    check_unchanged(saved, asked, tmp_path)


def test_a_moved_target_is_found_wherever_it_stands_and_nothing_else_is():
    old, new = next(iter(MOVED.items()))
    part = {"_target_": old, "inner": [{"_target_": old}, [old]], 3: {"_target_": [old]}, "note": old}
    today = {"_target_": new, "inner": [{"_target_": new}, [old]], 3: {"_target_": [old]}, "note": old}
    assert upgrade({"noise": part, "odd": None}) == {"noise": today, "odd": None}
    assert upgrade({"noise": today}) == {"noise": today}


LIMITS = ("sigma_lo=0.3", "sigma_hi=20", "rescale=0.7", "profile=[[1,1],[20,0.5]]", "channels=[0,1,2]")


def test_limits_that_stood_among_the_keys_of_guidance_are_a_part_of_it(tmp_path: Path):
    saved = load_tree(SAVED / "guidance_limits.yaml")["guidance"]
    for where in ("guidance", "guidance.limits"):
        words = ["guidance.scale=5", *(f"{where}.{limit}" for limit in LIMITS)]
        asked = compose("config", tiny("quickstart/diffusion", tmp_path, "first_stage=runs/ae", *words))["guidance"]
        assert asked == saved
    own = {"_target_": "mine.Guidance", "sigma_lo": 1.0}
    for other in (own, {"_target_": [1], "channels": 3}, {**saved, "rescale": 1.0}):
        assert upgrade({"guidance": other}) == {"guidance": other}


def test_words_of_older_commands_have_the_keys_of_today():
    older = ["+guidance.rescale=1", "~guidance.sigma_lo", "loss_guidance.image.profile=[[1,2],[3,4]]", "++a.sigma_lo=2"]
    today = [
        older[0].replace(".", ".limits."),
        "~guidance.limits.sigma_lo",
        older[2].replace(".p", ".limits.p"),
        older[3],
    ]
    assert with_moved_keys(older) == today == with_moved_keys(today)
    kept = ["guidance.scales={text:3}", "guidance.sigma_lower=1", "guidance.limits.sigma_lo=guidance.sigma_lo=1"]
    assert with_moved_keys(kept) == kept
    with pytest.raises(ValueError, match=r"guidance\.limits\.sigma_lo is given 2 times"):
        compose("sample", ["model=x", "guidance.sigma_lo=1", "guidance.limits.sigma_lo=2"])
    tree = compose("sample", ["model=x", "loss_guidance=[image]", "loss_guidance.image.sigma_lo=2"])
    assert tree["loss_guidance"]["image"]["limits"]["sigma_lo"] == 2


def test_weights_of_an_earlier_run_give_the_same_images(tmp_path: Path):
    words = ["conditioner=[text]", "conditioner.text.slots=[tokens,vector]", "network.attention_factors=[1]"]
    words.append(f"conditioner.text.memo_captions={TOKENS['memo_captions']}")  # encoded alone, by both
    today = untrained_run(tmp_path / "today", *words)
    earlier = Path(shutil.copytree(today, tmp_path / "earlier"))
    tree = {**load_tree(today / "config.yaml"), "conditioner": {"text": TOKENS, "text_vector": VECTOR}}
    (earlier / "config.yaml").write_text(dump(tree))

    def drawn(run: Path) -> torch.Tensor:
        model = load(run)
        sampling = model.sampling({"sampler": None, "sigmas": None, "guidance": None})
        return model.generate(sampling, {"caption": ["a cat", "a dog"]}, torch.arange(2), seed=0)

    assert torch.equal(drawn(today), drawn(earlier))


def test_a_first_stage_that_came_with_a_model_has_its_own_task():
    """Imported beside a diffusion model, it was described under that one's task, without a network."""
    diffusion = {"_target_": "ldm.training.diffusion.DiffusionTask", "keep_latents": False, "single_factor": True}
    own = {"_target_": "ldm.training.autoencoder.AutoencoderTask", "single_factor": True}
    first_stage = {"task": diffusion, "autoencoder": {"_target_": "x"}, "network": None}
    assert upgrade(first_stage) == {**first_stage, "task": own}
    for whole in ({**first_stage, "network": {"_target_": "y"}}, {**first_stage, "autoencoder": None}):
        assert upgrade(whole) == whole


def test_attention_at_levels_that_an_efficient_unet_never_had_is_none():
    network = {"_target_": "ldm.networks.efficient_unet.EfficientUNet", "multipliers": [1, 2]}
    old = {"network": {**network, "self_attention_factors": [2, 8], "cross_attention_factors": [4]}}
    kept = {"network": {**network, "self_attention_factors": [2], "cross_attention_factors": []}}
    assert upgrade(old) == kept
    other = {"network": {**old["network"], "_target_": "ldm.networks.unet.UNet"}}
    for same in (kept, other, {"network": network}, {"network": {**old["network"], "multipliers": None}}):
        assert upgrade(same) == same
