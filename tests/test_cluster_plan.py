"""The plan of a training on many GPUs: what its formulas must hold to, counts of real networks, and its command."""

import csv
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ldm.asked import check_plan
from ldm.config import compose
from ldm.errors import UserError
from ldm.evaluation.cluster_formulas import (
    Cluster,
    Load,
    bytes_sent,
    communication_seconds,
    efficiency,
    held_bytes,
    largest_batch,
    step_seconds,
    update_seconds,
)
from ldm.evaluation.cluster_plan import cluster_plan, counted, passes

CLUSTER = Cluster(300e12, 0.4, 80e9, 2e12, 300e9, 50e9, 1e-5, 8, 0.0)
LOAD = Load(10**9, 0, 2e12, 2, 1, 1e9, 5 * 10**7)
RANKS = (1, 2, 8, 16, 64, 256)


@pytest.mark.parametrize("ranks", RANKS)
def test_a_ring_sends_what_it_has_to(ranks):
    share = (ranks - 1) / ranks
    assert bytes_sent("ddp", ranks, gradients=100.0, gathered=7.0) == pytest.approx(2 * share * 100)
    assert bytes_sent("fsdp", ranks, gradients=100.0, gathered=50.0) == pytest.approx(share * (2 * 50 + 100))
    assert bytes_sent("fsdp", ranks, 100.0, 50.0) == bytes_sent("ddp", ranks, 100.0, 0.0), "bf16 weights cost no more"


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_efficiency_falls_with_the_ranks_and_one_has_no_communication(strategy, overlap):
    cluster = replace(CLUSTER, overlap=overlap)
    assert communication_seconds(cluster, strategy, 1, LOAD) == 0
    found = [efficiency(cluster, strategy, ranks, 8 * ranks, LOAD) for ranks in (1, 8, 16, 64, 256)]
    alone = update_seconds(cluster, strategy, 1, LOAD)
    assert found[0] == pytest.approx(1 / (1 + alone / (8 * LOAD.flop / 120e12)))
    if strategy == "ddp":  # under fsdp the update is shared out, which may be worth more than a few ranks' messages
        assert found == sorted(found, reverse=True)
    assert found[1:] == sorted(found[1:], reverse=True) and found[1] > found[-1] and all(0 < x <= 1 for x in found)


def test_a_fixed_batch_over_more_ranks_is_faster_and_less_efficient():
    seconds = [step_seconds(CLUSTER, "ddp", ranks, 2048, LOAD) for ranks in RANKS]
    shares = [efficiency(CLUSTER, "ddp", ranks, 2048, LOAD) for ranks in RANKS]
    assert seconds == sorted(seconds, reverse=True) and shares == sorted(shares, reverse=True)


def test_what_hides_behind_the_backward_pass_costs_nothing():
    hidden = replace(CLUSTER, overlap=1.0, latency=0.0)
    heavy = replace(LOAD, flop=1e18)
    step = step_seconds(hidden, "ddp", 64, 64, heavy)
    assert step == pytest.approx(1e18 / 120e12 + update_seconds(hidden, "ddp", 64, heavy))
    assert step_seconds(CLUSTER, "ddp", 64, 64, heavy) > step


def test_a_node_is_quicker_than_its_network_and_faster_links_never_slow_down():
    within, beyond = (communication_seconds(CLUSTER, "ddp", ranks, LOAD) for ranks in (8, 9))
    assert beyond > 5 * within
    for key in ("link", "network"):
        faster = replace(CLUSTER, **{key: 2 * getattr(CLUSTER, key)})
        assert communication_seconds(faster, "fsdp", 64, LOAD) <= communication_seconds(CLUSTER, "fsdp", 64, LOAD)


def test_sharding_shares_out_what_every_rank_would_hold():
    assert held_bytes("ddp", 64, LOAD) == held_bytes("ddp", 1, LOAD) == 20 * LOAD.trained
    gathered = 2 * 2 * LOAD.largest_block
    assert held_bytes("fsdp", 10, LOAD) - gathered == pytest.approx(2 * LOAD.trained)
    assert largest_batch(CLUSTER, "fsdp", 64, LOAD) > largest_batch(CLUSTER, "ddp", 64, LOAD) == 60
    assert largest_batch(replace(CLUSTER, memory=10e9), "ddp", 1, LOAD) == 0


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 8, 1, bias=False), nn.Conv2d(8, 3, 1, bias=False)

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return self.two(torch.sin(self.one(x)))


def test_flop_and_activations_are_those_of_the_arithmetic_done_by_hand():
    with FakeTensorMode():
        network = Product()
    flop, kept = passes(network, 3, 4, {})
    product = 2 * 3 * 8 * 16
    assert flop == 2 * product + 3 * product, "forward; both gradients of the second, the weights' of the first"
    assert kept == 2 * 16 * (3 + 8 + 8), "input, the sine's argument, its value: bf16"


def test_the_command_writes_what_it_shows(tmp_path):
    words = ["experiments=[ldm/cin256_v2]", "gpus=[1,8,256]", f"out={tmp_path}"]
    models, rows, folder = cluster_plan(compose("cluster_plan", words))
    assert round(models[0]["trained_m"], 2) == 401.43, "400.92 M of the network, 0.51 M of its classes"
    assert [(row["strategy"], row["gpus"]) for row in rows] == [(s, n) for s in ("ddp", "fsdp") for n in (1, 8, 256)]
    assert len(list(csv.DictReader((folder / "cluster_plan.csv").open()))) == 6
    assert (folder / "cluster_plan.png").exists() and (folder / "models.csv").exists()
    for row in rows:
        assert row["days"] * 86400 * row["samples_per_s"] == pytest.approx(1e9)
        assert row["shards_gb_s"] == pytest.approx(row["samples_per_s"] * 1e5 / 1e9)


def test_encoders_in_folders_are_counted_without_them():
    load, cached = counted(compose("config", ["experiment=ediffi/base64"], complete=False))
    projections = 1024 * (4096 + 768 + 768)
    assert load.trained == pytest.approx(710.71e6 + projections, rel=1e-4) and load.frozen == 0
    assert cached == 2 * (113 * 4096 + (77 + 1) * 768 + 2 * 768), "tokens of both texts, vectors, the image; no latents"
    assert 1e11 < load.flop < 1e13 and load.largest_block < load.trained / 5


@pytest.mark.parametrize(
    "words",
    ["gpus=[0]", "gpus=[]", "gpus=[1000000000000000000000]", "mfu=0", "mfu=1.5", "strategies=[zero]", "per_gpu=0",
     "price=-1", "price=nan", "latency_us=nan", "tflops=inf", "samples=inf", "experiments=[]", f"out={__file__}"],
)  # fmt: skip
def test_numbers_that_cannot_be_are_named(words):
    with pytest.raises(UserError, match=words.partition("=")[0]):
        check_plan(compose("cluster_plan", [words]))
