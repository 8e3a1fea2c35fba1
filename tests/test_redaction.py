"""Secrets stay out of what is written down: each form of them, and a whole run's folder, searched byte by byte."""

import shutil
import sys
from pathlib import Path

import pytest
from toys import QUICKSTART, tiny

from ldm.config import compose
from ldm.fit import fit
from ldm.redaction import redacted

HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("s3://key:pass/word@host", "s3://key:pass/word@host"),  # no such URL: a slash ends the host
        ("s3://user:pa55word@host/path", "s3://***@host/path"),
        ("data.train=http://u:p@[::1]:80/x{0..3}.tar", "data.train=http://***@[::1]:80/x{0..3}.tar"),
        ("https://h/x.tar?a=1&X-Amz-Signature=abc&b=2", "https://h/x.tar?a=1&X-Amz-Signature=***&b=2"),
        ("https://h/x?token=abc", "https://h/x?token=***"),
        ("AKIAABCDEFGHIJKLMNOP in a text", "*** in a text"),
        ("hf_ABCDEFGHIJKLMNOPQRSTUVWX", "***"),
        ("api_key=abc", "api_key=***"),
        ("data.storage.secret=abc", "data.storage.secret=***"),
        ("conditioner.text.max_tokens=77", "conditioner.text.max_tokens=77"),
        ("conditioner.text.tokenizer=/a/b", "conditioner.text.tokenizer=/a/b"),
        ("prompt=a token = two", "prompt=a token = two"),
        ("/path/to/user@host/x.tar", "/path/to/user@host/x.tar"),
        ("", ""),
    ],
)
def test_a_secret_is_hidden_and_nothing_else(text, left):
    assert redacted(text) == left
    assert redacted({"a": [text, {"b": (text,)}], "c": 1}) == {"a": [left, {"b": (left,)}], "c": 1}


def test_values_of_keys_and_of_the_environment_that_are_called_secret(monkeypatch: pytest.MonkeyPatch):
    assert redacted({"token": "x", "password": "", "tokens": "y", "secret_key": 5}) == {
        "token": "***", "password": "", "tokens": "y", "secret_key": 5,
    }  # fmt: skip
    for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "DB_PASSWORD"):
        monkeypatch.setenv(name, f"canary-of-{name}")
        assert redacted(f"a canary-of-{name} b") == "a *** b"
    monkeypatch.setenv("SHORT_TOKEN", "word")
    monkeypatch.setenv("KEYBOARD", "qwertyuiop")
    assert redacted("a word of qwertyuiop") == "a word of qwertyuiop"


def test_what_the_environment_gives_to_a_tree_is_hidden(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", HEX)
    tree = compose("config", ["experiment=quickstart/autoencoder", "logger.project=${oc.env:WANDB_API_KEY}"])
    assert tree["logger"]["project"] == HEX and redacted(tree)["logger"]["project"] == "***"
    assert redacted({**tree, "logger": None}) == {**tree, "logger": None}


CANARIES = {
    "WANDB_API_KEY": HEX,
    "AWS_SECRET_ACCESS_KEY": "canary-aws-0123456789",
    "HF_TOKEN": "hf_canary0123456789abcdef",
}


def test_a_whole_run_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture):
    for name, secret in CANARIES.items():
        monkeypatch.setenv(name, secret)
    monkeypatch.setenv("WANDB_MODE", "offline")
    shards = tmp_path / CANARIES["AWS_SECRET_ACCESS_KEY"]  # as a mounted bucket may be called
    shards.mkdir()
    shutil.copy(QUICKSTART / "train-00000.tar", shards)
    own = ("run=a", f"data.train={shards}/train-00000.tar", f"data.validation={shards}/train-00000.tar")
    for steps in (1, 2):  # the second resumes
        words = tiny("quickstart/autoencoder", tmp_path / "runs", *own, f"max_steps={steps}")
        monkeypatch.setattr("sys.argv", ["train.py", *(word for word in words if word != "~logger")])
        assert fit(compose("config", sys.argv[1:]), "a").finished
    said = "".join(capfd.readouterr())
    assert not any(secret in said for secret in CANARIES.values())
    assert list((tmp_path / "runs" / "a" / "wandb").glob("offline-run-*/*.wandb"))
    for path in (tmp_path / "runs").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found = [name for name, secret in CANARIES.items() if secret.encode() in content]
            assert not found, f"{path} holds {found}"
    assert "***/train-00000.tar" in (tmp_path / "runs/a/config.yaml").read_text()
