#!/usr/bin/env bash
# Measure what needs a GPU, in at most nine minutes: encoding and training at BERT-large's shape compared with
# sentence-transformers, torch.compile, bf16 against fp32, ZeRO 1 to 3, host synchronisation, memory with and without
# GradCache, and the tests marked `gpu`.
#
# Run: benchmarks/gpu.sh [--small] [PART...]
#
# Each part writes a JSON file to OUT and is skipped if the file exists, so after an error or a timeout just run the
# script again. If a part fails, its error is saved in OUT and the other parts still run. At the end a table is printed
# and written to OUT/table.md. With --small, or without a GPU, a tiny model is run on the CPU as a rehearsal, and each
# part has four times as long.
#
# Environment variables: PYTHON, an interpreter with the packages of the extra `test` (default .venv/bin/python, created
# if missing); OUT, the results folder (default benchmarks/results/gpu); WORK, a folder for the model and the runs
# (default below the temporary folder).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || make .venv/.installed || exit 1
links=$(mktemp -d)
trap 'rm -r "$links"' EXIT
ln -s "$PWD" "$links/conan_embedding" # use this checkout, even if it is not installed
export PYTHONPATH=$links${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true PYTHONUNBUFFERED=1

size=
if [ "${1:-}" = --small ]; then
    size=--small
    shift
elif ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.accelerator.is_available())'; then
    echo "no GPU found: running small versions on the CPU"
    size=--small
fi
[ -z "$size" ] || export CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu
OUT=${OUT:-benchmarks/results/gpu${size:+-small}}
WORK=${WORK:-${TMPDIR:-/tmp}/conan-gpu${size:+-small}}
mkdir -p "$OUT" "$WORK"

all="encode train precision zero syncs gradcache tests compile"
todo=" "
for part in ${*:-$all}; do
    [ -e "$OUT/$part.json" ] || todo+="$part "
done
if [[ $todo =~ encode|train|precision|zero|syncs|compile ]] && [ ! -e "$WORK/prepare.json" ]; then
    todo+="prepare "
fi
longer=$((${#size} ? 4 : 1))
for each in prepare:90 encode:80 train:80 precision:40 zero:70 syncs:45 gradcache:60 tests:45 compile:150; do
    part=${each%:*} limit=$((${each#*:} * longer)) left=$((525 * longer - SECONDS)) started=$SECONDS
    [[ $todo = *" $part "* ]] || continue
    if [ $left -lt 10 ]; then
        echo "$part: no time left; run the script again"
        continue
    fi
    limit=$((limit < left ? limit : left))
    timeout -k 5 "$limit" "$PYTHON" benchmarks/gpu_parts.py "$part" \
        --out "$OUT" --work "$WORK" $size >"$OUT/$part.log" 2>&1
    code=$?
    if [ $code -eq 0 ]; then
        rm -f "$OUT/$part.error"
    else
        tail -n 20 "$OUT/$part.log" >"$OUT/$part.error"
        [ $code -ne 124 ] || echo "timed out after $limit s" >>"$OUT/$part.error"
    fi
    echo "$part: exit code $code after $((SECONDS - started)) s"
done
"$PYTHON" benchmarks/gpu_parts.py table --out "$OUT" --work "$WORK"
