"""Write latents of a first stage, and embeddings of frozen encoders, for all samples of some shards: a cache.

    python scripts/encode.py first_stage=runs/quickstart-autoencoder data=quickstart out=cache conditioner=[text]
    torchrun --nproc_per_node=8 scripts/encode.py first_stage=runs/kl_f8 data=shards data.train=/data/*.tar out=cache

Training reads them with data.cache=DIR in the place of images. There is a file for each shard, and those that are there
are left as they are: stopped and started again, with any number of processes, it goes on.
"""

from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Encode what is not encoded yet."""
    if helped("encode", __doc__, arguments):
        return 0
    tree = compose("encode", arguments)
    from ldm.latent_cache import encode

    encode(tree)
    return 0


if __name__ == "__main__":
    guarded(main)
