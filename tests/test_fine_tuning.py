"""Published weights where a run begins, in one command: random ones in the published layouts, narrow."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from open_clip.transformer import TextTransformer
from safetensors.torch import load_file, save_file
from torch import Tensor
from toys import tiny, train
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm.build import Parts
from ldm.conditioners import clip
from ldm.config import compose
from ldm.convert import export_model
from ldm.convert.clip_encoder import write_encoder
from ldm.convert.diffusion import published
from ldm.convert.schedule_buffers import buffers
from ldm.model import load_model

OWN_ENCODER = "conditioner.clip_text.path=null"
CAPTIONS = ["a red fox", "two blue houses by the sea"]


@pytest.fixture(autouse=True)
def _narrow_clip(monkeypatch):
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    second = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    for config, values in ((clip.CONFIG, small), (clip.OPEN_CLIP, second)):
        for key, value in values.items():
            monkeypatch.setitem(config, key, value)
    monkeypatch.setattr(clip, "OPEN_CLIP_HEAD", 8)


def words(name: str, folder: Path, *more: str) -> list[str]:
    return tiny(f"finetune/{name}", folder, OWN_ENCODER, "max_steps=1", *more)


def random(shapes: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights that matter everywhere."""
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, tensor in shapes.items():
        value = torch.randn(tensor.shape, generator=generator)
        fan_in = value[0].numel() if value.ndim > 1 else 1
        found[name] = value / fan_in**0.5 if value.ndim > 1 else 0.1 * value + ("norm" in name and "weight" in name)
    return found


def is_second(name: str) -> bool:
    return name != "sd15"


def single_file(name: str, folder: Path) -> Path:
    """A file of the original layout with random weights, narrow."""
    own = compose("config", words(name, folder), complete=False)
    state = {**random(published(own, text_encoder=False)), **buffers(Parts(own)["schedule"])}
    state = {key: value for key, value in state.items() if not key.startswith("model_ema.")}
    if is_second(name):
        torch.manual_seed(0)
        text = TextTransformer(width=16, heads=2, layers=3, vocab_size=49408, context_length=77)
        state |= {f"cond_stage_model.model.{key}": value for key, value in text.state_dict().items()}
    else:
        state |= {f"cond_stage_model.{key}": value for key, value in random(clip.layout()).items()}
    torch.save({"state_dict": state, "global_step": 7}, folder / "model.ckpt")
    return folder / "model.ckpt"


def pipeline(name: str, folder: Path) -> Path:
    """A folder as diffusers saves Stable Diffusion with random weights, narrow."""
    config = clip.OPEN_CLIP if is_second(name) else clip.CONFIG
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, cross_attention_dim=config["hidden_size"],
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2), use_linear_projection=is_second(name), sample_size=4,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        mid_block_add_attention=False, scaling_factor=0.18215,
    )  # fmt: skip
    text = CLIPTextModel(CLIPTextConfig(**config))
    write_encoder(folder / "tokens", config, text.state_dict())
    prediction = "v_prediction" if name == "sd21" else "epsilon"
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction,
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    parts = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokens")
    whole = StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, **parts)
    whole.save_pretrained(folder / name)
    return folder / name


MAKE = {"file": single_file, "folder": pipeline}


@pytest.mark.parametrize(
    ("layout", "name"), [("file", "sd15"), ("file", "sd21_base"), ("folder", "sd15"), ("folder", "sd21")]
)
def test_one_command_trains_resumes_without_the_files_and_samples(layout, name, tmp_path):
    source = MAKE[layout](name, tmp_path)
    own = (OWN_ENCODER, f"init={source}")
    run = train(f"finetune/{name}", tmp_path / "runs", *own, "max_steps=1", run="tuned")
    [imported] = (tmp_path / "runs").glob("init-*")
    assert run.finished and run.lineage["parent"]["run"] == imported.name
    model = load_model(imported)
    assert model.first_stage.spec.std == pytest.approx([1 / 0.18215] * 4)
    CHECKS[layout](model, source, name)

    source.rename(tmp_path / "gone")
    assert train(f"finetune/{name}", tmp_path / "runs", *own, "max_steps=2", run="tuned").lineage["finished_step"] == 2
    tuned = load_model(tmp_path / "runs" / "tuned")
    sampling = tuned.sampling({"sampler": None, "sigmas": None, "guidance": None, "num_steps": 2})
    assert tuned.generate(sampling, {"caption": CAPTIONS}, torch.arange(2), seed=0).isfinite().all()


def tokens_of(model: Any) -> Tensor:
    return model.conditioner({"caption": CAPTIONS}, drop=model.conditioner.drop_none(2))["tokens"]


def check_file(model: Any, source: Path, name: str) -> None:
    """The network's weights are the file's, and the tokens those that the published code takes."""
    state = torch.load(source, weights_only=True)["state_dict"]
    for key, value in model.denoiser.network.state_dict().items():
        assert torch.equal(value, state[f"model.diffusion_model.{key}"])
    if is_second(name):
        text = TextTransformer(width=16, heads=2, layers=3, vocab_size=49408, context_length=77)
        prefix = "cond_stage_model.model."
        text.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        ids = (
            model.conditioner.parts["clip_text"]
            .encoder.tokenizer(CAPTIONS, padding="max_length", max_length=77)
            .input_ids
        )
        assert {row[-1] for row in ids} == {0}
        h = text.token_embedding(torch.tensor(ids)) + text.positional_embedding
        for block in list(text.transformer.resblocks)[:-1]:
            h = block(h, attn_mask=text.attn_mask)
        torch.testing.assert_close(tokens_of(model), text.ln_final(h), rtol=0, atol=1e-5)


def check_folder(model: Any, source: Path, name: str) -> None:
    """Noise, conditions, latents: the same as by diffusers."""
    theirs = StableDiffusionPipeline.from_pretrained(source)
    with torch.no_grad():
        ids = theirs.tokenizer(CAPTIONS, padding="max_length", max_length=77, return_tensors="pt").input_ids
        tokens = theirs.text_encoder(ids)[0]
        torch.testing.assert_close(tokens_of(model), tokens, rtol=0, atol=1e-5)
        x, t = torch.randn(2, 4, 4, 4), torch.tensor([3.0, 700.0])
        own = model.denoiser.network(x, t, tokens=tokens)
        torch.testing.assert_close(own, theirs.unet(x, t, tokens).sample, rtol=0, atol=1e-4)
        z = torch.randn(2, 4, 4, 4)
        decoded = theirs.vae.decode(z / 0.18215).sample
        torch.testing.assert_close(model.first_stage.decode(z), decoded, rtol=0, atol=1e-4)
    kind = type(model.denoiser.precond).__name__
    assert kind == ("V" if theirs.scheduler.config.prediction_type == "v_prediction" else "Eps")


CHECKS = {"file": check_file, "folder": check_folder}


def test_an_adapter_begins_from_published_weights_and_diffusers_loads_it(tmp_path):
    source = pipeline("sd15", tmp_path)
    more = (
        "adapter=lora",
        "adapter.rank=2",
        "adapter.alpha=3",
        "adapter.targets=['*attn*','*proj*','*ff*']",
        "optimizer.lr=0.1",
    )
    run = train("finetune/sd15", tmp_path / "runs", OWN_ENCODER, f"init={source}", *more, run="tuned")
    files = export_model(run.folder, "lora", tmp_path / "lora")
    assert [path.name for path in files] == ["pytorch_lora_weights.safetensors"]
    theirs = StableDiffusionPipeline.from_pretrained(source)
    x, t, tokens = torch.randn(2, 4, 4, 4), torch.tensor([3.0, 700.0]), torch.randn(2, 77, 8)
    model = load_model(run.folder)
    with torch.no_grad():
        own, plain = model.denoiser.network(x, t, tokens=tokens), theirs.unet(x, t, tokens).sample
        theirs.load_lora_weights(tmp_path / "lora")
        torch.testing.assert_close(theirs.unet(x, t, tokens).sample, own, rtol=0, atol=1e-4)
        assert (plain - own).abs().max() > 1e-3
        export_model(run.folder, "diffusers", tmp_path / "merged")
        merged = UNet2DConditionModel.from_pretrained(tmp_path / "merged" / "unet")
        torch.testing.assert_close(merged(x, t, tokens).sample, own, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("factor", "expected"), [(None, 0.18215), (0.13025, 0.13025)])
def test_an_autoencoder_of_diffusers_is_a_first_stage_as_it_is(factor, expected, tmp_path):
    vae = pipeline("sd15", tmp_path) / "vae"
    config = json.loads((vae / "config.json").read_text())
    config.pop("scaling_factor")  # which the first published ones lack
    (vae / "config.json").write_text(json.dumps({**config, **({"scaling_factor": factor} if factor else {})}))
    given = f"first_stage={vae.rename(tmp_path / 'sd-vae.v1')}"
    train("finetune/sd15", tmp_path / "runs", given, "max_steps=1")
    vae = (tmp_path / "sd-vae.v1").rename(tmp_path / "gone")
    run = train("finetune/sd15", tmp_path / "runs", given)
    model = load_model(run.folder)
    assert model.first_stage.spec.std == pytest.approx([1 / expected] * 4)
    theirs, z = AutoencoderKL.from_pretrained(vae), torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(model.first_stage.decode(z), theirs.decode(z / expected).sample, rtol=0, atol=1e-4)


LORA = {"unet.down_blocks.0.attentions.0.to_q.lora_A.weight": torch.ones(2, 2)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: shutil.rmtree(folder / "text_encoder"),
            r"no text_encoder there; conditioner\.clip_text\.path=",
        ),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), r"no tokenizer there; conditioner\.clip_text\.path="),
        (lambda folder: (folder / "text_encoder/model.safetensors").unlink(), "pickles are not read"),
        (lambda folder: shutil.rmtree(folder / "vae"), "no vae there"),
        (lambda folder: save_file(LORA, folder / "unet/diffusion_pytorch_model.safetensors"), "a LoRA or LyCORIS file"),
        (
            lambda folder: (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}'),
            "a StableDiffusionXLPipeline; of pipelines only",
        ),
    ],
)
def test_folders_that_are_not_whole_are_refused_in_a_line(change, message, tmp_path):
    source = pipeline("sd15", tmp_path)
    change(source)
    refused("sd15", source, tmp_path / "runs", message)


def refused(name: str, source: Path, runs: Path, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        train(f"finetune/{name}", runs, OWN_ENCODER, f"init={source}", run="tuned")
    assert str(caught.value).startswith(f"init={source}") and "\n" not in str(caught.value)
    assert not list(runs.glob("*")), "nothing was begun"


def test_another_version_is_named_in_a_line(tmp_path):
    sources = {name: SimpleNamespace(folder=tmp_path / name) for name in ("sd15", "sd21")}
    for name, own in sources.items():
        own.folder.mkdir()
        own.path, own.file = pipeline(name, own.folder), single_file(name, own.folder)
    refused("sd15", sources["sd21"].path, tmp_path / "runs", "its scheduler says v_prediction, so precond=v")
    refused("sd21_base", sources["sd21"].path, tmp_path / "runs", "its scheduler says v_prediction, so precond=v")
    refused("sd21", sources["sd21"].folder / "none", tmp_path / "runs", "no such file or folder")
    refused("sd15", sources["sd21"].file, tmp_path / "runs", "attends to tokens 16 wide, and the experiment's to 8")
    refused(
        "sd21_base", sources["sd15"].file, tmp_path / "runs", "attends to tokens 8 wide, and the experiment's to 16"
    )
    torch.save(LORA, tmp_path / "lora.pt")
    refused("sd15", tmp_path / "lora.pt", tmp_path / "runs", "a LoRA or LyCORIS file.*not a latent diffusion model")
    state = torch.load(sources["sd15"].file, weights_only=True)["state_dict"]
    torch.save({k: v for k, v in state.items() if "cond_stage" not in k}, tmp_path / "textless.ckpt")
    refused(
        "sd15", tmp_path / "textless.ckpt", tmp_path / "runs", r"holds no text encoder .*conditioner\.clip_text\.path="
    )
    with pytest.raises(ValueError, match=r"conditioner\.clip_text\.path: has to be given, .*or init="):
        train("finetune/sd15", tmp_path / "runs", OWN_ENCODER)
    with pytest.raises(ValueError, match="init=, branch=: a run begins from one of them"):
        train("finetune/sd15", tmp_path / "runs", OWN_ENCODER, "init=a", "branch=b")


def test_a_text_encoder_of_the_users_own_takes_the_place_of_a_missing_one(tmp_path):
    source = pipeline("sd15", tmp_path)
    shutil.rmtree(source / "text_encoder")
    run = train(
        "finetune/sd15",
        tmp_path / "runs",
        f"init={source}",
        f"conditioner.clip_text.path={tmp_path / 'tokens'}",
        "max_steps=1",
    )
    assert run.tree["conditioner"]["clip_text"]["path"] == str(tmp_path / "tokens")
    assert load_file(next((tmp_path / "runs").glob("init-*/weights/*.raw.safetensors")))


def test_published_class_models_begin_a_run_too(tmp_path):
    more = ["conditioner.label.num_classes=9", "regularizer.num_codes=16"]
    own = compose("config", tiny("ldm/cin256_v2", tmp_path, *more), complete=False)
    state = {**random(published(own)), **buffers(Parts(own)["schedule"])}
    save_file(state, tmp_path / "cin.safetensors")
    run = train("ldm/cin256_v2", tmp_path / "runs", f"init={tmp_path / 'cin.safetensors'}", *more, "optimizer.lr=0")
    network = load_model(run.folder).denoiser.network.state_dict()
    assert all(torch.equal(value, state[f"model.diffusion_model.{key}"]) for key, value in network.items())


def test_a_first_stage_of_an_unknown_factor_is_measured_on_the_runs_images(tmp_path):
    words = ["autoencoder.multipliers=[1,1,1]"]
    own = compose("config", tiny("finetune/sd15", tmp_path, *words, OWN_ENCODER), complete=False)
    state = {
        k.removeprefix("first_stage_model."): v
        for k, v in random(published(own, text_encoder=False)).items()
        if k.startswith("first_stage_model.")
    }
    save_file(state, tmp_path / "kl.safetensors")
    run = train("finetune/sd15", tmp_path / "runs", f"first_stage={tmp_path / 'kl.safetensors'}", *words, "max_steps=1")
    assert len(set(load_model(run.folder).first_stage.spec.std)) == 4
