"""Adapters: they alone are trained, averaged and saved again and again, beside a base that stays as it was."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from toys import TINY_PARTS, Process, assert_equal_runs, tiny, train

from ldm.build import Parts
from ldm.checkpoint import weights
from ldm.config import compose, load_tree
from ldm.convert import export_model
from ldm.model import load_model
from ldm.networks.lora import LoRA, adapted_layers
from ldm.networks.unet import UNet
from ldm.run import Run

ADAPTED = ("adapter=lora", "adapter.rank=2", "adapter.alpha=4", "adapter.dropout=0.1", "optimizer.lr=0.1")
OFTEN = ("callback.checkpoint.every_steps=1", "callback.validation.every_steps=1")
BASE = "weights/base.safetensors"


def start(parent: Path, folder: Path, *more: str, run: str = "adapted") -> Run:
    return train("quickstart/diffusion", folder, f"branch={parent}", *ADAPTED, *more, run=run)


@pytest.fixture(scope="module")
def adapted(diffusion: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps of an adapter on the toy diffusion model. Not to be changed."""
    return start(diffusion.folder, tmp_path_factory.mktemp("adapted"), *OFTEN)


def sampled(path: Path) -> Tensor:
    """Two images of a model, without guidance."""
    model = load_model(path)
    sampling = model.sampling({"sampler": None, "sigmas": None, "guidance": None, "num_steps": 2})
    return model.generate(sampling, {"caption": ["red heart", "cat"]}, torch.arange(2), seed=0)


def test_only_adapters_are_trained_averaged_and_saved(adapted, diffusion):
    folder = adapted.folder / "weights"
    kept = torch.load(adapted.folder / "checkpoints/step_00000002.ckpt/state.pt", weights_only=True)
    sets = [load_file(folder / f"step_00000002.{kind}.safetensors") for kind in ("raw", "ema")]
    for held in (kept["trained"], kept["ema"]["averages"], *sets):
        assert held and all("lora_" in name for name in held)
    assert len(kept["optimizer"]["state"]) == len(kept["trained"])
    parent, base = weights.load(diffusion.folder).state, load_file(adapted.folder / BASE)
    plain = {name.replace(".base_layer.", "."): value for name, value in base.items()}
    assert plain.keys() == parent.keys() and all(torch.equal(plain[name], parent[name]) for name in parent)
    layers = adapted_layers(sets[0])
    assert layers and all(sets[0][f"{layer}.lora_B.default.weight"].any() for layer in layers), "all are used"


def test_resuming_is_exact(adapted, diffusion, tmp_path):
    start(diffusion.folder, tmp_path, *OFTEN, "max_steps=1")
    assert_equal_runs(start(diffusion.folder, tmp_path, *OFTEN).folder, adapted.folder, 2)


def test_an_adapter_goes_on_in_a_branch_and_nothing_else_takes_its_weights(adapted, diffusion, tmp_path):
    further = start(adapted.folder, tmp_path, "max_steps=1", run="further")
    assert load_file(further.folder / BASE).keys() == load_file(adapted.folder / BASE).keys()
    with pytest.raises(ValueError, match=r"adapter\.rank is 3 and in the parent 2"):
        start(adapted.folder, tmp_path, "adapter.rank=3", run="other")
    with pytest.raises(ValueError, match="adapter is None and in the parent 'LoRA'"):
        train("quickstart/diffusion", tmp_path, f"branch={adapted.folder}", run="other")
    assert [path.name for path in tmp_path.iterdir()] == ["further"]


def test_an_adapter_that_begins_from_its_parents_average_goes_on_averaging_it(adapted, tmp_path):
    still = ("optimizer.lr=0", "branch_weights=ema", "max_steps=1")
    further = start(adapted.folder, tmp_path, *still, run="further")
    average = weights.load(adapted.folder).state
    for kind in ("raw", "ema"):
        own = weights.load(further.folder, kind).state
        assert all(torch.allclose(own[name], average[name], rtol=0, atol=1e-6) for name in average)


def test_sampling_needs_the_base_as_it_was(adapted, diffusion, tmp_path):
    assert not torch.equal(sampled(adapted.folder), sampled(diffusion.folder))
    assert torch.equal(sampled(start(diffusion.folder, tmp_path, "optimizer.lr=0").folder), sampled(diffusion.folder))
    path = tmp_path / "adapted" / BASE
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match=r"base\.safetensors: damaged, or not the weights that .* adapts"):
        load_model(tmp_path / "adapted")
    path.unlink()
    with pytest.raises(ValueError, match=r"an adapter without the weights it adapts, .*base\.safetensors"):
        load_model(tmp_path / "adapted")


def test_merged_it_computes_the_same(adapted, tmp_path):
    files = export_model(adapted.folder, "safetensors", tmp_path)
    merged = load_file(files[0])
    assert not any("lora_" in name or "base_layer" in name for name in merged)
    model, tree = load_model(adapted.folder), {**load_tree(files[1]), "first_stage": adapted.tree["first_stage"]}
    assert tree["adapter"] is None
    plain = Parts(tree)["network"].eval()
    plain.load_state_dict({n.removeprefix("network."): v for n, v in merged.items() if n.startswith("network.")})
    given: dict[str, Any] = {"vector": torch.randn(2, 384), "tokens": torch.randn(2, 16, 384)}
    given["tokens_mask"] = torch.ones(2, 16, dtype=torch.bool)
    x, c_noise = torch.randn(2, 4, 8, 8), torch.randn(2)
    torch.testing.assert_close(plain(x, c_noise, **given), model.denoiser.network(x, c_noise, **given))


@pytest.mark.parametrize("linear", [False, True])
def test_every_adapter_of_a_unet_is_used(linear):
    words = [f"network.{key}" for key in TINY_PARTS["ldm.networks.unet.UNet"]]
    own = compose("config", ["experiment=ldm/sd_v1", *words], complete=False)["network"]
    own.pop("_target_")
    network = UNet(4, 4, tokens_width=8, **{**own, "linear_projections": linear})
    layers = {name for name, layer in network.named_modules() if type(layer) is torch.nn.Linear}
    for parameter in network.parameters():  # nothing begins as zero
        torch.nn.init.normal_(parameter, std=0.1)
    adapted = LoRA(rank=2, targets=["*"])(network)
    assert adapted is network and set(adapted_layers(network.state_dict())) == layers
    network(torch.randn(2, 4, 8, 8), torch.randn(2), tokens=torch.randn(2, 3, 8)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.requires_grad == ("lora_" in name)
        assert "lora_B" not in name or parameter.grad.any(), name


def test_mistakes_are_told_before_anything_is_begun(diffusion, first_stage, tmp_path):
    with pytest.raises(ValueError, match="adapter: adapts the network of a trained model, which branch= or init="):
        train("quickstart/diffusion", tmp_path, f"first_stage={first_stage.folder}", "adapter=lora")
    with pytest.raises(ValueError, match=r"adapter\.targets=\['\*atn\*'\]: match none .* such as x_embedder"):
        start(diffusion.folder, tmp_path, "adapter.targets=['*atn*']")
    with pytest.raises(ValueError, match=r"adapter\.rank=0: must be at least 1"):
        start(diffusion.folder, tmp_path, "adapter.rank=0")
    assert not list(tmp_path.glob("*"))


@pytest.mark.slow
def test_two_ranks_train_an_adapter(adapted, diffusion, tmp_path):
    words = tiny("quickstart/diffusion", tmp_path, f"branch={diffusion.folder}", *ADAPTED, "run=two")
    process = Process(["train.py", *words, "trainer.devices=2", "trainer.strategy=ddp"], tmp_path / "said.txt")
    assert process.wait() == 0, process.said
    one, two = (load_file(run / "weights/step_00000002.raw.safetensors") for run in (adapted.folder, tmp_path / "two"))
    assert one.keys() == two.keys() and (tmp_path / "two" / BASE).read_bytes() == (adapted.folder / BASE).read_bytes()
