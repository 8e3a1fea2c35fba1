"""Published checkpoints in and out: names, bits, parity with diffusers, and what is refused."""

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, VQModel
from first_stage_reference import reference_decode, reference_encode
from safetensors.torch import load_file, save_file
from torch import Tensor
from toys import CONF, QUICKSTART, train

from ldm.build import Parts, load_first_stage
from ldm.config import compose, overriding
from ldm.convert import export_model, import_checkpoint, layout
from ldm.convert.export import diffusers_names
from ldm.data.seals import sealed
from ldm.errors import UserError
from ldm.files import write_json
from ldm.run import Run
from scripts import convert

FIRST_STAGES = sorted(path.stem for path in CONF.glob("experiment/ldm/first_stage/*.yaml"))
# Of the published lists, key<TAB>shape a line, without the final newline: M parameters of encoder and decoder, lines,
# the first 12 hex digits of the text's sha256.
PUBLISHED = {
    "kl_f4": (55.31, 204, "3a37411c1ddd"),
    "kl_f8": (83.65, 248, "c95732c5a7f6"),
    "kl_f16": (69.61, 342, "b24386ff6293"),
    "kl_f32": (103.86, 436, "8e62ce7fd2bc"),
    "vq_f4": (55.30, 205, "b2bbe85171ac"),
    "vq_f4_noattn": (53.19, 185, "8fb6a6c1b082"),
    "vq_f8": (67.65, 299, "93002ef4a34c"),
    "vq_f8_n256": (67.65, 299, "609251bdd84a"),
    "vq_f16": (69.46, 343, "5ae73947eaf5"),
}
# Table 8: f, latent channels, codes (0: KL).
TABLE_8 = {
    "kl_f2": (2, 2, 0), "kl_f4": (4, 3, 0), "kl_f8": (8, 4, 0), "kl_f16": (16, 16, 0), "kl_f16_c8": (16, 8, 0),
    "kl_f32": (32, 64, 0), "kl_f32_c16": (32, 16, 0),
    "vq_f2": (2, 2, 2048), "vq_f2_n64": (2, 2, 64), "vq_f4": (4, 3, 8192), "vq_f4_noattn": (4, 3, 8192),
    "vq_f4_n256": (4, 3, 256), "vq_f8": (8, 4, 16384), "vq_f8_n256": (8, 4, 256), "vq_f16": (16, 8, 16384),
    "vq_f32": (32, 16, 16384), "vqgan_f16": (16, 256, 16384), "vqgan_f16_n1024": (16, 256, 1024),
}  # fmt: skip
NARROW = ["autoencoder.channels=8", "autoencoder.norm_groups=4"]


def tree(name: str, *more: str) -> dict:
    narrow = [*NARROW, *(["regularizer.num_codes=32"] if name.startswith("vq") else [])]
    return compose("config", overriding([f"experiment=ldm/first_stage/{name}", *narrow, *more]), complete=False)


def random_state(name: str, seed: int = 0) -> dict[str, Tensor]:
    """A published state of a narrow model with weights that matter everywhere."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [line.split("\t") for line in layout(tree(name))]
    state = {}
    for key, shape in shapes:
        value = torch.randn(json.loads(shape), generator=generator)
        fan_in = value[0].numel() if value.ndim > 1 else 1
        state[key] = value / fan_in**0.5 if value.ndim > 1 else 0.1 * value + ("norm" in key and "weight" in key)
    return state


def saved(path: Path, state: dict[str, Tensor], **more: object) -> Path:
    torch.save({"state_dict": state, "global_step": 7, **more}, path)
    return path


def imported(name: str, folder: Path, state: dict[str, Tensor], *more: str, factor: float | None = 0.5) -> Run:
    return import_checkpoint(saved(folder / "model.ckpt", state), tree(name, *more), folder / name, factor)


def test_all_of_table_8_is_here():
    assert set(FIRST_STAGES) == TABLE_8.keys()


@pytest.mark.parametrize("name", FIRST_STAGES)
def test_the_first_stages_of_table_8(name):
    with torch.device("meta"):
        parts = Parts(compose("config", [f"experiment=ldm/first_stage/{name}"], complete=False))
        autoencoder, regularizer = parts["autoencoder"], parts["regularizer"]
    f, channels, codes = TABLE_8[name]
    assert (autoencoder.f, regularizer.latent_channels) == (f, channels)
    assert (regularizer.embedding.num_embeddings if codes else 0) == codes
    if name in PUBLISHED:
        counted = [*autoencoder.encoder.parameters(), *autoencoder.decoder.parameters()]
        assert round(sum(p.numel() for p in counted) / 1e6, 2) == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_layouts_are_the_published_ones_to_the_line(name):
    lines = layout(compose("config", [f"experiment=ldm/first_stage/{name}"], complete=False))
    _, count, digest = PUBLISHED[name]
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12] == digest


@pytest.mark.parametrize("name", ["kl_f8", "vq_f4", "vqgan_f16"])
@pytest.mark.parametrize("averaged", [False, True])
def test_a_published_file_goes_in_and_out_bit_for_bit(name, averaged, tmp_path):
    state = random_state(name)
    if averaged:
        other = random_state(name, seed=1)
        state |= {f"model_ema.{key.replace('.', '')}": value for key, value in other.items()}
    counters = {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)} if averaged else {}
    imported(name, tmp_path, {**state, **counters})
    export_model(tmp_path / name, "published", tmp_path / "out")
    back = torch.load(tmp_path / "out/model.ckpt", weights_only=True)
    assert list(back["state_dict"]) == list(state) and back["global_step"] == 7
    assert all(torch.equal(back["state_dict"][key], value) for key, value in state.items())

    [path] = export_model(tmp_path / name, "safetensors", tmp_path / "out")
    used = {key: other[key] if averaged else state[key] for key in random_state(name)}
    assert all(torch.equal(value, used[key]) for key, value in load_file(path).items())
    again = import_checkpoint(path, tree(name), tmp_path / "again", 0.5)
    assert load_first_stage(again.folder).spec.std == load_first_stage(tmp_path / name).spec.std


@pytest.mark.parametrize("name", ["kl_f4", "kl_f8", "kl_f16", "vq_f4", "vq_f4_noattn", "vq_f8"])
def test_imported_models_compute_what_the_reference_and_diffusers_compute(name, tmp_path):
    state = random_state(name)
    stage = load_first_stage(imported(name, tmp_path, state).folder)
    image = torch.rand(2, 3, 64, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moments, is_kl = stage.moments(image), name.startswith("kl")
    torch.testing.assert_close(moments, reference_encode(state, image), rtol=1e-5, atol=1e-5)
    z = moments.chunk(2, 1)[0] if is_kl else moments
    answer = stage.decode(stage.sample(moments))
    torch.testing.assert_close(answer, reference_decode(state, z), rtol=1e-5, atol=1e-5)

    folder = tmp_path / "diffusers"
    export_model(tmp_path / name, "diffusers", folder)
    other = (AutoencoderKL if is_kl else VQModel).from_pretrained(folder).eval()
    with torch.no_grad():
        if is_kl:
            theirs = other.encode(image).latent_dist.mean * other.config.scaling_factor
        else:
            theirs = other.encode(image).latents * other.config.scaling_factor
        torch.testing.assert_close(theirs, stage.sample(moments), rtol=1e-5, atol=1e-5)
        back = other.decode(theirs / other.config.scaling_factor).sample
    torch.testing.assert_close(back, answer, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["kl_f4", "kl_f8"])
def test_diffusers_reads_the_published_layout_as_we_do(name, tmp_path):
    state = random_state(name)
    run = imported(name, tmp_path, state, factor=1.0)
    export_model(run.folder, "diffusers", tmp_path / "config")
    save_file(state, tmp_path / "model.safetensors")
    theirs = AutoencoderKL.from_single_file(str(tmp_path / "model.safetensors"), config=str(tmp_path / "config")).eval()
    stage = load_first_stage(run.folder)
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        posterior = theirs.encode(image).latent_dist
        torch.testing.assert_close(posterior.parameters, stage.moments(image), rtol=1e-5, atol=1e-5)
        decoded = theirs.decode(posterior.mean).sample
    torch.testing.assert_close(decoded, stage.decode(posterior.mean), rtol=1e-5, atol=1e-5)


def test_measured_statistics_are_folded_into_the_weights_of_a_kl_export(tmp_path):
    run = imported(
        "kl_f4", tmp_path, random_state("kl_f4"), f"data.train={QUICKSTART}/validation-00000.tar", "image_size=32",
        "crop_size=null", "data.max_samples=16", "data.num_workers=0", factor=None,
    )  # fmt: skip
    stage = load_first_stage(run.folder)
    assert len(set(stage.spec.std)) == 3 and any(stage.spec.mean)
    export_model(run.folder, "diffusers", tmp_path / "out")
    other = AutoencoderKL.from_pretrained(tmp_path / "out").eval()
    assert other.config.scaling_factor == 1
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    moments, noise = stage.moments(image), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        posterior = other.encode(image).latent_dist
        z = posterior.mean + posterior.std * noise
        torch.testing.assert_close(z, stage.sample(moments, noise), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(other.decode(z).sample, stage.decode(z), rtol=1e-5, atol=1e-5)


def test_a_vq_export_needs_a_single_factor(tmp_path):
    more = (
        f"data.train={QUICKSTART}/validation-00000.tar",
        "image_size=32",
        "data.max_samples=8",
        "data.num_workers=0",
    )
    run = imported("vq_f4", tmp_path, random_state("vq_f4"), *more, factor=None)
    with pytest.raises(ValueError, match=r"task\.single_factor=true"):
        export_model(run.folder, "diffusers", tmp_path / "out")
    own = tree("vq_f4", *more, "task.single_factor=true")
    single = import_checkpoint(tmp_path / "model.ckpt", own, tmp_path / "single", None)
    export_model(single.folder, "diffusers", tmp_path / "out")
    spec = load_first_stage(single.folder).spec
    assert VQModel.from_pretrained(tmp_path / "out").config.scaling_factor == pytest.approx(1 / spec.std[0])
    assert not any(spec.mean)


def test_every_name_of_diffusers_is_met():
    state = random_state("kl_f32")
    assert len(diffusers_names(state, 6)) == len(state)


LOSS = {"loss.logvar": torch.zeros(()), "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(1, 4, 1, 1)}


@pytest.mark.parametrize("with_discriminator", [True, False])
def test_a_run_branches_from_an_imported_first_stage(with_discriminator, tmp_path):
    own = ["autoencoder.num_blocks=1", "autoencoder.mid_attention=false", "autoencoder.multipliers=[1,1,1]"]
    own_tree = tree("kl_f4", *own, "discriminator.channels=4", "discriminator.num_layers=2")
    with torch.device("meta"):
        discriminator = Parts(own_tree)["discriminator"].state_dict()
    state = {
        line.split("\t")[0]: torch.randn(json.loads(line.split("\t")[1])) * 0.1 for line in layout(own_tree)
    } | LOSS
    if with_discriminator:
        state |= {f"loss.discriminator.{key}": torch.full(v.shape, 0.25, dtype=v.dtype if v.is_floating_point() else
                  torch.int64) for key, v in discriminator.items()}  # fmt: skip
    else:
        del state["loss.logvar"]
    run = import_checkpoint(saved(tmp_path / "model.ckpt", state), own_tree, tmp_path / "imported", 1.0)
    branched = train("ldm/first_stage/kl_f4", tmp_path, *own, f"branch={run.folder}", run="branched")
    assert branched.finished and branched.lineage["parent"]["run"] == "imported"
    with pytest.raises(ValueError, match="no optimizer's state"):
        train("ldm/first_stage/kl_f4", tmp_path, *own, f"branch={run.folder}", "branch_optimizer=keep", run="kept")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("encoder.conv_in.bias"), r"1 keys missing \(encoder\.conv_in\.bias\)"),
        (lambda s: s.update({"encoder.extra": torch.zeros(1)}), r"1 keys too many \(encoder\.extra\)"),
        (
            lambda s: s.update({"quantize.embedding.weight": torch.zeros(16, 3)}),
            r"quantize\.embedding\.weight is \(16, 3\), not \(32, 3\)",
        ),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_by_name(change, message, tmp_path):
    state = random_state("vq_f4")
    change(state)
    with pytest.raises(ValueError, match=message):
        imported("vq_f4", tmp_path, state)
    assert not (tmp_path / "vq_f4").exists()


def test_a_kl_import_needs_to_know_its_latents(tmp_path):
    with pytest.raises(ValueError, match="scale_factor"):
        imported("kl_f4", tmp_path, random_state("kl_f4"), factor=None)
    with pytest.raises(ValueError, match="must be positive"):
        imported("kl_f4", tmp_path, random_state("kl_f4"), factor=0.0)
    assert load_first_stage(imported("vq_f4", tmp_path, random_state("vq_f4"), factor=None).folder).spec.std == (1,) * 3
    with pytest.raises(ValueError, match="there is a run already"):
        imported("vq_f4", tmp_path, random_state("vq_f4"))
    words = ["import", "checkpoint=a.ckpt", f"out={tmp_path}/run", "experiment=ldm/first_stage/kl_f8"]
    for given in ("", "auto"):
        with pytest.raises(UserError, match=f"scale_factor={given}: expected a number"):
            convert.main([*words, f"scale_factor={given}"])


class Malicious:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_checkpoint_is_executed(zipped, tmp_path):
    content = {"state_dict": random_state("kl_f4"), "callbacks": Malicious(tmp_path / "made")}
    torch.save(content, tmp_path / "model.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"model\.ckpt: .*run"):
        import_checkpoint(tmp_path / "model.ckpt", tree("kl_f4"), tmp_path / "out", 1.0)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint" * 100])
def test_files_that_are_no_checkpoints_are_refused(content, tmp_path):
    (tmp_path / "model.ckpt").write_bytes(content)
    with pytest.raises(ValueError, match=r"checkpoint=.*model\.ckpt"):
        import_checkpoint(tmp_path / "model.ckpt", tree("kl_f4"), tmp_path / "out", 1.0)
    torch.save({"state_dict": {"a": 1}}, tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="holds no state dict"):
        import_checkpoint(tmp_path / "model.ckpt", tree("kl_f4"), tmp_path / "out", 1.0)
    with pytest.raises(ValueError, match="no such file"):
        import_checkpoint(tmp_path / "absent.ckpt", tree("kl_f4"), tmp_path / "out", 1.0)


def test_objects_of_an_old_trainer_are_left_lying(tmp_path, monkeypatch):
    import sys
    import types

    module = types.ModuleType("pytorch_lightning.callbacks.of_old")
    Callback = type("Callback", (), {"__module__": module.__name__})
    module.Callback = Callback
    monkeypatch.setitem(sys.modules, module.__name__, module)
    state = random_state("kl_f4")
    path = saved(tmp_path / "model.ckpt", state, callbacks={Callback: {"best": Callback()}})
    monkeypatch.delitem(sys.modules, module.__name__)
    assert import_checkpoint(path, tree("kl_f4"), tmp_path / "out", 1.0).finished


def test_an_imported_run_is_not_resumed_but_branched(tmp_path):
    run = imported("kl_f4", tmp_path, random_state("kl_f4"))
    state = torch.load(next(run.folder.glob("checkpoints/*.ckpt")) / "state.pt", weights_only=True)
    assert state["optimizer"] is None and run.finished


def test_unknown_formats_and_runs_without_statistics_are_refused(tmp_path):
    with pytest.raises(ValueError, match="format=onnx"):
        export_model(tmp_path, "onnx", tmp_path)
    run = imported("kl_f4", tmp_path, random_state("kl_f4"))
    [description] = run.folder.glob("weights/*.json")
    facts = json.loads(description.read_text())
    del facts["latent"]
    write_json(description, sealed(facts))
    with pytest.raises(ValueError, match="no latent statistics yet"):
        export_model(run.folder, "diffusers", tmp_path / "out")
