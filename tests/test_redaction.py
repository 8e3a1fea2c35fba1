"""Secrets stay out of what is written down: each form of them, and a whole run's folder, searched byte by byte."""

import io
import pickle
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from range_server import serving
from toys import QUICKSTART, tiny

from ldm.config import compose
from ldm.data.errors import ShardError
from ldm.data.paths import expand
from ldm.data.storage import Url
from ldm.fit import fit
from ldm.redaction import agrees, hide_on_terminal, redacted
from ldm.training.loggers import close, wandb

HEX = "0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("s3://key:pass/word@host/path", "s3://***@host/path"),  # no such URL, but meant as one
        ("s3://user:pa55word@host/path", "s3://***@host/path"),
        ("http://user:p@ss@host/x", "http://***@host/x"),
        ("http://host:8080/a@b.tar and http://[::1]:80/a@b", "http://host:8080/a@b.tar and http://[::1]:80/a@b"),
        ("simplecache::s3://a:bcd@h/x.tar", "simplecache::s3://***@h/x.tar"),
        ("zip://x.tar::http://a:b@h/x.zip?key=c", "zip://x.tar::http://***@h/x.zip?***"),
        ("data.train=http://u:p@[::1]:80/x{0..3}.tar", "data.train=http://***@[::1]:80/x{0..3}.tar"),
        ("https://h/x.tar?a=1&X-Amz-Signature=abc&b=2", "https://h/x.tar?***"),
        ("https://h/x.tar?AWSAccessKeyId=AK&Signature=a%2Fb%3D&Expires=1", "https://h/x.tar?***"),
        ("https://h.blob.core/x.tar?sv=2022&sp=r&sig=a%2Bb%3D", "https://h.blob.core/x.tar?***"),
        ("https://h/x?key=abc: there is none", "https://h/x?***: there is none"),
        ("404, url='https://h/x?opaque' (url)", "404, url='https://h/x?***' (url)"),
        ("https://h/x#access_token=abc", "https://h/x#***"),
        ("s3://b/x-0000?.tar", "s3://b/x-0000?.tar"),  # a glob
        ("s3://b/x.tar?versionId=abc", "s3://b/x.tar?***"),
        ("GET /x.tar?sig=abc", "GET /x.tar?sig=***"),
        ("AccountName=a;AccountKey=YWJj/+==;x", "AccountName=a;AccountKey=***;x"),
        ("Authorization: Bearer abcdef.ghi-jkl", "Authorization: Bearer ***"),
        ("Authorization: Basic am9lOnB3", "Authorization: Basic ***"),
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
    monkeypatch.setenv("PGPASSWORD", "canary/one+two")
    monkeypatch.setenv("FSSPEC_S3", '{"key": "canarykey", "secret": "canary-three", "endpoint_url": "http://minio"}')
    monkeypatch.setenv("http_proxy", "http://joe:hunter2canary@proxy:3128")
    said = "canary%2Fone%2Btwo canarykey canary-three of http://minio, hunter2canary is no port; joe"
    assert redacted(said) == "*** *** *** of http://minio, *** is no port; joe"
    monkeypatch.setenv("SHORT_TOKEN", "word")
    monkeypatch.setenv("KEYBOARD", "qwertyuiop")
    assert redacted("a word of qwertyuiop") == "a word of qwertyuiop"


def test_what_the_environment_gives_to_a_tree_is_hidden(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", HEX)
    tree = compose("config", ["experiment=quickstart/autoencoder", "logger.project=${oc.env:WANDB_API_KEY}"])
    assert tree["logger"]["project"] == HEX and redacted(tree)["logger"]["project"] == "***"
    assert redacted({**tree, "logger": None}) == {**tree, "logger": None}


def test_the_terminal_shows_no_part_of_a_secret_on_the_command_line(monkeypatch: pytest.MonkeyPatch):
    words = ["train.py", "data.train=http://joe:hunter2canary@h:80/x.tar?list=folders&opaque=canary0000"]
    monkeypatch.setattr("sys.argv", words)
    out, errors = io.StringIO(), io.StringIO()
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", errors)
    hide_on_terminal()
    hide_on_terminal()
    print(words[1], "folders", "canary0000")
    try:
        int("hunter2canary")
    except ValueError:
        traceback.print_exc()
    assert out.getvalue() == "data.train=http://***@h:80/x.tar?*** folders ***\n"
    assert errors.getvalue().endswith("with base 10: '***'\n") and "Traceback" in errors.getvalue()


def test_what_the_wandb_client_copies_from_the_terminal_is_hidden_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("sys.argv", ["train.py", "data.train=s3://joe:hunter2canary@h/x.tar"])
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"],
                  ["remote", "add", "origin", "https://hunter2canary:x-oauth-basic@h/a"]):  # fmt: skip
        subprocess.run([*git, *words], check=True)
    monkeypatch.chdir(tmp_path)
    logger = wandb(tmp_path, "toy-0123abcd", "toy", "tests")
    logger.log_metrics({"a": 1.0}, 1)
    print("http://joe:hunter2canary@h/x.tar?sig=querycanary1")
    close([logger])
    files = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    held = [(path.name, word) for path in files for word in (b"hunter2canary", b"querycanary1")
            if word in path.read_bytes()]  # fmt: skip
    assert not held


def test_errors_about_shards_are_hidden_where_they_are_made():
    url = Url("http://joe:hunter2canary@h/x.tar?sig=querycanary1")
    assert f"{url} {url!r}" == "http://h/x.tar http://h/x.tar" and url.name == "x.tar"
    assert str(Url("http://h/x.tar?page=querycanary1")) == "http://h/x.tar?***"
    for error in (ShardError(f"{url.text}: gone"), pickle.loads(pickle.dumps(ShardError(url.text)))):
        assert "canary" not in str(error) and "http://***@h/x.tar?***" in str(error)
    with pytest.raises(ValueError, match=r"data\.train: http://\*\*\*@h/x\.tar was written down without its password"):
        expand("http://***@h/x.tar", "data.train")


@pytest.mark.parametrize(
    ("saved", "now", "same"),
    [
        ("http://***@h/x.tar?a=1&sig=***", "http://joe:new@h/x.tar?a=1&sig=other", True),  # as it was written before
        ("http://***@h/x.tar?***", "http://joe:new@h/x.tar?sig=other", True),
        ("http://***@h/x.tar?***", "http://joe:new@h/y.tar?sig=other", False),
        (["/***/x.tar", 1], ["/mounted-bucket/x.tar", 1], True),
        (["/***/x.tar", 1], ["/mounted-bucket/x.tar", 2], False),
        ("x", "y", False),
        (None, "x", False),
    ],
)
def test_what_was_saved_with_its_secrets_hidden_is_known_again(saved, now, same: bool):
    assert agrees(saved, now) == same


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
    with serving(shards) as server:
        for steps in (1, 2):  # the second resumes, under another signature
            address = (
                server.url.replace("://", "://joe:canary-of-joe@") + f"/train-00000.tar?any=canary-{steps}-00000000"
            )
            own = ("run=a", f"data.train={address}", f"data.validation={shards}/train-00000.tar")
            words = tiny("quickstart/autoencoder", tmp_path / "runs", *own, f"max_steps={steps}")
            monkeypatch.setattr("sys.argv", ["train.py", *(word for word in words if word != "~logger")])
            assert fit(compose("config", sys.argv[1:]), "a").finished
    said = "".join(capfd.readouterr())
    secrets = {**CANARIES, "password": "canary-of-joe", "signature": "canary-1-0", "the next": "canary-2-0"}
    assert not any(secret in said for secret in secrets.values())
    assert list((tmp_path / "runs" / "a" / "wandb").glob("offline-run-*/*.wandb"))
    for path in (tmp_path / "runs").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            found = [name for name, secret in secrets.items() if secret.encode() in content]
            assert not found, f"{path} holds {found}"
    assert "***/train-00000.tar" in (tmp_path / "runs/a/config.yaml").read_text()
