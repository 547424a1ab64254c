#!/usr/bin/env bash
# Eviction inside vLLM on a machine with a CUDA GPU, in one go of under 9 minutes; nothing is installed or fetched.
#
#     OUT=results/gpu-vllm PYTHON=python3 scripts/gpu_vllm.sh     where vLLM 0.32.0 and madakv[eval] are installed
#     TRY=1 OUT=/tmp/try PYTHON=.venv-vllm/bin/python scripts/gpu_vllm.sh     the same, small, with vLLM for CPUs
#
# Each part is cut off when its time is up, and the others run whatever happens to it; each writes JSON with versions
# and the hardware. Tokens and kept entries against transformers come first, and are worth more than the rest.
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=src:. PYTHONUNBUFFERED=1
# In fp32, products of fp32 numbers: else kernels in Triton round to TF32, and ranks differ from those of transformers.
export TRITON_F32_DEFAULT=ieee
OUT=${OUT:-results/gpu-vllm} PYTHON=${PYTHON:-python3}
failed=()
rm -rf "${OUT:?}"
mkdir -p "$OUT"

if [ -n "${TRY:-}" ]; then
    device=cpu slower=10
    few=(--prompts 2 --tokens 3)
    sizes=(--requests 3 --pool 2 --say 4 --tokens 256)
else
    device=cuda slower=1
    few=()
    sizes=(--requests 64 --pool 8 --batched 1 --say 256 --tokens 4096)
fi

part() { # NAME SECONDS SCRIPT OPTIONS...
    echo "== $1"
    timeout -k 5 $(($2 * slower)) "$PYTHON" "scripts/$3" "${@:4}" --device "$device" --out "$OUT/$1.json" \
        || failed+=("$1 ($?)")
}

part equality 80 vllm_equality.py "${few[@]}"
part equality-graphs 110 vllm_equality.py --graphs --methods madakv "${few[@]}"
weights=
"$PYTHON" -m madakv models path smollm2 > /dev/null && weights=1
[ -z "$weights" ] || part equality-smollm2 70 vllm_equality.py --model smollm2 --methods madakv "${few[@]}"
# An engine for each budget, in a process of its own.
for budget in 1.0 0.2 0.05; do
    part "capacity-$budget" 35 vllm_speed.py capacity --budgets "$budget" "${sizes[@]}"
done
for budget in 1.0 0.2; do
    [ -z "$weights" ] || part "serving-$budget" 75 vllm_speed.py serving --budgets "$budget" "${sizes[@]}"
done

[ ${#failed[@]} -eq 0 ] || { echo "failed or cut off: ${failed[*]}"; exit 1; }
