"""The report on eDiff-I's figures: its steps in order, gone on with, and shown."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from ldm.config import compose
from ldm.diagnostics import report
from ldm.diagnostics.report_steps import PARTS, chosen
from ldm.launching import FINISHED, Job


def tree(folder: Path, *words: str) -> dict:
    return compose("ediffi_report", [f"runs_dir={folder}", "logger.mode=disabled", "device=cpu", "jobs=1", *words])


def done(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str, status: int = FINISHED) -> tuple[list[str], Path]:
    """The names of the steps that a report has begun, each of which leaves its pictures, and its page."""
    asked, begun = tree(folder, *words), []

    def launch(jobs: Sequence[Job]) -> list[int]:
        for job in jobs:
            begun.append(job.name)
            work = next(work for work in chosen(asked, folder / "ediffi") if work.name == job.name)
            if work.marker is not None and status == FINISHED:
                work.marker.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (8, 8)).save(work.marker, "PNG")
        return [status] * len(jobs)

    monkeypatch.setattr(report, "instantiate", lambda *given: launch)
    return begun, report.ediffi_report(asked)


def test_steps_come_after_what_they_need_and_only_those_that_are_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun, page = done(monkeypatch, tmp_path)
    assert begun.index("stand_in_clip") < begun.index("cache") < begun.index("model") < begun.index("attention")
    assert set(PARTS) < set(begun) and len(begun) == len(set(begun))
    assert page.read_text().count("Not done yet.") == 2, "of what goes on by itself nothing is there"
    again, page = done(monkeypatch, tmp_path)
    assert again == ["cache", "model", "painting", "experts"], "these know themselves what is left"
    assert "10 of 10 steps are done." in page.read_text()


def test_a_step_that_fails_or_stops_keeps_what_needs_it_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="these failed, their messages are above: stand_in_clip"):
        done(monkeypatch, tmp_path / "failed", "parts=[attention]", status=1)
    begun, page = done(monkeypatch, tmp_path / "stopped", "parts=[attention]", status=3)
    assert begun == ["stand_in_clip"] and page is None


def test_what_cannot_be_is_told_before_anything_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for word, problem in {
        "parts=[fig3]": r"parts=\['fig3'\]: some of attention, switch",
        "words.switch=num_sample=4": r"^words\.switch: num_sample: no such key",
        "parts=[]": "parts=.*: some of",
        "parts=[cost,cost]": "parts=.*: some of .*, each once",
        "seeds=[]": r"seeds=\[\]: a list of different numbers",
        "seed=-1": "seed=-1: must be between 0",
        "words.attention=out=/tmp/x": "words.attention: out= says where",
        "words.switch=num_samples=4 num_samples=8": "words.switch: num_samples is given 2 times",
    }.items():
        with pytest.raises(ValueError, match=problem):
            done(monkeypatch, tmp_path, word)
    assert not list(tmp_path.iterdir())
    done(monkeypatch, tmp_path, "parts=[cost]")
    with pytest.raises(ValueError, match=r"seed: .* has figures of seed=0; give another runs_dir="):
        done(monkeypatch, tmp_path, "seed=1")
