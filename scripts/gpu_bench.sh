#!/usr/bin/env bash
# What needs a machine with a CUDA GPU, in one go of under 9 minutes; nothing is installed or fetched.
#
#     OUT=results/gpu PYTHON=python3 scripts/gpu_bench.sh
#
# Each part is cut off when its time is up, and the others run whatever happens to it; results are written case by case.
# Left out, for a machine that is there for longer: other launch parameters of the kernels (gpu_bench.py), and prefills.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=src PYTHONUNBUFFERED=1
OUT=${OUT:-results/gpu} PYTHON=${PYTHON:-python3}
failed=()
rm -rf "${OUT:?}"

part() { # NAME SECONDS COMMAND...
    echo "== $1"
    timeout -k 5 "$2" "${@:3}" || failed+=("$1 ($?)")
}
bench() { # NAME SECONDS OPTIONS...
    part "$1" "$2" "$PYTHON" -m madakv bench "${@:3}" --shortest 1.0 --device cuda --dtype bf16 --out "$OUT/$1"
}
LLAVA="--shape llava-1.5-7b"

part kernels 170 "$PYTHON" scripts/gpu_bench.py --out "$OUT/kernels" --seconds 150 --no-sweep
part captured 70 "$PYTHON" scripts/gpu_captured.py --out "$OUT/captured"
bench decode 120 decode $LLAVA --context 3300,32768 --budgets 1.0,0.2,0.05 --tokens 8
bench decode-8-rows 60 decode $LLAVA --context 8192 --batch 8 --budgets 0.2,0.05 --tokens 8 --no-rivals
bench five-times-the-batch 50 decode $LLAVA --context 3300 --batch 8,40 --budgets 0.2 --tokens 8 --no-rivals
bench memory 45 memory $LLAVA --context 3300 --batch 1,8 --budgets 0.2,0.05 --no-rivals

[ ${#failed[@]} -eq 0 ] || { echo "failed or cut off: ${failed[*]}"; exit 1; }
