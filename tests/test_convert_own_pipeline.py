"""Every denoiser as a folder that DiffusionPipeline opens: our latents from the same noise, and what is refused."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import test_convert
import torch
from diffusers import DiffusionPipeline, EDMEulerScheduler
from safetensors.torch import load_file
from test_convert_pipelines import NUMBERS, STEPS, Spied, _no_cache_of_modules, close  # noqa: F401
from torch import Tensor, nn
from toys import TINY_PARTS, clip_folder, clip_image_folder, t5_folder, text_folder, tiny, train

from ldm.build import Parts
from ldm.checkpoint import weights
from ldm.conditioners.base import Conditioners
from ldm.conditioners.label import Label
from ldm.config import compose, dump, load_tree, overriding
from ldm.convert import export_model, own_conditions
from ldm.convert.encoders import Encoder
from ldm.convert.own_conditions import Condition
from ldm.diffusion.counter_random import normal
from ldm.ensemble import write_manifest
from ldm.errors import UserError
from ldm.run import Run, load

SIZE = 32
CAPTIONS = ["a red fox", "two blue houses by the sea"]
UNET = ["network=unet", "network.channels=16", "network.multipliers=[1,2]", "network.num_blocks=1",
        "network.norm_groups=4", "network.attention_factors=[2]", "network.head_channels=8"]  # fmt: skip
EDM_UNET = [*UNET, "conditioner=[]"]
CHAIN = ["schedule=scaled_linear", "noise=discrete", "sigmas=ddim", "sampler=ddim"]
FLOW = ["schedule=flow", "precond=flow", "noise=logit_normal", "sigmas=flow", "sampler=euler"]
EULER = ["sampler=euler"]
TEXT = ["conditioner=[text]", "conditioner.text.slots=[tokens]"]
LABEL = ["conditioner=[label]", "conditioner.label.num_classes=9", "conditioner.label.width=384"]


@pytest.fixture(scope="module")
def stages(tmp_path_factory) -> dict[str, Path]:
    """Runs of first stages with random weights: a KL model, and a VQ model whitened by channel. Pixels have none."""
    found = {}
    for name in ("kl_f4", "vq_f4"):
        run = test_convert.imported(name, tmp_path_factory.mktemp(name), test_convert.random_state(name))
        found[name] = run.folder
    mean, std = [0.1, -0.2, 0.0], [0.5, 1.0, 2.0]
    weights.amend(found["vq_f4"] / "weights", {"latent": {"mean": mean, "std": std, "count": 1}})
    return {**found, "pixels": Path("null")}


def randomise(module: nn.Module) -> None:
    """Weights that matter everywhere."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in module.named_parameters():
        value = torch.randn(parameter.shape, generator=generator)
        plain = 0.1 * value + ("norm" in name and name.endswith("weight"))
        parameter.data = value / value[0].numel() ** 0.5 if value.ndim > 1 else plain


def made(stage: Path, folder: Path, *words: str, name: str = "run") -> Run:
    """A run of the quickstart's model, changed by `words`, with random weights."""
    command = tiny("quickstart/diffusion", folder, f"first_stage={stage}", *words)
    of_dit = {f"network.{word}" for word in TINY_PARTS["ldm.networks.dit.DiT"]} if "network=unet" in words else set()
    tree = compose("config", [word for word in command if word not in of_dit])
    if "text" in (tree["conditioner"] or {}):
        tree["conditioner"]["text"]["path"] = str(text_folder())
    parts = Parts(tree)
    model = nn.ModuleDict({name: parts[name] for name in ("network", "conditioner")})
    randomise(model)
    run = Run(folder / name, {**tree, "run": name, "runs_dir": str(folder)})
    run.lineage = {"run": name, "parent": None, "code_version": ""}
    run.begin()
    about = {"step": 1, "samples_seen": 0, "intervals": parts["expert"].intervals(parts["noise"])}
    about["latent"] = parts["first_stage"].spec.to_dict()
    weights.save(run.folder / "weights", 1, {"raw": model.state_dict()}, about)
    return run


def opened(folder: Path) -> DiffusionPipeline:
    """The pipeline of a folder that has no pickle in it."""
    kinds = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert kinds <= {".json", ".safetensors", ".py", ".txt"}, kinds
    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn(
    run: Run, batch: dict[str, Any], scale: float, negative: dict[str, Any] | None = None, sampler: str = "",
    manifest: Path | None = None,
) -> list[Tensor]:  # fmt: skip
    """First noise, last latents and images of this package, of the run or a manifest, by its sampler or another."""
    model = load(manifest or run.folder)
    guidance = {**load_tree(run.folder / "config.yaml")["guidance"], "scale": scale}
    other = {"_target_": sampler, "_partial_": True} if sampler else None
    sampling = model.sampling({"sampler": other, "sigmas": None, "guidance": guidance, "num_steps": STEPS})
    decode = model.first_stage.decode = Spied(model.first_stage.decode)
    images = model.generate(sampling, batch, NUMBERS, seed=0, size=SIZE, negative=negative)
    return [normal(0, "first noise", NUMBERS, tuple(decode.seen.shape[1:])), decode.seen, images]


def assert_same(pipeline: DiffusionPipeline, noise: Tensor, z: Tensor, images: Tensor, **given: Any) -> None:
    """The pipeline makes the latents z and the images of the noise."""
    options = {**given, "latents": noise, "num_inference_steps": STEPS}
    their_z = pipeline(**options, output_type="latent").images
    assert (their_z - z).abs().max() < 1e-4 * z.abs().max()
    close(pipeline(**options, output_type="pt").images * 2 - 1, images)


LABELS = torch.tensor([3, 7])
RANDOM = torch.Generator().manual_seed(1)
PICTURE = torch.rand(2, 3, SIZE, SIZE, generator=RANDOM) * 2 - 1
HOLE = (torch.rand(2, 1, SIZE, SIZE, generator=RANDOM) < 0.3).float()
FIELDS = {"prompt": "caption", "class_labels": "label"}  # of a call, where the batch has another name for it
# name: the first stage, words that change the quickstart's model, what the pipeline is given, scales of guidance.
CASES: dict[str, tuple[str, list[str], dict[str, Any], tuple[float, ...]]] = {
    "the quickstart's": ("kl_f4", [], {"prompt": CAPTIONS}, (1.0, 3.0)),
    "dit edm euler": ("kl_f4", EULER, {"prompt": CAPTIONS}, (3.0,)),
    "dit flow": ("kl_f4", [*FLOW, "sigmas.shift=3"], {"prompt": CAPTIONS}, (3.0,)),
    "dit v": ("vq_f4", [*EULER, "precond=v"], {"prompt": CAPTIONS}, (3.0,)),
    "dit eps chain": ("kl_f4", [*CHAIN, "precond=eps"], {"prompt": CAPTIONS}, (3.0,)),
    "dit eps": ("kl_f4", [*EULER, "precond=eps"], {"prompt": CAPTIONS}, (3.0,)),
    "dit x0": ("kl_f4", [*EULER, "precond=x0", "sigmas=exponential", "sigmas.sigma_max=20"], {"prompt": CAPTIONS},
               (3.0,)),
    "unet edm": ("vq_f4", [*EDM_UNET, *EULER], {}, (1.0,)),
    "unet edm pixels": ("pixels", [*EDM_UNET, "precond.sigma_data=0.5"], {}, (1.0,)),
    "unet flow text": ("kl_f4", [*UNET, *FLOW, *TEXT], {"prompt": CAPTIONS}, (3.0,)),
    "unet v chain text": ("kl_f4", [*UNET, *CHAIN, "precond=v", *TEXT], {"prompt": CAPTIONS}, (1.0, 3.0)),
    "unet eps chain label": ("kl_f4", [*UNET, *CHAIN, "precond=eps", *LABEL], {"class_labels": LABELS}, (3.0,)),
    "unet patches": ("kl_f4", [*UNET, "network.patch_size=2", *LABEL, "conditioner.label.slot=vector"],
                     {"class_labels": LABELS}, (3.0,)),
    "unet updown": ("kl_f4", [*UNET, "network.resblock_updown=true", "network.scale_shift_norm=true"],
                    {"prompt": CAPTIONS}, (3.0,)),
    "dit text and label": ("kl_f4", ["conditioner=[text,label,null_token]", "conditioner.label.num_classes=9",
                           "conditioner.label.width=8", "conditioner.text.width=8", "conditioner.null_token.width=8",
                           "conditioner.text.zero_null=true"], {"prompt": CAPTIONS, "class_labels": LABELS}, (3.0,)),
    "unet low resolution": ("kl_f4", [*UNET, "conditioner=[low_resolution,text]", "conditioner.text.slots=[tokens]",
                            "derived=[low_resolution]"],
                            {"prompt": CAPTIONS, "low_resolution": PICTURE[:, :, :8, :8]}, (1.0, 3.0)),
    "dit hole": ("vq_f4", ["conditioner=[masked_image]", "derived=[holes]"], {"image": PICTURE, "mask": HOLE}, (1.0,)),
    "dit map": ("kl_f4", ["conditioner=[semantic_map]", "conditioner.semantic_map.num_classes=9"],
                {"segmentation": torch.randint(0, 9, (2, SIZE, SIZE), generator=RANDOM)}, (1.0,)),
    "dit embeddings": ("kl_f4", ["conditioner=[embeddings]", "conditioner.embeddings.width=8",
                       "conditioner.embeddings.embedding_width=6"],
                       {"embeddings": torch.randn(2, 21, 6, generator=RANDOM)}, (3.0,)),
    "dit captions": ("kl_f4", ["conditioner=[caption_transformer]", "conditioner.caption_transformer.width=8",
                     "conditioner.caption_transformer.depth=1", "conditioner.caption_transformer.max_tokens=20"],
                     {"prompt": CAPTIONS}, (3.0,)),
    "dit layout": ("kl_f4", ["conditioner=[layout_transformer]", "conditioner.layout_transformer.width=8",
                   "conditioner.layout_transformer.depth=1", "conditioner.layout_transformer.drop_prob=0.1"],
                   {"layout": torch.randint(0, 8192, (2, 92), generator=RANDOM)}, (3.0,)),
    "dit style": ("kl_f4", ["conditioner=[clip_image]", f"conditioner.clip_image.path={clip_image_folder()}",
                  "conditioner.clip_image.slots=[vector,tokens]", "conditioner.clip_image.width=8", "derived=[style]"],
                  {"style": PICTURE}, (3.0,)),
    "dit t5 and clip": ("kl_f4", ["conditioner=[t5,clip_text]", f"conditioner.t5.path={t5_folder()}",
                        "conditioner.t5.dtype=fp32", f"conditioner.clip_text.path={clip_folder()}"],
                        {"prompt": ["a red heart", "red"]}, (3.0,)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_same_noise_gives_the_same_latents_and_images(name, stages, tmp_path):
    stage, words, given, scales = CASES[name]
    run = made(stages[stage], tmp_path, *words)
    export_model(run.folder, "diffusers", tmp_path / "out")
    pipeline = opened(tmp_path / "out")
    batch = {FIELDS.get(field, field): value for field, value in given.items()}
    for scale in scales:
        assert_same(pipeline, *drawn(run, batch, scale), **given, guidance_scale=scale)


def test_a_negative_prompt_and_one_of_two_conditions(stages, tmp_path):
    run = made(stages["kl_f4"], tmp_path, *CASES["dit text and label"][1])
    export_model(run.folder, "diffusers", tmp_path / "out")
    pipeline = opened(tmp_path / "out")
    negative = ["a dog", "a dog"]
    expected = drawn(run, {"caption": CAPTIONS}, 2.0, {"caption": negative})
    assert_same(pipeline, *expected, prompt=CAPTIONS, negative_prompt="a dog", guidance_scale=2.0)
    assert_same(pipeline, *drawn(run, {"label": LABELS}, 2.0), class_labels=LABELS, guidance_scale=2.0)


def test_the_quickstarts_own_model_opens_and_draws_what_sample_draws(tmp_path):
    """Trained, not made: by the two commands of the quickstart at toy length."""
    stage = train("quickstart/autoencoder", tmp_path)
    run = train("quickstart/diffusion", tmp_path, f"first_stage={stage.folder}", "max_steps=8", "ema=null")
    files = export_model(run.folder, "diffusers", tmp_path / "out")
    assert sorted(files) == sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    pipeline = opened(tmp_path / "out")
    facts = load_tree(run.folder / "config.yaml")
    assert pipeline.config.guidance_scale == facts["guidance"]["scale"] == 3
    assert pipeline.config.num_inference_steps == facts["num_steps"]
    assert type(pipeline.scheduler).__name__ == "EDMDPMSolverMultistepScheduler"  # the run's dpmpp_2m
    assert_same(pipeline, *drawn(run, {"caption": CAPTIONS}, 3.0), prompt=CAPTIONS, guidance_scale=3.0)
    [image, _] = pipeline(CAPTIONS).images
    assert image.size == (SIZE, SIZE)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(tmp_path / "out")
    pipeline.scheduler = EDMEulerScheduler.from_config(pipeline.scheduler.config)
    expected = drawn(run, {"caption": CAPTIONS}, 3.0, sampler="ldm.diffusion.samplers.euler")
    assert_same(pipeline, *expected, prompt=CAPTIONS, guidance_scale=3.0)
    assert pipeline.to(torch.bfloat16)(CAPTIONS, output_type="pt").images.isfinite().all()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["network=unet", *UNET[1:], *CHAIN, "precond=flow"], "precond: .*no scheduler for Flow.*format=safetensors"),
        (["precond=edm", *FLOW[:1], *FLOW[2:]], "precond: .*no scheduler for EDM"),
    ],
)
def test_what_no_scheduler_steps_is_refused_before_anything_is_written(words, message, stages, tmp_path):
    run = made(stages["kl_f4"], tmp_path, *words)
    with pytest.raises(ValueError, match=message):
        export_model(run.folder, "diffusers", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert export_model(run.folder, "safetensors", tmp_path / "out")[0].exists()


def altered(run: Run, **groups: Any) -> Path:
    """The run with other groups in its tree."""
    (run.folder / "config.yaml").write_text(dump({**load_tree(run.folder / "config.yaml"), **groups}))
    return run.folder


def test_networks_conditions_and_encoders_that_have_no_form_are_refused_by_name(stages, tmp_path, monkeypatch):
    run = made(stages["kl_f4"], tmp_path)
    monkeypatch.delitem(own_conditions.KINDS, "ldm.conditioners.text.frozen_text")
    with pytest.raises(ValueError, match=r"conditioner\.text: has no form"):
        export_model(run.folder, "diffusers", tmp_path / "out")
    encoder = Encoder([], lambda folder: [])
    three = {name: Condition("Text", "prompt", {}, encoder=encoder) for name in "abc"}
    monkeypatch.setattr(own_conditions, "KINDS", {name: lambda part, name=name: three[name] for name in three})
    parts = Conditioners({name: Label(3, width=4) for name in three})
    with pytest.raises(ValueError, match="a, b, c need the folders text_encoder, text_encoder_2, text_encoder_3"):
        own_conditions.describe(parts, {name: name for name in three})
    with pytest.raises(ValueError, match=r"network: .*not EncoderUNet"):
        export_model(altered(run, network={"_target_": "ldm.networks.encoder_unet.EncoderUNet"}), "diffusers", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_a_run_whose_levels_or_guidance_diffusers_lacks_says_so(stages, tmp_path, caplog):
    words = ["sigmas=polynomial", "sigmas.sigma_max=20", "guidance=per_condition", "guidance.scales={text:3}",
             "sampler=heun"]  # fmt: skip
    run = made(stages["kl_f4"], tmp_path, *words)
    export_model(run.folder, "diffusers", tmp_path / "out")
    assert "sampler=heun: EDMEulerScheduler steps by Euler's" in caplog.text
    assert "karras is written, 0.01 to 20" in caplog.text and "guides by one scale" in caplog.text
    config = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert (config["sigma_schedule"], config["sigma_max"]) == ("karras", 20.0)


def test_a_chain_or_a_flow_whose_sampler_or_levels_diffusers_lacks_says_so(stages, tmp_path, caplog):
    karras = "sigmas: %s has those of %s, not this run's"
    for number, (words, said) in enumerate((
        ([*CHAIN, "precond=eps"], []),
        ([*CHAIN, "precond=eps", "sampler=euler", "sigmas=trailing"], []),
        ([*CHAIN, "precond=eps", "sampler=dpmpp_2m"], ["sampler=dpmpp_2m: DDIMScheduler steps by DDIM with eta=0"]),
        ([*CHAIN, "precond=eps", "sampler.eta=1"], ["sampler=ddim: DDIMScheduler steps by DDIM with eta=0"]),
        ([*CHAIN, "precond=eps", "sigmas=karras"], [karras % ("DDIMScheduler", "ddim and trailing")]),
        (FLOW, []),
        ([*FLOW, "sigmas=karras"], [karras % ("FlowMatchEulerDiscreteScheduler", "flow")]),
    )):  # fmt: skip
        run = made(stages["pixels"], tmp_path / str(number), *overriding([*UNET, "conditioner=[]", *words]))
        caplog.clear()
        export_model(run.folder, "diffusers", tmp_path / str(number) / "out")
        found = [line for line in caplog.messages if line.startswith(("sampler", "sigmas"))]
        assert len(found) == len(said) and all(map(str.startswith, found, said)), words


def test_any_model_exports_to_safetensors(stages, tmp_path):
    """Whatever the published layout has no place for goes out under our own names."""
    for number, (stage, words) in enumerate((
        ("pixels", [*UNET, "conditioner=[]"]),
        ("vq_f4", [*UNET, *CHAIN, "precond=eps", *TEXT]),
        ("kl_f4", [*UNET, *CHAIN, "precond=eps", "conditioner=[label,null_token]", "conditioner.label.width=384"]),
        ("kl_f4", [*UNET, *CHAIN, "precond=eps", *TEXT, "conditioner.text.width=8", "conditioner.text.drop_prob=0"]),
    )):  # fmt: skip
        run = made(stages[stage], tmp_path / str(number), *words)
        path = export_model(run.folder, "safetensors", tmp_path / str(number) / "out")[0]
        names, own = load_file(path).keys(), weights.load(run.folder).state.keys()
        assert own <= names or any(name.startswith("model.diffusion_model.") for name in names), number


def test_an_export_never_replaces_a_runs_config(stages, tmp_path):
    run = made(stages["pixels"], tmp_path, *UNET, "conditioner=[]")
    before = (run.folder / "config.yaml").read_bytes()
    with pytest.raises(UserError, match=r"out=.*run: is a run's folder, whose config\.yaml would be replaced"):
        export_model(run.folder, "safetensors", run.folder)
    assert (run.folder / "config.yaml").read_bytes() == before and not (run.folder / "model.safetensors").exists()


# Two experts: the first stage, words for both, words of the lower noise, those of the higher, what they are given.
EXPERTS = {
    "edm": ("kl_f4", [], ["expert.node=[1,0]"], ["expert.node=[1,1]"], {"prompt": CAPTIONS}),
    "flow": ("vq_f4", [*FLOW, "sigmas.shift=3"], ["expert.interval={flow_t:[0,0.7]}"],
             ["expert.interval={flow_t:[0.7,1]}"], {"prompt": CAPTIONS}),
    "chain": ("pixels", [*UNET, *CHAIN, "precond=eps", *LABEL], ["expert.interval={t:[0,500]}"],
              ["expert.interval={t:[500,null]}", "network.channels=8"], {"class_labels": LABELS}),
    "a base and a middle": ("kl_f4", EULER, [], ["expert.interval={sigma:[0.5,5]}"], {"prompt": CAPTIONS}),
}  # fmt: skip


@pytest.mark.parametrize("name", EXPERTS)
def test_experts_are_one_pipeline_that_goes_over_at_their_cut(name, stages, tmp_path, monkeypatch):
    stage, words, low, high, given = EXPERTS[name]
    runs = [made(stages[stage], tmp_path, *words, *own, name=at) for at, own in (("low", low), ("high", high))]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = weights.load(runs[1].folder).state  # another network than the first
        moved = {key: t + 0.02 * torch.randn_like(t) if t.is_floating_point() else t for key, t in state.items()}
        metadata = {key: v for key, v in weights.load(runs[1].folder).metadata.items() if key not in ("sha256", "seal")}
        weights.save(runs[1].folder / "weights", 1, {"raw": moved}, metadata)
    write_manifest(tmp_path / "e.yaml", [run.folder for run in runs])
    export_model(tmp_path / "e.yaml", "diffusers", tmp_path / "out")
    assert {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()} <= {
        ".json",
        ".safetensors",
        ".py",
        ".txt",
    }
    monkeypatch.syspath_prepend(tmp_path / "out")
    monkeypatch.delitem(sys.modules, "latent_experts", raising=False)
    pipeline = importlib.import_module("latent_experts").LatentExperts.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    batch = {FIELDS.get(field, field): value for field, value in given.items()}
    noise, z, images = drawn(runs[1], batch, 3.0, manifest=tmp_path / "e.yaml")
    assert_same(pipeline, noise, z, images, **given, guidance_scale=3.0)
    alone = pipeline.experts[0](
        **given, guidance_scale=3.0, latents=noise, num_inference_steps=STEPS, output_type="latent"
    )
    assert (alone.images - z).abs().max() > 1e-3 * z.abs().max(), "both experts have drawn"


def test_an_ensemble_is_no_other_format_and_has_one_scheduler(stages, tmp_path):
    low = made(stages["kl_f4"], tmp_path, "expert.node=[1,0]", name="low")
    high = made(stages["kl_f4"], tmp_path, "expert.node=[1,1]", "precond.sigma_data=0.5", name="high")
    write_manifest(tmp_path / "e.yaml", [low.folder, high.folder])
    with pytest.raises(ValueError, match="format=safetensors: an ensemble is exported as format=diffusers"):
        export_model(tmp_path / "e.yaml", "safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match=r"its scheduler has sigma_data=0\.5, and that of .* 1\.0; one pipeline"):
        export_model(tmp_path / "e.yaml", "diffusers", tmp_path / "out")
    assert not (tmp_path / "out").exists()
