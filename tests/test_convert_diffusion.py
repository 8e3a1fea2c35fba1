"""Whole published diffusion models in and out: bits, irregular files, use, and what is refused."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_convert import saved
from torch import Tensor
from toys import train

from ldm.build import Parts
from ldm.conditioners import clip
from ldm.config import compose, overriding
from ldm.convert import export_model, import_checkpoint, layout
from ldm.convert.schedule_buffers import buffers
from ldm.evaluation.evaluate import _sampling, _usual_scales
from ldm.request import asked_guidance
from ldm.run import Run, load

# Narrow, and shallow in the transformers; everything that makes the layouts differ stays.
NARROW = [
    "autoencoder.channels=8", "autoencoder.norm_groups=4", "network.channels=8", "network.norm_groups=4",
    "network.num_blocks=1",
]  # fmt: skip
MORE = {
    "celebahq": [],
    "lsun_churches": [],
    "cin256_f8": ["conditioner.label.num_classes=9", "conditioner.label.width=8"],
    "cin256_v2": ["conditioner.label.num_classes=9", "conditioner.label.width=8"],
    "text2img_1p45b": ["conditioner.caption_transformer.width=8", "conditioner.caption_transformer.depth=2"],
    "text2img_cc": ["conditioner.caption_transformer.width=8", "conditioner.caption_transformer.depth=2"],
    "layout_openimages": ["conditioner.layout_transformer.width=8", "conditioner.layout_transformer.depth=1"],
    "semantic_landscapes": [],
    "superres_bsr": [],
    "inpainting_big": [],
    "rdm_768": [],
    "sd_v1": [],
}


@pytest.fixture(autouse=True)
def _narrow_clip(monkeypatch):
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    for key, value in small.items():
        monkeypatch.setitem(clip.CONFIG, key, value)


@cache
def tree(name: str, *more: str) -> dict:
    """The tree of a narrow model; not to be changed."""
    words = [*NARROW, *MORE.get(name, [])]
    published = compose("config", [f"experiment=ldm/{name}"], complete=False)
    if "num_codes" in published["regularizer"]:
        words.append("regularizer.num_codes=16")
    if published["network"]["head_channels"]:
        words.append("network.head_channels=8")
    return compose("config", overriding([f"experiment=ldm/{name}", *words, *more]), complete=False)


def random_state(name: str, *more: str) -> dict[str, Tensor]:
    """A published state of a narrow model with the buffers of its schedule and weights that matter everywhere."""
    return dict(_random_state(name, *more))


@cache
def _random_state(name: str, *more: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    state = buffers(Parts(tree(name, *more))["schedule"])
    for line in layout(tree(name, *more)):
        key, shape = line.split("\t")
        value = torch.randn(json.loads(shape), generator=generator)
        fan_in = value[0].numel() if value.ndim > 1 else 1
        value = value / fan_in**0.5 if value.ndim > 1 else 0.1 * value + ("norm" in key and "weight" in key)
        state.setdefault(key, value)
    if "model_ema.decay" in state:
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(5, dtype=torch.int)}
    if "scale_factor" in state:
        state["scale_factor"] = torch.tensor(0.25)
    return state | {key: state[key.replace("cond_stage", "first_stage")] for key in state if _repeats(key, state)}


def _repeats(key: str, state: dict[str, Tensor]) -> bool:
    return key.startswith("cond_stage_model.") and key.replace("cond_stage", "first_stage") in state


def imported(name: str, folder: Path, state: dict[str, Tensor], factor: float | None = None) -> Run:
    return import_checkpoint(saved(folder / "model.ckpt", state), tree(name), folder / name, factor)


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """``run_of(name)``: the run of a file of random weights, imported once. Not to be changed."""
    return cache(lambda name: imported(name, tmp_path_factory.mktemp(name), random_state(name)))


@pytest.mark.parametrize("name", MORE)
def test_a_published_file_goes_in_and_out_bit_for_bit(name, run_of, tmp_path):
    state, run = random_state(name), run_of(name)
    [path] = export_model(run.folder, "published", tmp_path / "out")
    back = torch.load(path, weights_only=True)
    assert list(back["state_dict"]) == list(state) and back["global_step"] == 7
    for key, value in state.items():
        assert back["state_dict"][key].dtype == value.dtype and torch.equal(back["state_dict"][key], value), key

    [path] = export_model(run.folder, "safetensors", tmp_path / "out")
    kept = {key: value for key, value in state.items() if not key.startswith("model_ema.")}
    found = load_file(path)
    assert found.keys() == kept.keys()
    for key in kept:
        average = "model_ema." + key.removeprefix("model.").replace(".", "")
        assert torch.equal(found[key], state.get(average, state[key])), key


@pytest.mark.parametrize("name", ["celebahq", "text2img_1p45b", "semantic_landscapes", "inpainting_big", "sd_v1"])
def test_an_imported_model_computes_with_the_weights_of_the_file(name, run_of):
    state, model = random_state(name), load(run_of(name).folder)
    used = {f"{key}": value for key, value in state.items()}
    network = model.denoiser.network.state_dict()
    average = "model_ema.diffusion_modelout2weight"
    assert torch.equal(network["out.2.weight"], used.get(average, used["model.diffusion_model.out.2.weight"]))
    numbers = torch.arange(2)
    batch = {
        "caption": ["a", "b"], "image": torch.rand(2, 3, 64, 64) * 2 - 1, "number": numbers,
        "segmentation": torch.randint(0, 182, (2, 64, 64)),
        "mask": (torch.rand(2, 1, 64, 64) > 0.5).float(),
    }  # fmt: skip
    sampling = model.sampling({"sampler": None, "sigmas": None, "guidance": None, "num_steps": 2})
    images = model.generate(sampling, batch, numbers, seed=0, size=64)
    assert images.shape == (2, 3, 64, 64) and images.isfinite().all() and images.std() > 0.01


@pytest.mark.parametrize(
    ("name", "num_steps", "scale"),
    [("celebahq", 500, 1), ("lsun_churches", 200, 1), ("cin256_v2", 250, 1.5), ("text2img_1p45b", 250, 1.5)],
)
def test_an_imported_model_is_sampled_as_its_table_says_where_nothing_is_asked(name, num_steps, scale, run_of):
    model = load(run_of(name).folder)
    tree = compose("sample", ["model=x"])
    sampled = model.sampling({**tree, "guidance": asked_guidance(["model=x"], tree["guidance"])})
    tree = compose("evaluate", ["model=x"])
    measured = _sampling(tree, model)
    assert _usual_scales(tree, model, measured) == [scale]
    for sampling in (sampled, measured.with_scale(scale)):
        assert sampling.sampler.func.__name__ == "ddim" and sampling.sampler.keywords["eta"] == 0
        assert len(sampling.sigmas) == num_steps + 1 and sampling.guidance.scale == scale


def test_irregular_files_are_read(tmp_path):
    state = random_state("inpainting_big")
    clean = {key: value for key, value in state.items() if not key.startswith("cond_stage_model.")}
    dirty = {**clean, "ddim_sigmas": torch.zeros(200), "lvlb_weights": torch.zeros(1000)}
    torch.save({"state_dict": dirty}, tmp_path / "model.ckpt")  # no global_step, no second copy
    run = import_checkpoint(tmp_path / "model.ckpt", tree("inpainting_big"), tmp_path / "run", None)
    [path] = export_model(run.folder, "published", tmp_path / "out")
    assert torch.load(path, weights_only=True)["state_dict"].keys() == state.keys()


def test_what_the_public_code_also_writes_comes_in(tmp_path, caplog):
    state = random_state("celebahq")
    logvar = {"logvar": torch.randn(1000)}
    loss = {"first_stage_model.loss.discriminator.main.0.weight": torch.ones(2),
            "first_stage_model.loss.perceptual_loss.lin0.model.1.weight": torch.ones(2)}  # fmt: skip
    run = imported("celebahq", tmp_path, {**logvar, **state, **loss})
    assert "logvar" in caplog.text
    [path] = export_model(run.folder, "published", tmp_path / "out")
    back = torch.load(path, weights_only=True)["state_dict"]
    assert list(back) == ["logvar", *state] and torch.equal(back["logvar"], logvar["logvar"])
    trained = torch.load(next(run.folder.glob("first_stage/checkpoints/*.ckpt")) / "state.pt", weights_only=True)
    assert "reconstruction.discriminator.main.0.weight" in trained["trained"]


def test_models_of_num_classes_come_in(tmp_path):
    """Their network holds the classes and adds them to the noise embedding; ours are a conditioner's."""
    plain = random_state("cin256_v2")
    words = ["network.project_vector=false", "conditioner.label.slot=vector", "conditioner.label.width=32",
             "conditioner.label.has_null=false", "conditioner.label.drop_prob=0",
             "ema.beside_weights=true"]  # fmt: skip
    state = random_state("cin256_v2", *words)
    names = list(state)
    place = names.index("model.diffusion_model.label_emb.weight")
    assert names[place - 1] == "model.diffusion_model.time_embed.2.bias" and state[names[place]].shape == (9, 32)
    assert "model_ema.diffusion_modellabel_embweight" in state and not any(n.startswith("cond_stage") for n in names)
    own = tree("cin256_v2", *words)
    run = import_checkpoint(saved(tmp_path / "model.ckpt", state), own, tmp_path / "run", None)
    [path] = export_model(run.folder, "published", tmp_path / "out")
    back = torch.load(path, weights_only=True)["state_dict"]
    assert list(back) == names and all(torch.equal(back[name], value) for name, value in state.items())
    model = load(run.folder)
    average = state["model_ema.diffusion_modellabel_embweight"]
    vectors = model.conditioner({"label": torch.tensor([3])}, drop=model.conditioner.drop_none(1))
    assert torch.equal(vectors["vector"], average[3:4])
    with pytest.raises(ValueError, match=r"num_classes=9 conditioner\.label\.width=32"):
        imported("cin256_v2", tmp_path, {**plain, names[place]: average})
    with pytest.raises(ValueError, match=r"conditioner\.label\.width=32"):
        Parts(tree("cin256_v2", words[0], words[1]))["network"]


def test_files_that_others_made_smaller_are_read(tmp_path, caplog):
    state = random_state("celebahq")
    own = {key: value for key, value in state.items() if key.startswith("model.")}
    averages = {key: value for key, value in state.items() if key not in own and key not in buffers_of(state)}
    half = {f"module.{key}": value.half() if value.is_floating_point() else value for key, value in averages.items()}
    model = load(imported("celebahq", tmp_path, half).folder)
    assert "it is taken for them" in caplog.text and "says nothing of its schedule" in caplog.text
    expected = state["model_ema.diffusion_modelout2weight"].half().float()
    assert torch.equal(model.denoiser.network.state_dict()["out.2.weight"], expected)


def buffers_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: value for key, value in state.items() if "." not in key}


def test_a_model_with_a_cosine_schedule_comes_in(tmp_path, caplog):
    state = random_state("celebahq", "schedule=cosine")
    assert state["betas"][-1] == pytest.approx(0.999)
    cosine = tree("celebahq", "schedule=cosine")
    run = import_checkpoint(saved(tmp_path / "model.ckpt", state), cosine, tmp_path / "run", None)
    assert "alphas_cumprod" not in caplog.text
    for given, words in (
        ("cosine", "cosine"),
        ("linear", r"linear schedule.beta_start=0.0015 schedule.beta_end=0.0195"),
    ):
        folder = tmp_path / given
        folder.mkdir()
        imported("celebahq", folder, random_state("celebahq", f"schedule={given}"))
        assert f"the file's is schedule={words}" in caplog.text
    model = load(run.folder)
    sampling = model.sampling({"sampler": None, "sigmas": None, "guidance": None, "num_steps": 2})
    images = model.generate(sampling, {"number": torch.arange(1)}, torch.arange(1), seed=0, size=64)
    assert images.isfinite().all()
    [path] = export_model(run.folder, "published", tmp_path / "out")
    assert torch.equal(torch.load(path, weights_only=True)["state_dict"]["betas"], state["betas"])


def test_what_is_a_part_or_another_model_is_named(tmp_path):
    state = random_state("celebahq")
    network = {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}
    for strange, words in (
        (network, r"a U-Net alone, .*first_stage_model"),
        ({**state, "cond_stage_model.model.positional_embedding": torch.ones(1)}, "Stable Diffusion 2"),
        ({**state, "conditioner.embedders.0.x": torch.ones(1)}, "Stable Diffusion XL"),
    ):
        with pytest.raises(ValueError, match=words):
            imported("celebahq", tmp_path, strange)
    assert not (tmp_path / "celebahq").exists()


def test_both_spellings_of_clips_names_are_read(tmp_path):
    state = random_state("sd_v1")
    flat = {key.replace("transformer.text_model.", "transformer."): value for key, value in state.items()}
    flat["cond_stage_model.transformer.embeddings.position_ids"] = torch.arange(77)[None]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    one, other = imported("sd_v1", tmp_path / "a", state), imported("sd_v1", tmp_path / "b", flat)
    name = "text_encoder/model.safetensors"
    assert (one.folder / name).read_bytes() == (other.folder / name).read_bytes()
    conditioner = load(one.folder).conditioner
    tokens = conditioner({"caption": ["a red fox"]}, drop=conditioner.drop_none(1))["tokens"]
    assert tokens.shape == (1, 77, 16)


LABELS, COPY = "cond_stage_model.embedding.weight", "cond_stage_model.quant_conv.bias"
IN = "model.diffusion_model.input_blocks.0.0.weight"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("celebahq", lambda s: s.pop("model.diffusion_model.out.2.bias"), r"1 keys missing \(model\.diff"),
        ("celebahq", lambda s: s.pop("betas"), r"1 keys missing \(betas\)"),
        ("celebahq", lambda s: s.pop("model_ema.diffusion_modelout2bias"), r"keys missing \(model_ema"),
        ("celebahq", lambda s: s.update(extra=torch.zeros(1)), r"1 keys too many \(extra\)"),
        ("cin256_v2", lambda s: s.update({LABELS: torch.zeros(9, 8)}), r"\(9, 8\), not \(10, 8\)"),
        ("inpainting_big", lambda s: s.update({COPY: torch.ones(3)}), "its own first stage"),
        (
            "text2img_1p45b",
            lambda s: s.update(
                {"first_stage_model.x": s.pop("first_stage_model.quant_conv.bias"), IN: torch.zeros(8, 3, 3, 3)}
            ),
            r"1 keys missing \(first_stage_model\.quant_conv\.bias\); 1 keys too many \(first_stage_model\.x\); "
            r"1 wrong shapes \(model\..*input_blocks\.0\.0\.weight is \(8, 3, 3, 3\), not \(8, 4, 3, 3\)\)",
        ),
    ],
)  # fmt: skip
def test_checkpoints_that_do_not_fit_are_refused_by_name(name, change, message, tmp_path):
    state = random_state(name)
    change(state)
    with pytest.raises(ValueError, match=message):
        imported(name, tmp_path, state)
    assert not (tmp_path / name).exists()


def test_the_factor_of_the_latents_is_given_held_by_the_file_or_known(run_of, tmp_path):
    def std(run: Run) -> float:
        return load(run.folder).first_stage.spec.std[0]

    assert std(run_of("lsun_churches")) == 4  # the file's 0.25
    assert std(run_of("text2img_1p45b")) == pytest.approx(1 / 0.18215)
    assert std(imported("text2img_1p45b", tmp_path, random_state("text2img_1p45b"), 0.5)) == 2
    assert std(run_of("celebahq")) == 1


def test_another_schedule_than_the_experiments_is_told(tmp_path, caplog):
    state = random_state("celebahq")
    imported("celebahq", tmp_path, state)
    assert "alphas_cumprod" not in caplog.text
    (tmp_path / "other").mkdir()
    imported("celebahq", tmp_path / "other", {**state, "alphas_cumprod": state["alphas_cumprod"] ** 2})
    assert "alphas_cumprod ends at" in caplog.text


def test_what_has_no_published_layout_is_refused(tmp_path):
    pixels = compose("config", ["experiment=ldm/inpainting_pixel"], complete=False)
    with pytest.raises(ValueError, match="only first stages and latent diffusion models"):
        layout(pixels)
    edm = {**tree("celebahq"), "schedule": compose("config", ["experiment=quickstart/diffusion"])["schedule"]}
    with pytest.raises(ValueError, match="a chain of steps"):
        layout(edm)


def test_the_buffers_are_those_of_ddpm():
    schedule = Parts(tree("celebahq"))["schedule"]
    found = buffers(schedule)
    betas = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2
    assert torch.equal(found["betas"], betas.float())
    alpha_bar = (1 - betas).cumprod(0)
    torch.testing.assert_close(found["alphas_cumprod"].double(), alpha_bar, rtol=1e-7, atol=0)
    # the posterior's mean of x0 = 1, x_t = sqrt(alpha_bar): alpha_bar_{t-1}^(1/2)
    mean = found["posterior_mean_coef1"] + found["posterior_mean_coef2"] * found["sqrt_alphas_cumprod"]
    torch.testing.assert_close(mean, found["alphas_cumprod_prev"].sqrt(), rtol=1e-4, atol=1e-6)
    assert found["posterior_variance"][0] == 0 and found["alphas_cumprod_prev"][0] == 1


def test_a_run_branches_from_an_imported_model(tmp_path):
    run = imported("cin256_v2", tmp_path, random_state("cin256_v2"))
    words = [*NARROW, "conditioner.label.num_classes=9", "conditioner.label.width=8", "regularizer.num_codes=16",
             "network.multipliers=[1,2,3,5]", "network.attention_factors=[2,4,8]", "network.num_heads=1",
             "network.head_channels=null", "autoencoder.multipliers=[1,2,4]", "autoencoder.mid_attention=true",
             f"branch={run.folder}"]  # fmt: skip
    branched = train("ldm/cin256_v2", tmp_path, *words, run="branched")
    assert branched.finished and branched.lineage["parent"]["run"] == "cin256_v2"
    [path] = export_model(branched.folder, "published", tmp_path / "out")
    assert torch.load(path, weights_only=True)["state_dict"].keys() == random_state("cin256_v2").keys()
