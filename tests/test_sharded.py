"""FSDP: ranks that hold rows are one process, and what they save is for any number of ranks."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toys import Process, curve, state, tiny, train

from ldm.build import Parts
from ldm.checkpoint import resume
from ldm.checkpoint.rows import Rows, joined, split
from ldm.config import compose
from ldm.networks.dit import DiT
from ldm.run import Run
from ldm.training import sharded

# A U-Net, a condition that is trained, what is only trained with, and all that must compute together.
PARTS = (
    "log_variance=fourier", "ema=power", "ema.snapshot_every_steps=1", "network.checkpoint_activations=true",
    "accumulation=2", "data.batch_size=8",
)  # fmt: skip
# Adam's first steps are signs of the gradient with its usual eps, and blow up the last bit.
OPTIONS = (
    "optimizer.eps=0.1", "trainer.gradient_clip_val=0.1", "callback.validation.every_steps=1",
    "callback.validation.batch_size=2", "data.validation_samples=3", "callback.checkpoint.every_steps=1",
)  # fmt: skip


def test_rows_are_read_from_the_pieces_that_hold_them():
    whole = torch.arange(22).view(11, 2)
    for lengths in ((11,), (4, 4, 3), (6, 5, 0, 0), (1,) * 11):
        rows = Rows(whole.shape, whole.split(list(lengths)))
        assert rows.whole().equal(whole)
        for start in range(12):
            for stop in range(start, 12):
                assert rows.take(start, stop).equal(whole[start:stop])


def test_a_state_is_joined_from_all_ranks_pieces_or_refused():
    plain = {"step": 3, "groups": [{"lr": 0.1, "empty": {}}], "t": torch.ones(2)}
    skeleton, own = split(plain)
    assert own == {} and skeleton["groups"] == plain["groups"] and skeleton["t"] is plain["t"]

    marked = {"a": {"w": {"sharded": [3, 2]}}, "step": 1}
    pieces = [{"a.w": torch.zeros(2, 2)}, {"a.w": torch.ones(1, 2)}]
    assert joined(marked, pieces)["a"]["w"].tolist() == [[0, 0], [0, 0], [1, 1]]
    assert isinstance(joined(marked, pieces, lazy=True)["a"]["w"], Rows)
    with pytest.raises(ValueError, match=r"the rows of a\.w are missing"):
        joined(marked, [pieces[0], {}])
    with pytest.raises(ValueError, match=r"the rows of a\.w are not those of a tensor of \(3, 2\)"):
        joined(marked, pieces[:1])


def test_a_checkpoint_without_all_its_rows_is_not_made(tmp_path: Path):
    state = {"w": {"sharded": [3]}}
    digests = [resume.save_rows(tmp_path, 1, rank, 2, {"w": torch.ones(2 - rank)}) for rank in range(2)]
    assert resume.load(resume.save(tmp_path, 1, state, {}, digests))["w"].tolist() == [1, 1, 1]

    digests = [resume.save_rows(tmp_path, 2, rank, 2, {"w": torch.ones(2 - rank)}) for rank in range(2)]
    next(tmp_path.glob(".writing-rows-*/rows_00001.pt")).unlink()
    with pytest.raises(ValueError, match=r"rows_00001\.pt was written, but is not there: runs_dir must be on a disk"):
        resume.save(tmp_path, 2, state, {}, digests)
    assert resume.newest(tmp_path).name == "step_00000001.ckpt"


def run_ranks(experiment: str, ranks: int, tmp_path: Path, *more: str, run: str) -> Path:
    own = (f"run={run}", f"trainer.devices={ranks}", "trainer.strategy=fsdp", *more)
    ranked = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "train.py")
    process = Process([*ranked, *tiny(experiment, tmp_path, *own)], tmp_path / f"{run}-{ranks}.txt")
    assert process.wait() == 0, process.said
    return tmp_path / run


def assert_same(one: Path, two: Path, step: int, atol: float) -> None:
    for name in ("train/loss", "train/gradient_norm", "validation/loss"):
        assert curve(two, name) == pytest.approx(curve(one, name), abs=1e-6)
    states = [state(run, step) for run in (two, one)]
    for name in ("trained", "optimizer", "ema"):
        torch.testing.assert_close(*[found[name] for found in states], rtol=0, atol=atol)
    for kind in ("ema", "raw"):
        found = [load_file(run / "weights" / f"step_{step:08d}.{kind}.safetensors") for run in (two, one)]
        torch.testing.assert_close(*found, rtol=0, atol=atol)


def test_a_model_is_brought_and_cut_block_by_block(monkeypatch: pytest.MonkeyPatch):
    done: list[tuple[str, object]] = []
    monkeypatch.setattr(sharded, "init_device_mesh", lambda *_: None)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(sharded, "broadcast", lambda tensor, src: done.append(("brought", tensor.data_ptr())))
    monkeypatch.setattr(sharded, "is_sharded", lambda tensor: id(tensor) in cut)
    cut: set[int] = set()

    def fully_shard(module: nn.Module, **_: object) -> None:
        cut.update(map(id, module.parameters()))
        done.append(("cut", module))

    monkeypatch.setattr(sharded, "fully_shard", fully_shard)
    network = DiT(4, 4, patch_size=1, width=8, depth=3, num_heads=2)
    network.blocks[1].requires_grad_(False)
    sharded.shard(nn.ModuleDict({"network": network}), torch.device("cpu"))
    assert [module for what, module in done if what == "cut"] == [network.blocks[0], network.blocks[2], network]
    waiting, most = 0, 0  # parameters that were brought and not yet cut
    for what, _ in done:
        waiting = waiting + 1 if what == "brought" else 0
        most = max(most, waiting)
    brought = [address for what, address in done if what == "brought"]
    assert len(set(brought)) == len(brought) == sum(parameter.requires_grad for parameter in network.parameters())
    assert most < len(brought)


def test_a_rank_without_weights_gets_rank_zeros(monkeypatch: pytest.MonkeyPatch):
    """As two ranks that cut one after the other: what the first sends, the second receives."""
    monkeypatch.setattr(sharded, "init_device_mesh", lambda *_: None)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(sharded, "is_sharded", lambda tensor: id(tensor) in cut)

    def fully_shard(module: nn.Module, **_: object) -> None:
        cut.update(id(parameter) for parameter in module.parameters() if parameter.requires_grad)

    monkeypatch.setattr(sharded, "fully_shard", fully_shard)
    tree = compose("config", tiny("quickstart/diffusion", Path("runs")))
    tree |= {"first_stage": None, "image_size": 8}  # on pixels: no run has to be there
    cut, sent = set(), []
    ranks = [Parts(tree, weightless=rank == 1)["network"] for rank in range(2)]
    for network in ranks:
        network.blocks[0].requires_grad_(False)
        network.register_buffer("facts", torch.full((2,), 7.0, device=next(network.parameters()).device))
    assert all(parameter.is_meta for parameter in ranks[1].parameters())
    held = list(ranks[1].parameters())

    def send(tensor: torch.Tensor, src: int) -> None:
        sent.append(tensor.clone())

    def receive(tensor: torch.Tensor, src: int) -> None:
        tensor.copy_(sent.pop(0))

    for network, exchange in zip(ranks, (send, receive), strict=True):
        monkeypatch.setattr(sharded, "broadcast", exchange)
        sharded.shard(nn.ModuleDict({"network": network}), torch.device("cpu"))
        sharded.share(t for t in (*network.parameters(), *network.buffers()) if id(t) not in cut)
    assert not sent and all(a is b for a, b in zip(held, ranks[1].parameters(), strict=True))
    whole, given = (network.state_dict() for network in ranks)
    torch.testing.assert_close(given, whole, rtol=0, atol=0)
    frozen = [not parameter.requires_grad for parameter in ranks[1].parameters()]
    assert frozen == [not parameter.requires_grad for parameter in ranks[0].parameters()] and any(frozen)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "more"), [("quickstart/diffusion", ()), ("ldm/cin256_v2", PARTS), ("quickstart/classifier", ())]
)
def test_sharded_ranks_are_one_process_and_their_checkpoints_anyones(
    experiment: str, more: tuple[str, ...], first_stage: Run, tmp_path: Path
):
    own = (f"first_stage={first_stage.folder}", *OPTIONS, *more)
    one = train(experiment, tmp_path, *own, run="one").folder
    two = run_ranks(experiment, 2, tmp_path, *own, run="two")
    assert len(list(two.glob("checkpoints/step_00000002.ckpt/rows_*.pt"))) == 2
    assert list(two.glob("samples/step_00000002_*.png"))
    assert_same(one, two, 2, 1e-6)

    train(experiment, tmp_path, *own, "max_steps=4", run="one")
    run_ranks(experiment, 4, tmp_path, *own, "max_steps=3", run="two")  # a 4th of its rows, then all of them
    train(experiment, tmp_path, *own, "max_steps=4", run="two")
    assert not list(two.glob("checkpoints/step_00000004.ckpt/rows_*.pt"))
    assert_same(one, two, 4, 1e-6)


@pytest.mark.slow
def test_a_compiled_network_is_sharded_as_any(first_stage: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    own = (f"first_stage={first_stage.folder}", *OPTIONS)
    one = train("quickstart/diffusion", tmp_path, *own, run="one").folder
    two = run_ranks("quickstart/diffusion", 2, tmp_path, *own, "task.compile=true", run="two")
    assert_same(one, two, 2, 1e-6)
    assert list((tmp_path / "compiled").rglob("*.so")), "nothing was compiled"


@pytest.mark.slow
def test_sharded_ranks_begin_from_their_parents_average_as_one_process_does(first_stage: Run, tmp_path: Path):
    own = (f"first_stage={first_stage.folder}", *OPTIONS)
    parent = run_ranks("quickstart/diffusion", 2, tmp_path, *own, run="parent")
    average, last = (load_file(parent / "weights" / f"step_00000002.{kind}.safetensors") for kind in ("ema", "raw"))
    own = (*own, f"branch={parent}", "branch_weights=ema")

    still = run_ranks("quickstart/diffusion", 2, tmp_path, *own, "optimizer.lr=0.0", "max_steps=1", run="still")
    for kind in ("ema", "raw"):
        found = load_file(still / "weights" / f"step_00000001.{kind}.safetensors")
        torch.testing.assert_close(found, average, rtol=0, atol=1e-7)
    assert any((found[name] - last[name]).abs().max() > 1e-4 for name in found), "the parent's average is another"

    one = train("quickstart/diffusion", tmp_path, *own, run="one").folder
    two = run_ranks("quickstart/diffusion", 2, tmp_path, *own, run="two")
    assert_same(one, two, 2, 1e-6)
