"""Toy runs trained once for all tests."""

import gc
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from omegaconf import DictConfig
from toys import train

from ldm.conditioners import lazy as unread
from ldm.config import compose, composing
from ldm.evaluation.yardsticks import Yardsticks, yardsticks_of
from ldm.run import Run


def pytest_collection_finish() -> None:
    """What the imports have made, millions of objects, is not looked through at every collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """For comparisons bit by bit, and for machines with few cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache_of_what_is_derived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is known of the tests' shards and encoders, which are gone afterwards, does not fill the user's cache."""
    own = tmp_path_factory.mktemp("derived")
    with (
        patch("ldm.data.derived.cache_folder", return_value=own),
        patch.object(unread, "cache_folder", return_value=own),
    ):
        yield


@pytest.fixture(scope="session", autouse=True)
def each_tree_composed_once() -> Iterator[None]:
    """Hydra takes 0.2 s for a tree, and most are asked for again under other names of folders, which it does not see.

    Those with plugins are composed each time: their tests write conf/ anew.
    """
    compose_by_hydra, alone = composing._composed, composing.search_path()

    @cache
    def remembered(name: str, overrides: tuple[str, ...]) -> DictConfig:
        return compose_by_hydra(name, list(overrides))

    def composed(name: str, overrides: list[str]) -> DictConfig:
        plugins = composing.search_path() != alone
        return compose_by_hydra(name, overrides) if plugins else remembered(name, tuple(overrides))

    with patch.object(composing, "_composed", composed):
        yield


@pytest.fixture(scope="session")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained toy autoencoder with its latent statistics. Not to be changed."""
    return train("quickstart/autoencoder", tmp_path_factory.mktemp("first_stage"))


@pytest.fixture(scope="session")
def other_first_stage(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Another one of the same shapes. Not to be changed."""
    return train("quickstart/autoencoder", tmp_path_factory.mktemp("other_first_stage"), "seed=1", "max_steps=1")


@pytest.fixture(scope="session")
def diffusion(first_stage: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained toy diffusion model on `first_stage`. Not to be changed."""
    folder = tmp_path_factory.mktemp("diffusion")
    return train("quickstart/diffusion", folder, f"first_stage={first_stage.folder}")


@pytest.fixture(scope="session")
def classifier(first_stage: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained toy classifier on noisy latents of `first_stage`. Not to be changed."""
    folder = tmp_path_factory.mktemp("classifier")
    return train("quickstart/classifier", folder, f"first_stage={first_stage.folder}")


@pytest.fixture(scope="session")
def yardsticks() -> Yardsticks:
    """What ``metric.size=32`` asks of an evaluation, loaded once."""
    return yardsticks_of(compose("evaluate", ["model=x", "metric.size=32"]), torch.device("cpu"))


@pytest.fixture
def train_diffusion(first_stage: Run, tmp_path: Path) -> Callable[..., Run]:
    """``train_diffusion(*overrides, run=name)`` on the session's first stage, in the test's own folder."""

    def start(*more: str, run: str = "diffusion") -> Run:
        return train("quickstart/diffusion", tmp_path, f"first_stage={first_stage.folder}", *more, run=run)

    return start


@pytest.fixture
def train_autoencoder(tmp_path: Path) -> Callable[..., Run]:
    """``train_autoencoder(*overrides, run=name)`` in the test's own folder."""

    def start(*more: str, run: str = "autoencoder") -> Run:
        return train("quickstart/autoencoder", tmp_path, *more, run=run)

    return start
