"""--help and --cfg of every entry point: examples that compose, keys with their comments, no torch, nothing written."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_signatures import run_all

from ldm.config import CONF, answered, compose, expand_sweep, groups
from ldm.config.comments import comments, header, with_comments
from ldm.config.registry import OVERRIDES, root
from ldm.errors import UserError
from ldm.launching.choice import take_launcher

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ["train.py", "sample.py", *(f"scripts/{path.name}" for path in sorted((ROOT / "scripts").glob("*.py")))]
ROOTS = ("config", "sample", "evaluate", "launch", "sweep_f", "tasks_report", "style_sheet", "score_shards")
DEV = (
    "benchmark",
    "chaos",
    "gpu_check",
    "make_alignment_heads",
    "make_prompt_set",
    "make_quickstart_data",
    "wandb_page",
)
COMMANDS = [*SCRIPTS, *(f"scripts/dev/{name}.py" for name in DEV)]
NO_TREE = ("convert", "fetch_pretrained", "make_shards", "make_idx_shards", "map_classes", *DEV)
TEXT = """\
# Of the file.
# More.
_target_: a.B
plain: 1
beside: "#1"  # has a hash
# above
# it
longer: [1, 2]
flow: {one: 1}  # of one
flows: {one: 1, two: 2}  # of all
outer:
  inner: 3  # of the inner
defaults:
  - group: null  # of a group
"""


def about(path: str) -> str:
    return ast.get_docstring(ast.parse((ROOT / path).read_text()), clean=False)


def tree_of(path: str) -> str:
    return {"train": "config", "doctor": "config"}.get(Path(path).stem, Path(path).stem)


def test_comments_are_those_beside_a_key_and_above_it():
    assert header(TEXT) == ["Of the file.", "More."]
    assert comments(TEXT) == {
        ("beside",): "has a hash", ("longer",): "above it", ("flow", "one"): "of one", ("flows",): "of all",
        ("outer", "inner"): "of the inner", ("defaults", "group"): "of a group",
    }  # fmt: skip


def test_comments_that_are_put_back_change_nothing_of_the_tree():
    tree = yaml.safe_load(TEXT)
    shown = with_comments(tree, {**comments(TEXT), ("outer",): "words " * 40}, 80)
    assert yaml.safe_load(shown) == tree
    assert "beside: '#1'" in shown and "inner: 3      # of the inner" in shown and "longer: [1, 2]" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_help_is_there_at_once_and_begins_with_two_examples():
    run_all([[path, "--help"] for path in COMMANDS], refused=False, lines="> 9")
    for path in COMMANDS:
        first, examples, *_ = about(path).strip().split("\n\n")
        assert len(first.splitlines()) <= 2, path
        words = [shlex.split(line) for line in examples.splitlines()]
        assert len(words) >= 2 and all(path in line for line in words), path
        for line in words if Path(path).stem not in NO_TREE else ():
            given = line[line.index(path) + 1 :]
            if not given[:1] or given[0].startswith("verify="):
                continue
            jobs = expand_sweep(take_launcher(given[1:])[1]) if given[0] == "-m" else [(given, [])]
            assert all(compose(tree_of(path), job, complete=False) for job, _ in jobs)


@pytest.mark.parametrize("path", [path for path in SCRIPTS if Path(path).stem not in NO_TREE])
def test_help_has_every_key_with_its_comment(path):
    name = tree_of(path)
    text, said = answered(name, about(path), ["--help"]), comments((CONF / f"{name}.yaml").read_text())
    assert text.startswith(about(path).strip().splitlines()[0])
    flat = " ".join(text.split())
    for key, comment in said.items():
        assert " ".join(comment.split()) in flat, key
    shown = {part for key in re.findall(r"^  ([\w.]+)=", text, re.M) for part in (key, key.partition(".")[0])}
    assert shown >= set(yaml.safe_load((CONF / f"{name}.yaml").read_text())) - {
        "defaults", "guidance"
    }  # fmt: skip
    assert ("\ngroups\n" in text) == bool(root(name)[1]) == ("--help=GROUP" in text)


def test_help_of_a_group_has_every_choice_with_its_keys_and_comments():
    for group, options in groups().items():
        name = next(n for n in ROOTS if f"- {group}:" in (CONF / f"{n}.yaml").read_text())
        text = answered(name, "", [f"--help={group}"])
        flat = " ".join(text.split())
        for option in options:
            leaf = (CONF / group / f"{option}.yaml").read_text()
            assert f"{group}={option}\n" in f"{text}\n" or f"{group}=[{option}]\n" in f"{text}\n"
            assert all(line in flat for line in (" ".join(each.split()) for each in header(leaf)))
            if group not in OVERRIDES:
                assert all(" ".join(said.split()) in flat for said in comments(leaf).values())
    assert "network.patch_size=4\n" in answered("config", "", ["--help=network"])


def test_help_of_words_is_their_tree_with_the_comments_of_all_that_it_is_made_of(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    words = ["experiment=ldm/cin256_v2", "callback_add=[code_revival]", "network.channels=64"]
    text = answered("config", "", [*words, "--help"])
    assert yaml.safe_load(text) == compose("config", words, complete=False)
    assert "# python train.py experiment=ldm/cin256_v2" in text  # the experiment's own
    assert re.search(r"^max_steps: 178000 +# optimizer steps$", text, re.M)
    for said in (
        "of the short side",
        "401 M parameters",
        "downsampling factors at which it attends",
        "used less often",
    ):
        assert said in text  # of the root, of the head of a part, of a key of it, of a part of several


@pytest.mark.parametrize("words", [["--cfg"], ["--cfg", "job"], ["-c", "job", "--resolve"], ["--cfg=job"]])
def test_cfg_prints_the_tree_and_nothing_is_run(words, tmp_path, capsys):
    import train

    given = ["experiment=ldm/ffhq", f"runs_dir={tmp_path}/runs"]
    assert train.main([*given[:1], *words, *given[1:]]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == compose("config", given, complete=False)
    assert not list(tmp_path.iterdir())


def test_cfg_of_a_sweep_is_a_document_for_each_job():
    text = answered("config", "", ["-m", "experiment=sweep/autoencoder", "autoencoder=f4,f8", "--cfg"])
    first, second = yaml.safe_load_all(text)
    assert (first["autoencoder"], second["autoencoder"]) != (second["autoencoder"], first["autoencoder"])
    assert text.startswith("# sweep-autoencoder-f4\n")


def test_a_wrong_password_of_an_address_is_not_shown():
    text = answered("config", "", ["experiment=ldm/ffhq", "data.train=https://me:pass@there/a.tar", "--cfg"])
    assert "pass@" not in text and "there/a.tar" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--help=networks"], "--help=networks: no such group; did you mean 'network'"),
        (["--help", "callback"], "callback: what there is in a group is told by --help=callback"),
        (["--help", "network=ditt"], "network=ditt: no such option; did you mean 'dit'"),
        (["--cfg", "hydra"], "--cfg hydra: there is the run's own tree alone"),
        (["--cfg", "seed=x"], "seed='x': expected int"),
    ],
)
def test_what_cannot_be_shown_is_told(words, said):
    with pytest.raises(UserError, match=re.escape(said)):
        answered("config", "", words)


def test_words_that_ask_for_neither_are_run():
    assert answered("config", "", ["experiment=ldm/ffhq", "run=job"]) is None
    assert answered("sample", "", ["prompt=--help", "model=x"]) is None


def test_what_has_to_be_given_is_shown_as_such():
    assert "members: ???" in answered("ensemble", "", ["out=x.yaml", "--cfg"]).replace("'", "")
    assert "path: ???" in answered("config", "", ["conditioner=[t5]", "--help"]).replace("'", "")


def test_help_into_a_pipe_that_is_closed_says_nothing_more():
    words = f"{shlex.quote(sys.executable)} train.py experiment=ldm/ffhq --help | head -n 1"
    done = subprocess.run(words, shell=True, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("# python train.py experiment=ldm/ffhq") and not done.stderr
