"""Make ldm/metrics/alignment_heads.safetensors: two linear heads that join EfficientNet-lite0 and MiniLM features.

    python scripts/dev/make_alignment_heads.py
    python scripts/dev/make_alignment_heads.py --dim 128 --out heads.safetensors

About 8 minutes on an idle core. Fitted on the training shards of data/quickstart alone (alignment_fit.py); the same
data and seed give the same file.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, description=__doc__, formatter_class=form)
    parser.add_argument("--data", type=Path, default=ROOT / "data" / "quickstart", help="folder with the shards")
    parser.add_argument("--out", type=Path, default=ROOT / "ldm" / "metrics" / "alignment_heads.safetensors")
    parser.add_argument("--dim", type=int, default=256, help="width of the common space")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from alignment_fit import make_heads  # torch

    make_heads(arguments.data, arguments.out, arguments.dim, arguments.seed)


if __name__ == "__main__":
    main()
