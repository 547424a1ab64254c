#!/usr/bin/env bash
# Checks and times the decode kernels on a machine with a CUDA GPU; under 9 minutes, nothing is installed or fetched.
#
#     OUT=results/gpu PYTHON=python3 scripts/gpu_bench.sh [options of gpu_bench.py]
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=src PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" scripts/gpu_bench.py --out "${OUT:-results/gpu}" "$@"
