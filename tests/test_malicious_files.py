"""Nothing that is loaded runs code, and each malicious file ends in one clear error within two seconds."""

import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from malicious import CASES, STATES

from ldm.errors import UserError

SECONDS = 2.0


@pytest.mark.timeout(60)
@pytest.mark.parametrize("unrestricted", [False, True], ids=["", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"])
@pytest.mark.parametrize("name", CASES)
def test_no_code_runs_and_the_error_is_clear(name, unrestricted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    canary, folder = tmp_path / "canary", tmp_path / "files"
    folder.mkdir()
    load = CASES[name](folder, canary)
    if unrestricted:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    began = time.process_time()
    with pytest.raises((UserError, OSError)) as error:
        load()
    assert time.process_time() - began < SECONDS  # what waits for ever is ended by the timeout
    assert not canary.exists()
    assert len(str(error.value)) < 2000 and str(error.value).strip()


def test_there_are_enough_of_them():
    assert len(CASES) >= 40


@pytest.mark.parametrize("name", ["command", "eval", "torch.load", "numpy.load", "before torch 1.6"])
def test_without_restrictions_they_do_run(name, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    canary, file = tmp_path / "canary", tmp_path / "state.pt"
    file.write_bytes(STATES[name](canary))
    with suppress(RuntimeError):  # torch misses what should follow
        torch.load(file)
    assert canary.exists()
