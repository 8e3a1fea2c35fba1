#!/bin/sh
# What a GPU gets of this project, measured in at most ten minutes; see gpu_check.py. The same words again go on.
cd "$(dirname "$0")/../.." || exit 1
[ -x .venv/bin/python ] && exec .venv/bin/python scripts/dev/gpu_check.py "$@"
exec python scripts/dev/gpu_check.py "$@"
