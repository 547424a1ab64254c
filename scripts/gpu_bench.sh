#!/usr/bin/env bash
# Everything that needs a machine with a CUDA GPU, in one go of under 9 minutes; nothing is installed or fetched.
#
#     OUT=results/gpu PYTHON=python3 scripts/gpu_bench.sh
#
# Each part writes its JSON as it goes and is cut off when its time is up; the others run whatever happens to it.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=src PYTHONUNBUFFERED=1
OUT=${OUT:-results/gpu} PYTHON=${PYTHON:-python3}
failed=()

part() { # NAME SECONDS COMMAND...
    echo "== $1"
    timeout "$2" "${@:3}" || failed+=("$1 ($?)")
}
bench() { # NAME SECONDS OPTIONS...
    rm -rf "${OUT:?}/$1"
    part "$1" "$2" "$PYTHON" -m madakv bench "${@:3}" --shape llava-1.5-7b --device cuda --dtype bf16 --out "$OUT/$1"
}

part kernels 170 "$PYTHON" scripts/gpu_bench.py --out "$OUT" --seconds 150 --no-sweep
part captured 70 "$PYTHON" scripts/gpu_captured.py --out "$OUT"
bench decode 95 decode --context 3300 --budgets 1.0,0.2,0.05
bench decode-8x8k 55 decode --context 8192 --batch 8 --budgets 0.2,0.05 --tokens 8
bench decode-32k 50 decode --context 32768 --budgets 0.2,0.05 --tokens 8
bench batches 45 decode --context 3300 --batch 8,40 --budgets 0.2 --tokens 8 --fill synthetic
bench memory 45 memory --context 3300 --batch 1,8 --budgets 0.2,0.05 --no-rivals

[ ${#failed[@]} -eq 0 ] || { echo "failed or cut off: ${failed[*]}"; exit 1; }
