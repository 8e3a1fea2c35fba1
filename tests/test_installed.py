"""What pip installs is whole, has no name but ldm, and says its commands as they are called there."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from toys import ROOT, tiny

from ldm import installed

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "train.py", "sample.py", "conf", "data", "ldm", "scripts")
TEMPLATES = ("style.css", "page.html.j2", "items.html.j2")


def test_every_script_is_a_command():
    files = [ROOT / "train.py", ROOT / "sample.py", *ROOT.glob("scripts/*.py")]
    assert set(PROJECT["scripts"]) == {f"ldm-{path.stem.replace('_', '-')}" for path in files}
    assert set(PROJECT["scripts"].values()) == {"ldm.installed:run"}


def test_messages_name_the_distribution_and_its_extras():
    assert PROJECT["name"] == installed.DISTRIBUTION
    texts = [path.read_text() for folder in ("ldm", "data", "scripts") for path in ROOT.glob(f"{folder}/**/*.py")]
    named = {match for text in texts for match in re.findall(r"pip install '([\w-]+)\[(\w+)\]'", text)}
    assert {name for name, _ in named} == {installed.DISTRIBUTION}
    assert {extra for _, extra in named} <= PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize(
    ("text", "called"),
    [
        ("python train.py -m x=1,2", "ldm-train -m x=1,2"),
        ("no cache there; scripts/encode.py out=c writes one", "no cache there; ldm-encode out=c writes one"),
        ("torchrun --nnodes=2 scripts/encode.py out=c", "torchrun --nnodes=2 -m ldm.scripts.encode out=c"),
        ("torchrun --nproc_per_node=8 train.py", "torchrun --nproc_per_node=8 -m ldm.train"),
        ("python scripts/make_shards.py source=x", "ldm-make-shards source=x"),
        ("/home/me/train.py: a file", "/home/me/train.py: a file"),
        ("my.py is not ours", "my.py is not ours"),
    ],
)  # fmt: skip
def test_commands_are_told_as_they_are_called(monkeypatch, text, called):
    assert installed.spoken(text) == text
    monkeypatch.setattr(installed, "IN_CHECKOUT", False)
    assert installed.spoken(text) == called


def test_the_folder_of_a_checkout_is_the_package_and_no_second_one():
    code = (
        "import data.errors, ldm.data.errors, ldm.data.fields.caption as own; from data.fields import caption; "
        "import data.errors as again; assert again is ldm.data.errors and caption is own; "
        "assert again.__spec__.name == again.BadSample.__module__ == 'ldm.data.errors'; "
        "import sys; assert all(m is sys.modules['ldm.' + n] for n, m in sys.modules.items() if n.startswith('data.'))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built, without network, of a copy: the build leaves folders behind."""
    place = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, place / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, place / name)
    words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={place}", place]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    (found,) = place.glob("*.whl")
    return found


@pytest.mark.slow
def test_a_wheel_holds_everything_in_one_package(wheel: Path):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"ldm", installed.DISTRIBUTION.replace("-", "_")}
    held = {name.removeprefix("ldm/") for name in names}
    expected = [path for place in ("conf", "data", "scripts") for path in ROOT.glob(f"{place}/**/*")]
    expected = [path.relative_to(ROOT) for path in expected if path.is_file() and path.suffix != ".pyc"]
    assert {str(path) for path in expected if path.parts[:2] != ("scripts", "dev")} <= held
    assert {"train.py", "sample.py", "py.typed", *(f"report/{name}" for name in TEMPLATES)} <= held
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "/dev/" in name or "__pycache__" in name]


@pytest.mark.slow
def test_a_wheel_trains_and_samples_from_elsewhere(wheel: Path, tmp_path: Path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python, shared = tmp_path / "env" / "bin" / "python", sysconfig.get_paths()["purelib"]
    words = ["--python", python, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    (site / "shared.pth").write_text(f"{shared}\n")
    here = tmp_path / "here"  # with a package data of the user's own, which is not ours
    (here / "data").mkdir(parents=True)
    (here / "data" / "__init__.py").write_text("raise SystemExit('this is not the package')")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str | Path) -> str:
        done = subprocess.run(words, cwd=here, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    names = ("data", "train", "sample", "scripts", "conf")
    code = f"from importlib.util import find_spec; print([name for name in {names} if find_spec(name)])"
    assert run(python, "-P", "-c", code).strip() == "[]"
    own = ("data.train=", "data.validation=")  # left out: the built-in shards, which the wheel has
    command = tmp_path / "env" / "bin"
    for experiment, more in (("autoencoder", []), ("diffusion", ["first_stage=runs/quickstart-autoencoder"])):
        words = tiny(f"quickstart/{experiment}", Path("runs"), *more)
        run(command / "ldm-train", *(word for word in words if not word.startswith(own)))
    assert "2 images in samples/" in run(
        command / "ldm-sample", "model=runs/quickstart-diffusion", "prompt=red heart", "num_images=2", "num_steps=2"
    )
    assert "ldm-trainer 0" in (here / "runs" / "quickstart-diffusion" / "lineage.json").read_text()
    assert "ldm-evaluate model=" in run(command / "ldm-evaluate", "--help")
