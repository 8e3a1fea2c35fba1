"""The doctor: a healthy run passes and leaves nothing behind; each way of being ill is named with the way out."""

import io
import shutil
import subprocess
import sys
import tarfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from toys import QUICKSTART, ROOT, curve, tiny, train

from ldm.config import compose
from ldm.doctor import examine, num_ranks
from ldm.doctor.finding import FAIL, PASS, WARN, Finding
from ldm.doctor.machine import devices, wandb
from ldm.run import Run


def look(experiment: str, folder: Path, *more: str) -> dict[str, Finding]:
    """Findings by check."""
    found = examine(compose("config", tiny(experiment, folder / "runs", *more)), "checked")
    assert not (folder / "runs").exists()
    return {finding.check: finding for finding in found}


def failed(found: dict[str, Finding]) -> dict[str, str]:
    return {check: finding.said for check, finding in found.items() if finding.status == FAIL}


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion", "classifier", "expert"])
def test_a_healthy_run_passes(kind: str, first_stage: Run, diffusion: Run, tmp_path: Path):
    given = {
        "autoencoder": [],
        "expert": [f"branch={diffusion.folder}", "expert.node=[1,1]"],
    }.get(kind, [f"first_stage={first_stage.folder}"])
    found = look(f"quickstart/{kind}", tmp_path, *given)
    assert failed(found) == {}
    assert list(found) == [
        "versions", "device", "W&B", "run", "shards", "samples", "plan",
        "training step", "parameters", "shapes", "memory", "disk",
    ]  # fmt: skip
    assert "16 training and 4 held-out samples" in found["shards"].said
    assert "1 ranks x 1 micro-batches of 4 = 4; 4.0 steps an epoch" in found["plan"].said
    assert "image 3x32x32" in found["shapes"].said
    name = "encoder 3x32x32 -> " if kind == "autoencoder" else "network 4x8x8"
    assert name in found["shapes"].said
    assert ("first_stage" in found["parameters"].said) == (kind != "autoencoder")
    loss = float(found["training step"].said.split("losses ")[1].split(",")[0])
    run = {"autoencoder": first_stage, "diffusion": diffusion}.get(kind)
    assert loss == pytest.approx(curve(run.folder)[1], abs=1e-4) if run else loss > 0


@pytest.mark.parametrize(
    ("word", "check", "said"),
    [
        ("trainer.gradient_clip_algorithm=other", "training step", "Allowed algorithms: ['value', 'norm']"),
        ("trainer.limit_val_batches=-1", "training step", "limit_val_batches"),
        ("trainer.profiler=other", "training step", "it can only be one of ['simple', 'advanced'"),
        ("trainer.precision=64", "training step", "trainer.precision=64: a run's weights are in fp32"),
        ("trainer.devices=[]", "plan", "trainer.devices=[], trainer.num_nodes=1: no process would train"),
        ("trainer.num_nodes=0", "plan", "trainer.num_nodes=0: no process would train"),
    ],
)
def test_what_lightning_refuses_is_a_finding(word: str, check: str, said: str, first_stage: Run, tmp_path: Path):
    found = failed(look("quickstart/diffusion", tmp_path, f"first_stage={first_stage.folder}", word))
    assert set(found) == {"device", check}
    assert said in found[check]


def test_the_memory_is_that_of_the_run(first_stage: Run, diffusion: Run, tmp_path: Path):
    said = look("quickstart/diffusion", tmp_path, f"first_stage={first_stage.folder}")["memory"].said
    state = torch.load(diffusion.folder / "checkpoints/step_00000002.ckpt/state.pt", weights_only=True)
    sizes = {part.rpartition(" ")[0].rpartition(" ")[0].split(": ")[-1]: float(part.split()[-2])
             for part in said.split(", ")}  # fmt: skip
    averages = sum(tensor.numel() * 4 for tensor in state["ema"]["averages"].values()) / 2**20
    assert sizes["averages"] == pytest.approx(averages, abs=0.1)
    assert sizes["optimizer"] == pytest.approx(2 * averages, abs=0.1)


def test_a_missing_shard_is_named(tmp_path: Path):
    found = look("quickstart/autoencoder", tmp_path, f"data.train={tmp_path}/train-{{0..1}}.tar")
    assert "no shard" in failed(found)["shards"] and "train-0.tar" in failed(found)["shards"]
    assert "training step" not in found


def test_every_damaged_shard_is_named(tmp_path: Path):
    for number in range(3):
        shutil.copy(QUICKSTART / f"train-0000{number}.tar", tmp_path / f"train-{number}.tar")
    for number in (0, 2):
        with (tmp_path / f"train-{number}.tar").open("r+b") as file:
            file.truncate(100_000)
    said = failed(look("quickstart/autoencoder", tmp_path, f"data.train={tmp_path}/train-*.tar"))["shards"]
    assert "train-0.tar" in said and "train-2.tar" in said and "train-1.tar" not in said


def test_bad_samples_are_counted(tmp_path: Path):
    with tarfile.open(QUICKSTART / "train-00000.tar") as source, tarfile.open(tmp_path / "t.tar", "w") as target:
        for member in source.getmembers()[:64]:
            content = source.extractfile(member)
            if member.name.endswith(".webp") and "0" in member.name:
                member.size, content = 4, None
            target.addfile(member, content or io.BytesIO(b"oops"))
    found = look("quickstart/autoencoder", tmp_path, f"data.train={tmp_path}/t.tar", "data.max_bad_fraction=1.0")
    assert found["samples"].status == WARN and "are bad" in found["samples"].said
    found = look("quickstart/autoencoder", tmp_path, f"data.train={tmp_path}/t.tar", "data.max_bad_fraction=0.0")
    assert "data.max_bad_fraction=0.0" in failed(found)["samples"]


def test_a_batch_that_cannot_be_divided_is_named_with_its_neighbours(tmp_path: Path):
    more = ("trainer.devices=3", "trainer.num_nodes=2", "accumulation=2", "data.batch_size=64")
    found = look("quickstart/autoencoder", tmp_path, *more)
    assert "6 ranks x accumulation=2 = 12; the nearest that are: 60 and 72" in failed(found)["plan"]
    assert "training step" not in found
    found = look("quickstart/autoencoder", tmp_path, "trainer.devices=2", "data.batch_size=24")
    assert found["plan"].status == WARN and "a step sees samples twice" in found["plan"].said
    assert "2 ranks x 1 micro-batches of 12 = 24" in found["plan"].said and failed(found) == {}


def test_a_wrong_first_stage_is_named(diffusion: Run, first_stage: Run, other_first_stage: Run, tmp_path: Path):
    found = look("quickstart/diffusion", tmp_path, f"first_stage={diffusion.folder}")
    assert "not an autoencoder's run" in failed(found)["training step"]
    found = look("quickstart/diffusion", tmp_path, f"first_stage={tmp_path}/nothing")
    assert "no weights found" in failed(found)["training step"]
    more = (f"branch={diffusion.folder}", f"first_stage={other_first_stage.folder}", "expert.node=[1,1]")
    assert "not the latent space" in failed(look("quickstart/expert", tmp_path, *more))["training step"]


def test_a_disk_that_is_too_small_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for free, status in ((2**20, FAIL), (2**40, PASS)):
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: shutil._ntuple_diskusage(free, 0, free))
        disk = look("quickstart/autoencoder", tmp_path)["disk"]
        assert disk.status == status and ("free space, move runs_dir" in disk.said) == (status == FAIL)


def test_a_step_that_is_not_finite_fails(tmp_path: Path):
    found = look("quickstart/autoencoder", tmp_path, "optimizer.lr=1e30")
    assert "not finite; lower optimizer.lr" in failed(found)["training step"]


def test_a_run_that_goes_on_and_one_with_another_key(tmp_path: Path):
    train("quickstart/autoencoder", tmp_path, "max_steps=1", run="checked")
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    for more, check, said in (
        (["max_steps=3"], "run", "goes on from step_00000001.ckpt"),
        (["max_steps=1"], "run", "has finished"),
        (["max_steps=3", "seed=7"], "run", "seed is 7, but the run in"),
    ):
        found = examine(compose("config", tiny("quickstart/autoencoder", tmp_path, *more)), "checked")
        assert said in {finding.check: finding.said for finding in found}[check]
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_wandb_is_asked_only_when_online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    online = {"logger": {"mode": "online"}}
    assert wandb({"logger": None}).status == wandb({"logger": {"mode": "offline"}}).status == PASS
    assert wandb(online).status == FAIL and "wandb login" in wandb(online).said
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert wandb(online) == Finding("W&B", PASS, f"online, http://127.0.0.1:{server.server_port} answers")
    server.shutdown()
    server.server_close()
    assert wandb(online).status == FAIL and "does not answer" in wandb(online).said


def test_what_a_cpu_cannot_do_is_told(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    trainer = {"accelerator": "cpu", "devices": 1, "precision": "32-true"}
    assert devices({"trainer": trainer}).status == PASS
    assert devices({"trainer": {**trainer, "precision": "16-mixed"}}).status == FAIL
    assert devices({"trainer": {**trainer, "accelerator": "gpu"}}).status == FAIL
    assert devices({"trainer": {**trainer, "accelerator": "auto"}}).status == WARN
    assert num_ranks({"devices": "auto", "num_nodes": 3}) == 3 and num_ranks({"devices": [0, 2], "num_nodes": 2}) == 4


@pytest.mark.slow
def test_the_command_prints_a_table_and_ends_with_a_status(tmp_path: Path):
    for more, status in (([], 0), (["data.batch_size=5", "trainer.devices=2"], 1), (["sede=1"], 2)):
        words = tiny("quickstart/autoencoder", tmp_path / "runs", *more)
        process = subprocess.run(
            [sys.executable, "scripts/doctor.py", *words], cwd=ROOT, capture_output=True, text=True
        )
        assert process.returncode == status, process.stderr
        assert ("FAIL" in process.stdout) == (status == 1) and "Traceback" not in process.stderr
    assert not (tmp_path / "runs").exists()
