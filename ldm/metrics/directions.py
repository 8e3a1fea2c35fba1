"""Which way a metric is better; names are rows' keys, ``METRIC/BACKBONE`` with whatever stands around them."""

LARGER = frozenset(("precision", "recall", "is", "alignment_score", "clip_score", "samples_per_second", "psnr", "ssim"))


def larger_is_better(name: str) -> bool:
    """Whether the larger of two values of `name` is the better one: ``quality/recall/...``, ``psnr``."""
    return not LARGER.isdisjoint(name.split("/"))
