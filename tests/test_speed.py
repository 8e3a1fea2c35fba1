"""Live figures: the split of a step adds up, MFU is of the counted arithmetic, and no number of a run changes."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from toys import assert_equal_runs, losses, state

from ldm.run import Run
from ldm.training import flops
from ldm.training.callbacks.metrics import Metrics
from ldm.training.callbacks.speed import memory_gib
from ldm.training.loggers import curves
from ldm.training.stopwatch import Stopwatch
from ldm.training.task import PHASES

Train = Callable[..., Run]
WITHOUT = "callback=[metrics,validation,panels,checkpoint,signals,progress]"


def test_laps_are_seconds_by_phase(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 1.0, 3.0, 3.5, 4.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    watch = Stopwatch()
    watch.start(torch.device("cpu"))
    for phase in ("data", "forward", "data"):
        watch.lap(phase)
    assert watch.read() == {"data": 1.5, "forward": 2.0}
    watch.lap("forward")
    assert watch.read() == {"forward": 1.0}
    assert watch.read() == {}


def test_the_split_of_a_step_adds_up_to_its_time(train_diffusion: Train):
    run = train_diffusion("max_steps=12", "callback.speed.every_steps=4", "callback.metrics.every_steps=4").folder
    found = curves(run / "metrics.csv")
    assert found["speed/data_share"][0] == [4, 8, 12]
    for place in (1, 2):
        split = {phase: found[f"speed/{phase}_ms"][1][place] for phase in PHASES}
        assert all(value > 0 for value in split.values())
        step = 1e3 * 4 / found["samples_per_second"][1][place]  # four samples a step
        assert sum(split.values()) == pytest.approx(step, rel=0.2)
        assert found["speed/data_share"][1][place] == pytest.approx(split["data"] / sum(split.values()))
    assert all(0.05 < value < 64 for value in found["speed/memory_gib"][1])
    assert not {"speed/mfu", "speed/tflops"} & found.keys()  # no peak of a CPU is known


@pytest.mark.parametrize("more", [[], ["resampler=loss_history", "accumulation=2"]])
def test_mfu_and_all_else_change_no_number(more: list[str], train_diffusion: Train, monkeypatch: pytest.MonkeyPatch):
    plain = train_diffusion("max_steps=4", WITHOUT, *more, run="plain").folder
    monkeypatch.setattr(flops, "peak", lambda device, precision: 1e9)
    watched = train_diffusion("max_steps=4", "callback.update_ratio.every_steps=2", *more, run="watched").folder
    found = curves(watched / "metrics.csv")
    [mfu], [tflops] = found["speed/mfu"][1], found["speed/tflops"][1]
    assert mfu == pytest.approx(1000 * tflops) and mfu > 0
    rows = [row for row in losses(watched) if row[1] != "train/update_ratio"]
    assert rows == losses(plain) and len(rows) > 10
    a, b = state(plain, 4), state(watched, 4)
    assert a.keys() == b.keys() and all(torch.equal(a["trained"][name], b["trained"][name]) for name in a["trained"])


def test_mfu_of_an_autoencoder_changes_no_number(train_autoencoder: Train, monkeypatch: pytest.MonkeyPatch):
    own = ("max_steps=3", "regularizer=vq", "regularizer.num_codes=32", "ema=default")
    plain = train_autoencoder(*own, run="plain").folder
    monkeypatch.setattr(flops, "peak", lambda device, precision: 1e9)
    watched = train_autoencoder(*own, run="watched").folder
    assert "speed/mfu" in curves(watched / "metrics.csv")
    assert_equal_runs(plain, watched, 3)


def test_flop_of_a_step_are_those_of_its_layers():
    class Linear(torch.nn.Module):
        """What `count` needs of a task."""

        def __init__(self):
            super().__init__()
            self.trained = torch.nn.Linear(8, 16)
            self.logs, self.device, self.trainer = {"kept": 1}, torch.device("cpu"), self
            self.precision_plugin, self.accumulate_grad_batches = self, 1
            self.forward_context = torch.enable_grad

        def training_step(self, batch, batch_index):
            self.logs = {}
            self.found = self.attend(batch["x"]) if batch["x"].ndim == 4 else self.trained(batch["x"])
            return self.found.sum()

        def attend(self, x):
            return torch.nn.functional.scaled_dot_product_attention(x, x, x)

    task = Linear()
    rng = torch.random.get_rng_state()
    # the input needs no gradient: one product forward, one for the weight's gradient
    assert flops.count(task, {"x": torch.randn(4, 8)}) == 2 * (2 * 4 * 8 * 16)
    assert task.trained.weight.grad is None and task.logs == {"kept": 1}
    assert flops.count(task, {"x": torch.randn(4, 8, requires_grad=True)}) == 3 * (2 * 4 * 8 * 16)
    # attention as the training computes it: two products, and two for the gradients of each
    x = torch.randn(2, 3, 5, 8, requires_grad=True)
    assert flops.count(task, {"x": x}) == 3 * 2 * (2 * 2 * 3 * 5 * 5 * 8)
    assert torch.equal(task.found, task.attend(x))
    torch.random.set_rng_state(rng)


@pytest.mark.parametrize(
    ("name", "low", "full"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12, 156e12),
        ("NVIDIA H100 80GB HBM3", 989e12, 494e12),
        ("NVIDIA H100 PCIe", 756e12, 378e12),
        ("NVIDIA L4", 121e12, 60e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12, 82.6e12),
        ("NVIDIA GeForce GT 710", None, None),
    ],
)
def test_peaks_are_found_by_name(name, low, full):
    found = flops._listed(name, low=True), flops._listed(name, low=False)
    assert found == (low, full) if low is None else found == pytest.approx((low, full))


def test_a_cpu_has_no_peak_and_resident_memory():
    assert flops.peak(torch.device("cpu"), "bf16-mixed") is None
    held = torch.ones(2**26)  # a quarter of a GiB, perhaps in memory that this process had before
    with open("/proc/self/status") as file:
        resident = next(int(line.split()[1]) for line in file if line.startswith("VmRSS:")) / 2**20
    assert memory_gib(torch.device("cpu")) == pytest.approx(resident, abs=0.05) and resident > 0.25
    del held


@pytest.mark.parametrize("lr", ["0.0", "1.0e-3"])
def test_the_update_ratio_is_of_the_weights(lr: str, train_diffusion: Train):
    run = train_diffusion(f"optimizer.lr={lr}", "max_steps=4", "callback.update_ratio.every_steps=2",
                          "callback.checkpoint.every_steps=1", "callback.checkpoint.keep=9").folder  # fmt: skip
    ratios = dict(zip(*curves(run / "metrics.csv")["train/update_ratio"], strict=True))
    assert sorted(ratios) == [2, 4]
    for step, ratio in ratios.items():
        before, after = state(run, step - 1)["trained"], state(run, step)["trained"]
        moved = torch.cat([(after[name] - before[name]).flatten() for name in before]).norm()
        size = torch.cat([tensor.flatten() for tensor in before.values()]).norm()
        assert ratio == pytest.approx((moved / size).item(), rel=1e-4, abs=1e-12)
        assert (ratio > 0) == (lr != "0.0")


def test_the_rate_of_a_resumed_run_is_of_its_own_steps(monkeypatch: pytest.MonkeyPatch):
    seconds, means = iter(range(1000)), Metrics(every_steps=50)
    monkeypatch.setattr("ldm.training.callbacks.metrics.time.monotonic", lambda: next(seconds))
    trainer = SimpleNamespace(
        loggers=[], datamodule=SimpleNamespace(batch_size=4), optimizers=[SimpleNamespace(param_groups=[{"lr": 1.0}])]
    )
    task = SimpleNamespace(
        stepped=True, max_steps=99, logs={}, device=None, guard=SimpleNamespace(counts=lambda: (0, 0))
    )
    for task.step in range(1, 41):
        means.on_train_batch_end(trainer, task)
    resumed = Metrics(every_steps=50)
    resumed.load_state_dict(means.state_dict())
    resumed.on_train_start(trainer, task)
    for task.step in range(41, 51):
        resumed.on_train_batch_end(trainer, task)
    assert task.latest["samples_per_second"] == 10 * 4  # ten steps in the second between the two looks at the clock
