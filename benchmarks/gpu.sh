#!/usr/bin/env bash
# Measure on a GPU what a CPU can't show, in at most nine minutes: encoding and training at BERT-large's shape beside
# sentence-transformers, torch.compile, bf16 against fp32, ZeRO 1 to 3, where the host waits, memory with GradCache and
# without, and the tests marked `gpu`.
#
# Run: benchmarks/gpu.sh [--small] [PART...]
#
# Each part writes a JSON file into OUT and is skipped where that is there: after an error, or when time was up, run it
# again. A part that fails leaves its error there, and the others go on. At the end a table is printed and written to
# OUT/table.md. --small, or no GPU, is a rehearsal on the CPU with a tiny model, with four times as long for each part.
#
# PYTHON is an interpreter with the packages of the extra `test` (.venv/bin/python, made if it is not there); OUT is the
# folder of results (benchmarks/results/gpu); WORK is one for the model and the runs (below the temporary folder).
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-.venv/bin/python}
command -v "$PYTHON" >/dev/null || make .venv/.installed || exit 1
links=$(mktemp -d)
trap 'rm -r "$links"' EXIT
ln -s "$PWD" "$links/conan_embedding" # this checkout, whether it is installed or not
export PYTHONPATH=$links${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true PYTHONUNBUFFERED=1

size=
if [ "${1:-}" = --small ]; then
    size=--small
    shift
elif ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.accelerator.is_available())'; then
    echo "no GPU: small parts on the CPU"
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
        echo "$part: no time left, run this again"
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
        [ $code -ne 124 ] || echo "took longer than $limit s" >>"$OUT/$part.error"
    fi
    echo "$part: exit code $code after $((SECONDS - started)) s"
done
"$PYTHON" benchmarks/gpu_parts.py table --out "$OUT" --work "$WORK"
