"""diffusers' VQGAN example as a peer of our first stages (scripts/dev/diffusers_vqgan.py)."""

import csv
import json
import sys
from pathlib import Path

import pytest
import torch

from ldm.errors import UserError
from ldm.results.rows_file import write

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts" / "dev"))
import diffusers_vqgan as vqgan


def peer(name: str) -> vqgan.Peer:
    return vqgan.Peer(name, {**vqgan.KEYS, "overrides": "data.batch_size=2"}, 0)


@pytest.mark.parametrize("name", vqgan.PEERS)
def test_generator_and_discriminator_take_turns(name: str):
    trained = peer(name)
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    parts = {0: trained.network, 1: trained.discriminator}
    for turn, own in parts.items():
        before = {key: [each.clone() for each in part.parameters()] for key, part in parts.items()}
        trained.step(image.clone())
        trained.steps += 1
        changed = {
            key: any(not torch.equal(a, b) for a, b in zip(before[key], part.parameters(), strict=True))
            for key, part in parts.items()
        }
        assert changed == {turn: True, 1 - turn: False}, f"step {turn} is that of {type(own).__name__}"
    assert trained.reconstruct(image * 2 - 1).shape == image.shape
    assert not any(each.requires_grad for each in trained.vgg.parameters())


def test_the_adversarial_gradient_is_as_long_as_that_of_the_features(monkeypatch: pytest.MonkeyPatch):
    trained = peer("group")
    trained.mixed = False
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    last = trained.network.decoder.conv_out.weight

    def gradient(factor: float) -> torch.Tensor:
        output, commitment = trained.network(image, return_dict=False)
        monkeypatch.setattr(trained, "discriminator", lambda x: factor * x.square().mean().sqrt())
        loss = trained.generated(image, output, commitment)
        return torch.autograd.grad(loss, last)[0]

    torch.testing.assert_close(gradient(1.0), gradient(100.0), rtol=1e-3, atol=1e-6)


def test_what_cannot_be_compared_is_refused_before_anything_trains(tmp_path: Path):
    rows = tmp_path / "rows.csv"
    settings = {"device": "cpu", "device_seconds": 60, "num_samples": 506, "overrides": ""}
    write(rows, [{"row": "ours", "seed": 0, "settings": json.dumps(settings), "l1": 0.1}])
    for word, said in {
        "rows=theirs": "'theirs' is none of ours, spatial, group, fast", "seeds=one": "seeds=one: whole numbers",
        "device_seconds=0": "at least 1 second", "results=rows.txt": "ends in .csv",
        f"results={rows}": "its rows ours-0 were measured with .*: 60,.*; choose another results=",
        "row=ours": "row: no such key",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=said):
            vqgan.main([word])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Frechet distance from")
def test_ours_and_a_peer_are_measured_alike_and_not_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    own = ["rows=ours,group", "device_seconds=2", "num_samples=8", f"runs_dir={tmp_path}"]
    own += [f"results={tmp_path}/rows.csv", "overrides=data.batch_size=4 lr.warmup_steps=0"]
    assert vqgan.main(own) == 0
    text = (tmp_path / "rows.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert [row["row"] for row in rows] == ["ours", "group"]
    for row in rows:
        assert int(row["steps"]) > 0 and float(row["device_seconds"]) > 0 and 0 < float(row["l1"]) < 2
    assert "lpips_alex" in capsys.readouterr().out
    assert vqgan.main(own) == 0 and (tmp_path / "rows.csv").read_text() == text
