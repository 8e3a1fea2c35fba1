"""Which samples of a run's data data= names: those held out, others, or those that were trained on."""

from ldm.config import meant
from ldm.data.module import ShardData

TRAINING = "training"  # of data=, in the place of shards


def samples_of(own: ShardData, named: str | None) -> ShardData | None:
    """The held-out samples of a run's data `own`, or those of the shards that data= names, or, where it names TRAINING,
    those that were trained on, without what filters removed. None where nothing is held out.
    """
    if named == TRAINING:
        return own.whole()
    shards = own.validation if named is None else meant("reference", named)
    return None if shards is None else own.over(shards, "data.validation" if named is None else "data")
