"""What else a file of published weights may be: other layouts of a first stage come in, anything else is named."""

import argparse
import json
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from pytorch_lightning.utilities.parsing import AttributeDict
from safetensors.torch import save_file
from torch import Tensor
from toys import ROOT

from ldm.build import load_first_stage
from ldm.checkpoint import kinds
from ldm.checkpoint.weights import load
from ldm.config import compose
from ldm.convert import export_model, import_checkpoint, layout
from ldm.convert.export import diffusers_names

sys.path.insert(0, str(ROOT / "scripts"))
from convert import main

SMALL = (
    "autoencoder.channels=8",
    "autoencoder.norm_groups=4",
    "autoencoder.num_blocks=1",
    "image_size=32",
)
State = dict[str, Tensor]


@cache
def tree(name: str = "kl_f8") -> dict:
    codes = ["regularizer.num_codes=16"] if name.startswith("vq") else []
    return compose("config", [f"experiment=ldm/first_stage/{name}", *SMALL, *codes], complete=False)


@cache
def _state(name: str, seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    lines = [line.split("\t") for line in layout(tree(name))]
    return {key: torch.randn(json.loads(shape), generator=generator) * 0.1 for key, shape in lines}


def state_of(name: str = "kl_f8", seed: int = 0) -> State:
    return dict(_state(name, seed))


def imported(content: object, folder: Path, name: str = "kl_f8", factor: float | None = 0.5) -> State:
    """Our weights of what came in from a torch file with this content."""
    torch.save(content, folder / "model.pt")
    return load(import_checkpoint(folder / "model.pt", tree(name), folder / "run", factor).folder).state


def same(found: State, expected: State) -> bool:
    bare = {key.split(".", 1)[1]: value for key, value in found.items()}
    return len(bare) == len(expected) and all(torch.equal(bare[_bare(key)], value) for key, value in expected.items())


def _bare(key: str) -> str:
    return key.removeprefix("quantize.")


def below(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def old_diffusers(state: State) -> State:
    """As diffusers wrote it first: other names in attention, its weights matrices already."""
    renamed = diffusers_names(state, 4)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        renamed = {key.replace(f".{new}.", f".{old}."): value for key, value in renamed.items()}
    return renamed


DIFFUSION = {"model.diffusion_model.out.2.bias": torch.zeros(4), "betas": torch.zeros(1000)}
LAYOUTS: dict[str, Callable[[State], object]] = {
    "plain": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "global_step": 3},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}},
    "nested twice": lambda s: {"module": {"state_dict": s}, "epoch": 4},
    "an average alone": lambda s: {"ema": s, "args": argparse.Namespace(lr=1.0)},
    "published average alone": lambda s: {f"model_ema.{key.replace('.', '')}": value for key, value in s.items()},
    "ddp": lambda s: below("module.", s),
    "ddp in a whole model": lambda s: below("module.", below("first_stage_model.", s) | DIFFUSION),
    "compiled": lambda s: below("_orig_mod.", s),
    "in a whole model": lambda s: {"state_dict": below("first_stage_model.", s) | DIFFUSION},
    "twice in a whole model": lambda s: below("first_stage_model.", s) | below("cond_stage_model.", s) | DIFFUSION,
    "under another prefix": lambda s: below("vae.", s) | {"unet.conv.weight": torch.zeros(1)},
    "diffusers": lambda s: diffusers_names(s, 4),
    "diffusers, old": old_diffusers,
    "diffusers in a wrapper": lambda s: {"state_dict": below("vae.", diffusers_names(s, 4))},
    "with a counter": lambda s: {**s, "epoch": 3},
    "hyper-parameters": lambda s: {
        "state_dict": s,
        "hyper_parameters": AttributeDict(lr=0.1, cfg=OmegaConf.create({"a": [1, {"b": 2}]})),
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_first_stage_is_found_in_whatever_layout(name, tmp_path, caplog):
    state = state_of()
    assert same(imported(LAYOUTS[name](state), tmp_path), state)
    assert len(caplog.messages) <= 2 and all(len(line) < 300 for line in caplog.messages)


@pytest.mark.parametrize("name", ["vq_f4", "vq_f8"])
def test_codes_come_in_from_diffusers_names(name, tmp_path):
    state = state_of(name)
    levels = len(tree(name)["autoencoder"]["multipliers"])
    assert same(imported(diffusers_names(state, levels), tmp_path, name), state)


def test_half_precision_comes_in_as_single(tmp_path):
    found = imported({key: value.half() for key, value in state_of().items()}, tmp_path)
    assert same(found, {key: value.half().float() for key, value in state_of().items()})


def test_an_average_beside_the_weights_is_theirs(tmp_path):
    raw, other = state_of(), state_of(seed=1)
    torch.save({"model": below("module.", raw), "ema": other, "opt": {}}, tmp_path / "model.pt")
    run = import_checkpoint(tmp_path / "model.pt", tree(), tmp_path / "run", 0.5).folder
    assert same(load(run).state, other) and same(load(run, "raw").state, raw)


def test_files_are_read_by_what_they_hold_and_not_by_their_names(tmp_path):
    save_file(state_of(), tmp_path / "model.ckpt", metadata={"format": "pt", "made by": "a merger"})
    torch.save(state_of(), tmp_path / "other.safetensors")
    run = import_checkpoint(tmp_path / "model.ckpt", tree(), tmp_path / "run", 0.5)
    assert same(load(run.folder).state, state_of())
    with pytest.raises(ValueError, match=r"torch's format .* rename it to other\.ckpt"):
        import_checkpoint(tmp_path / "other.safetensors", tree(), tmp_path / "other", 0.5)


def test_a_folder_of_diffusers_says_its_factor_itself(tmp_path, caplog):
    folder = tmp_path / "vae"
    folder.mkdir()
    save_file(diffusers_names(state_of(), 4), folder / "diffusion_pytorch_model.safetensors")
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL", "scaling_factor": 0.13025}))
    run = import_checkpoint(folder, tree(), tmp_path / "run", None)
    assert load_first_stage(run.folder).spec.std[0] == pytest.approx(1 / 0.13025)
    assert "0.13025" in caplog.text
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a pipeline of diffusers; name one of its models, as .*/vae"):
        import_checkpoint(tmp_path, tree(), tmp_path / "other", None)
    with pytest.raises(ValueError, match="a folder without"):
        import_checkpoint(run.folder / "weights", tree(), tmp_path / "other", None)


@pytest.mark.parametrize("name", ["kl_f8", "vq_f4"])
def test_ends_may_be_wider_than_the_latent(name, tmp_path):
    own = {**tree(name), "autoencoder": {**tree(name)["autoencoder"], "z_channels": 6}}
    shapes = {key: json.loads(shape) for key, shape in (line.split("\t") for line in layout(own))}
    channels = own["regularizer"]["channels"]
    moments = 2 if name == "kl_f8" else 1
    assert shapes["quant_conv.weight"] == [moments * channels, moments * 6, 1, 1]
    assert shapes["post_quant_conv.weight"] == [6, channels, 1, 1] and shapes["decoder.conv_in.weight"][1] == 6
    state = {key: torch.randn(shape) * 0.1 for key, shape in shapes.items()}
    torch.save(state, tmp_path / "model.pt")
    run = import_checkpoint(tmp_path / "model.pt", own, tmp_path / "run", 0.5)
    stage = load_first_stage(run.folder)
    image = torch.zeros(1, 3, 32, 32)
    assert stage.decode(stage.encode(image)).shape == image.shape
    [path] = export_model(run.folder, "published", tmp_path / "out")
    assert same(load(run.folder).state, torch.load(path, weights_only=True)["state_dict"])
    if name == "kl_f8":
        with pytest.raises(ValueError, match=r"autoencoder\.z_channels=6: diffusers"):
            export_model(run.folder, "diffusers", tmp_path / "diffusers")
    else:
        export_model(run.folder, "diffusers", tmp_path / "diffusers")
        config = json.loads((tmp_path / "diffusers/config.json").read_text())
        assert (config["latent_channels"], config["vq_embed_dim"]) == (6, 3)
    with pytest.raises(ValueError, match=r"the file's is .*autoencoder\.z_channels=6"):
        import_checkpoint(tmp_path / "model.pt", tree(name), tmp_path / "other", 0.5)


def test_a_factor_that_is_assumed_is_said(tmp_path, caplog):
    imported(state_of(), tmp_path, factor=None)
    assert [line for line in caplog.messages if "scale_factor=0.18215 is assumed" in line and "0.13025" in line]
    caplog.clear()
    whole = {"state_dict": below("first_stage_model.", state_of()) | {"scale_factor": torch.tensor(0.25), **DIFFUSION}}
    torch.save(whole, tmp_path / "whole.ckpt")
    run = import_checkpoint(tmp_path / "whole.ckpt", tree(), tmp_path / "from_whole", None)
    assert load_first_stage(run.folder).spec.std[0] == 4 and "is assumed" not in caplog.text


def test_a_first_stage_of_other_sizes_says_which(tmp_path):
    with pytest.raises(ValueError, match=r"does not fit .*is VQ with 16 codes, f = 4, regularizer\.channels=3"):
        imported(state_of("vq_f4"), tmp_path)
    two = below("a.", state_of()) | below("b.", state_of())
    with pytest.raises(ValueError, match=r"several first stages \(a\., b\.\)"):
        imported(two, tmp_path)
    assert not (tmp_path / "run").exists()


# Names that are enough to tell, and a word of what is said.
STRANGE = {
    "text_model.encoder.layers.0.mlp.fc1.weight": "a CLIP encoder",
    "visual.transformer.resblocks.0.ln_1.weight": "a CLIP encoder",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "a T5 encoder",
    "bert.encoder.layer.0.attention.self.query.weight": "a BERT encoder",
    "down_blocks.0.resnets.0.norm1.weight": "a U-Net alone, as diffusers names it",
    "add_embedding.linear_1.weight": "the U-Net of Stable Diffusion XL",
    "input_blocks.0.0.weight": "a U-Net alone",
    "conditioner.embedders.0.transformer.text_model.embeddings.position_ids": "Stable Diffusion XL",
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": "a LoRA or LyCORIS file",
    "lycoris_blocks_0.hada_w1_a": "a LoRA or LyCORIS file",
    "unet.down_blocks.0.attentions.0.to_q.lora_A.weight": "a LoRA or LyCORIS file",
    "control_model.input_hint_block.0.weight": "a ControlNet",
    "emb_params": "a textual inversion",
    "blocks.0.adaLN_modulation.1.weight": "a diffusion transformer",
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": "",
    "double_blocks.0.img_attn.qkv.weight": "Stable Diffusion 3, Flux",
    "encoder.layers.0.weight": "an autoencoder of another family",
    "main.0.weight": "a discriminator alone",
    "lin0.model.1.weight": "a perceptual distance",
    "network.out.2.weight": "a run of this project",
    "layer1.0.conv1.weight": "a ResNet",
    "autoencoder.encoder.conv_in.weight": "a run of this project",
    "head.weight": "nor anything known here; its 1 names begin with head.weight",
}


@pytest.mark.parametrize("name", STRANGE)
def test_what_is_no_first_stage_is_named_in_a_line(name, tmp_path):
    with pytest.raises(ValueError, match=f"not a (published )?first stage|{STRANGE[name]}") as caught:
        imported({name: torch.zeros(1)}, tmp_path)
    assert STRANGE[name] in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert not (tmp_path / "run").exists()


def test_a_diffusion_model_is_not_looked_for_in_a_first_stage(tmp_path):
    words = ["experiment=ldm/celebahq", *SMALL[:2], "network.channels=32", "regularizer.num_codes=16"]
    whole = compose("config", words, complete=False)
    for content, expected in ((state_of("vq_f4"), "a first stage alone"), ({"emb_params": torch.ones(1)}, "a textual")):
        torch.save(content, tmp_path / "model.pt")
        with pytest.raises(ValueError, match=f"looks like {expected}.*, not a latent diffusion model; "):
            import_checkpoint(tmp_path / "model.pt", whole, tmp_path / "run", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, "the state of an optimizer alone"),
        ({"string_to_param": {"*": torch.ones(3)}}, "a textual inversion"),
        ({"state_dict": {"a": 1}}, "holds no state dict"),
        ([torch.ones(1)], "holds no state dict"),
    ],
)
def test_files_without_weights_are_told(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        imported(content, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "Git LFS .*git lfs pull"),
        (b"\n<!DOCTYPE html>\n<html></html>", "a web page"),
        (b"GGUF\x03\x00\x00\x00", "GGUF"),
    ],
)
def test_what_was_saved_by_mistake_is_told(content, message, tmp_path):
    for name in ("model.ckpt", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            import_checkpoint(tmp_path / name, tree(), tmp_path / "run", 1.0)
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    with pytest.raises(ValueError, match="in several files"):
        import_checkpoint(tmp_path / "model.safetensors.index.json", tree(), tmp_path / "run", 1.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value, tmp_path):
    state = state_of()
    state["decoder.conv_out.bias"] = torch.tensor([0.0, value, 0.0])
    with pytest.raises(ValueError, match=r"checkpoint=.*model\.pt: decoder\.conv_out\.bias"):
        imported(state, tmp_path)
    assert not (tmp_path / "run").exists()


def test_every_kind_is_told_in_few_words():
    for kind in kinds.KINDS:
        assert len(f"{kind.words}{kind.advice}") < 220
    assert kinds.recognise(["a", "b"]) is None


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda tensor: tensor.to(torch.complex64), "complex"),
        (lambda tensor: tensor.to(torch.int8), "quantised"),
        (lambda tensor: tensor.to("meta"), "without values"),
    ],
)
def test_tensors_that_are_no_plain_weights_are_refused_by_name(change, what, tmp_path):
    state = state_of()
    name = next(name for name, tensor in state.items() if tensor.ndim > 1)
    with pytest.raises(ValueError, match=rf"{re.escape(name)} is {what}"):
        imported({**state, name: change(state[name])}, tmp_path)


def test_a_file_that_is_cut_off_is_named(tmp_path):
    torch.save(state_of(), tmp_path / "whole.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "whole.pt").read_bytes()[:5000])
    with pytest.raises(ValueError, match=r"cut\.pt: damaged"):
        import_checkpoint(tmp_path / "cut.pt", tree("kl_f8"), tmp_path / "run", 0.5)


def test_what_is_left_of_another_run_is_not_imported_into(tmp_path):
    (tmp_path / "run" / "weights").mkdir(parents=True)
    with pytest.raises(ValueError, match="a run already, or a part of one"):
        imported(state_of(), tmp_path)


def test_the_commands_words_are_given_once_and_a_tilde_is_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="model is given 2 times"):
        main(["export", "model=a", "model=b", "format=published", "out=c"])
    with pytest.raises(ValueError, match=rf"^{re.escape(str(tmp_path))}/a: no weights"):
        main(["export", "model=~/a", "format=published", "out=~/c"])
