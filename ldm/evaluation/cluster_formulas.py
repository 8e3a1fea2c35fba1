"""What a training costs on many GPUs, by formula: bytes between ranks, memory, time of a step, days, storage.

All-reduce, all-gather and reduce-scatter are those of a ring, which send the least that can be (Patarasuk and Yuan
2009); sharding is ZeRO stage 3 (Rajbhandari et al., arXiv 1910.02054, section 7). Nothing here is measured.
"""

from dataclasses import dataclass

GRADIENT_BYTES = 4  # of a weight: gradients are reduced in fp32 under both strategies (ldm.training.sharded)
ADAM_BYTES = 8  # of a weight: two moments in fp32


@dataclass(frozen=True)
class Cluster:
    """A kind of GPU and how several are connected; bytes and FLOP are per second. The keys of conf/cluster_plan.yaml.

    `mfu` is the share of the peak that a step's arithmetic reaches on one GPU, `overlap` the share of the backward pass
    behind which communication can hide. `link` is what a GPU sends to others of its node, `network` what a node sends
    to others, each in one direction; `latency` is the time of one message.
    """

    flops: float
    mfu: float
    memory: float
    memory_bandwidth: float
    link: float
    network: float
    latency: float
    gpus_per_node: int
    overlap: float


@dataclass(frozen=True)
class Load:
    """What a model asks for: numbers of weights, FLOP of a sample (forward and backward), bytes.

    `gathered_bytes` is of one weight while it is computed with; `averages` the number of moving averages;
    `activations` the bytes that a sample leaves for the backward pass, and `largest_block` the weights of the block
    that has most.
    """

    trained: int
    frozen: int
    flop: float
    gathered_bytes: int
    averages: int
    activations: float
    largest_block: int


def bytes_sent(strategy: str, ranks: int, gradients: float, gathered: float) -> float:
    """Bytes that each rank sends in a step: `gradients` are those of all weights, `gathered` the weights themselves.

    ddp all-reduces gradients: 2 (n - 1) / n of them. fsdp gathers weights for the forward and again for the backward
    pass and reduces gradients to the rank of each row: (n - 1) / n of two times the weights and of the gradients.
    """
    share = (ranks - 1) / ranks
    return share * (2 * gradients if strategy == "ddp" else 2 * gathered + gradients)


def communication_seconds(cluster: Cluster, strategy: str, ranks: int, load: Load) -> float:
    """The time of a step's collectives, if nothing hides it.

    Within a node each GPU sends over its own link. Beyond it a ring enters and leaves each node once for each of its
    network adapters: all bytes of a rank's ring pass the node's network. A ring's latency is that of its messages, two
    times around for an all-reduce, and once each for a gather, a gather and a reduce-scatter.
    """
    if ranks == 1:
        return 0.0
    sent = bytes_sent(strategy, ranks, GRADIENT_BYTES * load.trained, load.gathered_bytes * load.trained)
    slowest = cluster.link if ranks <= cluster.gpus_per_node else min(cluster.link, cluster.network)
    rounds = 2 if strategy == "ddp" else 3
    return sent / slowest + rounds * (ranks - 1) * cluster.latency


def held_bytes(strategy: str, ranks: int, load: Load) -> float:
    """Bytes of weights, gradients, Adam's moments and averages on a GPU, in fp32; fsdp has a share of each.

    Frozen weights are on every GPU. What is gathered is two blocks: the one in use and the one that comes next.
    """
    each = 4 + GRADIENT_BYTES + ADAM_BYTES + 4 * load.averages
    if strategy == "ddp":
        return each * load.trained + 4 * load.frozen
    return each * load.trained / ranks + 4 * load.frozen + 2 * load.gathered_bytes * load.largest_block


def update_seconds(cluster: Cluster, strategy: str, ranks: int, load: Load) -> float:
    """The time of optimizer and averages, which is that of reading and writing memory.

    Read: weight, gradient, both moments, averages; written: all of these but the gradient.
    """
    traffic = (4 + ADAM_BYTES + 4 * load.averages) * 2 + GRADIENT_BYTES
    return traffic * load.trained / (1 if strategy == "ddp" else ranks) / cluster.memory_bandwidth


def step_seconds(cluster: Cluster, strategy: str, ranks: int, batch_size: int, load: Load) -> float:
    """The time of a step of `batch_size` samples over `ranks` GPUs: arithmetic, what no arithmetic hides, update."""
    arithmetic = load.flop * batch_size / ranks / (cluster.flops * cluster.mfu)
    hidden = cluster.overlap * arithmetic * 2 / 3  # two of three parts of the FLOP are backward
    exposed = max(0.0, communication_seconds(cluster, strategy, ranks, load) - hidden)
    return arithmetic + exposed + update_seconds(cluster, strategy, ranks, load)


def efficiency(cluster: Cluster, strategy: str, ranks: int, batch_size: int, load: Load) -> float:
    """Samples a second and GPU, over those of the arithmetic alone."""
    arithmetic = load.flop * batch_size / ranks / (cluster.flops * cluster.mfu)
    return arithmetic / step_seconds(cluster, strategy, ranks, batch_size, load)


def largest_batch(cluster: Cluster, strategy: str, ranks: int, load: Load) -> int:
    """Samples whose activations fit beside what a GPU holds; 0 where not one does."""
    return max(0, int((cluster.memory - held_bytes(strategy, ranks, load)) // load.activations))
