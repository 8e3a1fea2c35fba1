"""Group: several callbacks as one, hook by hook."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.demos.boring_classes import BoringModel

from ldm.training.callbacks.group import HOOKS, Group, members


def heard_of(callback_class: type, name: str, heard: list) -> pl.Callback:
    callback = callback_class()
    for hook in HOOKS:
        if hook in vars(callback_class):
            setattr(callback, hook, lambda *a, hook=hook, **k: heard.append((name, hook, len(a) + len(k))))
    return callback


class All(pl.Callback):
    pass


for hook in HOOKS:
    setattr(All, hook, lambda self, *a, **k: None)


class Steps(pl.Callback):
    def on_train_batch_start(self, *_):
        pass

    def on_train_batch_end(self, *_):
        pass


def fit(callbacks: list[pl.Callback]) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu", max_steps=3, limit_val_batches=1, callbacks=callbacks, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(BoringModel())
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_the_members_of_a_group_hear_what_they_would_hear_alone():
    alone, grouped = [], []
    fit([heard_of(All, "first", alone), heard_of(Steps, "second", alone), heard_of(All, "third", alone)])
    fit([Group([heard_of(All, "first", grouped), heard_of(Steps, "second", grouped), heard_of(All, "third", grouped)])])
    assert [heard for heard in alone if heard[0] == "second"]
    assert {"setup", "on_fit_start", "on_before_zero_grad", "on_validation_end", "teardown"} <= {h[1] for h in alone}
    assert grouped == alone


def test_a_group_asks_no_member_at_a_hook_that_it_leaves_alone():
    for group in (Group([Steps(), Steps()]), Group([Group([Steps()])])):
        assert sorted(hook for hook in HOOKS if hook in vars(group)) == ["on_train_batch_end", "on_train_batch_start"]


@pytest.mark.filterwarnings("ignore")
def test_the_members_of_groups_are_found_one_by_one():
    first, second, third = Steps(), Steps(), All()
    trainer = fit([Group([first, Group([second])]), third])
    assert [callback for callback in members(trainer) if isinstance(callback, Steps | All)] == [first, second, third]
