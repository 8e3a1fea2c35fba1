"""What a trainer is asked for is tried before anything is begun: each refusal is one line with the key."""

import pytest

from ldm.config import compose, instantiate, overriding
from ldm.device import mixed_precision
from ldm.run import Run, settle_precision
from ldm.training.trainer import check_trainer

COMMAND = ["experiment=quickstart/autoencoder", "~logger", "trainer.accelerator=cpu", "trainer.precision=32-true"]


def tried(*words: str) -> None:
    tree = compose("config", overriding([*COMMAND, *words]))
    check_trainer(tree["trainer"], instantiate({**tree["trainer"], "_partial_": True}, {}, "trainer"))


@pytest.mark.parametrize(
    "word",
    ["devices=[0,0]", "devices=[]", "devices=0", "devices=-2", "devices='2,3'", "devices=[5]", "devices=[-1]",
     "num_nodes=0", "accelerator=tpu", "accelerator=mps", "accelerator=hpu", "accelerator=xyz",
     "accelerator=null", "precision=transformer-engine", "precision=16-true", "precision=bf16-true",
     "precision=64-true", "precision=64",
     "precision=8", "precision=null", "strategy=deepspeed",
     "strategy=ddp_spawn", "strategy=xla", "strategy=nonsense", "strategy=single_xla", "strategy=null",
     "sync_batchnorm=3", "profiler=nonsense", "plugins=[x]", "benchmark=x", "gradient_clip_algorithm=xyz",
     "gradient_clip_algorithm=value", "log_every_n_steps=5",
     "gradient_clip_val=-1", "max_steps=3", "max_epochs=1", "fast_dev_run=true", "barebones=true", "logger=false"],
)  # fmt: skip
def test_what_is_not_there_or_makes_no_sense_is_a_line(word):
    with pytest.raises(ValueError, match=r"^trainer") as caught:
        tried(f"trainer.{word}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_a_run_has_a_trainer_and_says_which_key_is_its_own():
    for word in ("trainer=null", "~trainer"):
        with pytest.raises(ValueError, match=r"^trainer: cannot be left out"):
            tried(word)
    with pytest.raises(ValueError, match=r"^trainer\.max_steps: .*write max_steps="):
        tried("trainer.max_steps=3")
    with pytest.raises(ValueError, match=r"^trainer\.accumulate_grad_batches: .*write accumulation="):
        tried("trainer.accumulate_grad_batches=3")
    for key in ("precision", "devices", "num_nodes", "strategy"):
        with pytest.raises(ValueError, match=rf"^trainer\.{key}: cannot be left out"):
            compose("config", [*COMMAND[:2], f"~trainer.{key}"])


@pytest.mark.parametrize(
    "word",
    ["precision=16", "precision=bf16", "gradient_clip_algorithm=norm", "devices=auto", "devices=2", "profiler=simple"],
)
def test_what_lightning_takes_is_taken(word):
    tried(f"trainer.{word}")


def test_auto_is_what_the_machine_computes_in_and_stays_what_a_run_began_with(tmp_path):
    tree = compose("config", ["experiment=quickstart/autoencoder", f"runs_dir={tmp_path}"])
    assert tree["trainer"]["precision"] == "auto"
    settled = settle_precision(tree, "a")
    assert settled["trainer"]["precision"] == mixed_precision() and tree["trainer"]["precision"] == "auto"
    begun = {**settled, "trainer": {**settled["trainer"], "precision": "64-true"}}
    Run(tmp_path / "a", begun, {}).begin()
    assert settle_precision(tree, "a")["trainer"]["precision"] == "64-true"
    assert settle_precision({**tree, "overwrite": True}, "a")["trainer"]["precision"] == mixed_precision()
    assert settle_precision(begun, "b") == begun
