"""The sweep over f: first stage, latent statistics, diffusion and its quality, for each downsampling factor.

    python scripts/sweep_f.py f=[1,2,4,8]
    python scripts/sweep_f.py f=[4,8] autoencoder_overrides="max_steps=5000" diffusion_overrides="max_steps=5000"

Each training is a process of its own; stopped or killed and started again, the sweep goes on where it was.
Curves of KID against steps and against samples/s: runs/sweep_f/*.csv, *.png and W&B.
"""

from ldm.config import compose, guarded, helped


def main(arguments: list[str]) -> int:
    """Train and measure what is not done yet. Exit status 3 if a training run was stopped and saved."""
    if helped("sweep_f", __doc__, arguments):
        return 0
    tree = compose("sweep_f", arguments)
    from ldm.sweep.sweep_f import sweep_f

    folder = sweep_f(tree)
    if folder is None:
        return 3
    print(f"look at {folder}/quality_over_steps.png and {folder}/quality_over_speed.png")
    return 0


if __name__ == "__main__":
    guarded(main)
