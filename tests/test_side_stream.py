"""What runs beside a GPU's training is waited for where it has to be, by the device alone."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toys import train

from ldm.training.ema import EMA, Averages
from ldm.training.side_stream import SideStream

CUDA = torch.device("cuda", 0)


class Streams:
    """Stands in for torch.cuda's: what was asked of streams, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.now = self.made(CUDA, "main")

    def made(self, device: torch.device, name: str = "side") -> SimpleNamespace:
        self.events.append(f"{name} is made")
        wait = lambda other: self.events.append(f"{name} waits for {other.name}")  # noqa: E731
        return SimpleNamespace(device=device, name=name, wait_stream=wait)

    @contextmanager
    def stream(self, stream: SimpleNamespace) -> Iterator[None]:
        before, self.now = self.now, stream
        yield
        self.now = before

    def current_stream(self, device: torch.device) -> SimpleNamespace:
        assert device == CUDA
        return self.now


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Streams:
    own = Streams()
    monkeypatch.setattr(torch.cuda, "Stream", own.made)
    monkeypatch.setattr(torch.cuda, "stream", own.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", own.current_stream)
    return own


def test_beside_comes_after_what_was_queued_and_is_waited_for_once(streams: Streams):
    side = SideStream()
    side.join()
    for _ in range(2):
        with side.beside(CUDA):
            assert streams.now.name == "side"
        assert streams.now.name == "main"
        side.join()
        side.join()
    assert streams.events == ["main is made", "side is made", *["side waits for main", "main waits for side"] * 2]


def test_on_a_cpu_there_is_no_stream(streams: Streams):
    side = SideStream()
    with side.beside(torch.device("cpu")):
        assert streams.now.name == "main"
    side.join()
    assert streams.events == ["main is made"]


@pytest.mark.parametrize(
    "read",
    [
        lambda ema: ema.averages(), lambda ema: ema.weights(), lambda ema: ema.state_dict(),
        lambda ema: ema.averages_of(next(ema.module.parameters())), lambda ema: ema.swapped().__enter__(),
        lambda ema: ema.follow(), lambda ema: ema.update(), lambda ema: ema.load_state_dict(ema.state_dict()),
    ],
)  # fmt: skip
def test_whoever_reads_averages_waits_for_them(read, monkeypatch: pytest.MonkeyPatch):
    ema = EMA(torch.nn.Linear(2, 2))
    ema.update()
    joined: list[bool] = []
    monkeypatch.setattr(SideStream, "join", lambda side: joined.append(True))
    read(ema)
    assert joined


def test_only_who_asks_for_it_has_averages_beside(monkeypatch: pytest.MonkeyPatch):
    asked: list[torch.device] = []
    monkeypatch.setattr(SideStream, "beside", lambda side, device: [asked.append(device), nullcontext()][1])
    ema = EMA(torch.nn.Linear(2, 2).bfloat16())  # whose average is another tensor's, as on a GPU
    ema.update()
    assert not asked
    ema.update(beside=True)
    assert len(asked) == 1


def test_no_step_changes_weights_that_are_being_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events: list[str] = []
    optimizer = import_module("torch.optim.adam")  # whose function `adam` AdamW calls once gradients are there
    update, step = Averages.update, optimizer.adam
    monkeypatch.setattr(Averages, "update", lambda ema, **how: [update(ema, **how), events.append("update")])
    monkeypatch.setattr(SideStream, "join", lambda side: events.append("join"))
    monkeypatch.setattr(optimizer, "adam", lambda *a, **k: [events.append("step"), step(*a, **k)])
    train("quickstart/diffusion", tmp_path, "max_steps=3")
    assert events.count("update") == 3
    for place in (place for place, event in enumerate(events) if event == "update"):
        later = [event for event in events[place:] if event != "update"]
        assert later[:1] != ["step"]
