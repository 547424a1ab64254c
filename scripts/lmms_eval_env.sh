#!/usr/bin/env bash
# Make an environment in which lmms-eval runs with madakv: scripts/lmms_eval_env.sh FOLDER
#
# lmms-eval asks for some fifty libraries. Most serve single tasks or single models of its own, and are left out: install
# what a task of yours asks for. Left out on purpose is torchvision, which must match the build of torch.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: $0 FOLDER" >&2
    exit 2
fi
repository=$(cd "$(dirname "$0")/.." && pwd)
"${PYTHON:-python3}" -m venv "$1"
pip=("$1/bin/python" -m pip install --quiet)
"${pip[@]}" "${TORCH:-torch==2.13.0}"
"${pip[@]}" --editable "$repository[eval]" pytest
"${pip[@]}" accelerate datasets evaluate loguru pydantic pytablewriter pytz sacrebleu tenacity
"${pip[@]}" --no-deps lmms-eval==0.7.3
echo "made $1; try: $1/bin/python -m pytest $repository/tests/integrations"
