"""Loading: from tar shards on disk to batches, against webdataset."""

from benchmarks.tar_iteration import iteration


def run(options: dict) -> None:
    """Print the suite's tables."""
    iteration(options)
