#!/usr/bin/env bash
# What a GPU must show, in one command: build for the GPU here, tests on it, the sanitizers, and the core of the bench.
#
#   bench/gpu_check.sh [FOLDER]     results also go to FOLDER (default: bench/results)
#
# Needs nvcc, a CUDA torch, pytest, and what `pip install .` builds with (cmake, ninja, pybind11, setuptools); the bench's
# layer and step need transformers, pydantic and pyarrow too. Peers are compared with where they import. Every part runs,
# whatever became of those before it; the exit code is 1 if one failed.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-bench/results}")
mkdir -p "$out"
failed=""

part() {
  local name=$1
  shift
  printf '\n== %s: %s\n' "$name" "$*"
  local start=$SECONDS
  "$@" 2>&1 | tee "$out/$name.log" | tail -n "${LINES_SHOWN:-40}"
  local code=${PIPESTATUS[0]}
  printf '== %s: exit %s after %s s\n' "$name" "$code" "$((SECONDS - start))"
  [ "$code" = 0 ] || failed="$failed $name"
}

part build pip install -q --no-build-isolation --no-deps .
# From here on another folder is the current one, so that the installed package is the one imported.
root=$PWD
cd /
part device python3 -m pyft.env
part tests python3 -m pytest -q -m cuda --rootdir "$root" "$root"/tests/ops
small="test_equals_float64 or test_equals_plain_torch or test_sizes or test_any_number_of_tokens or test_any_size_of_the_weight"
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    part "$tool" compute-sanitizer --tool "$tool" --error-exitcode 9 --target-processes all \
      python3 -m pytest -q -m "cuda and not slow" -k "$small" --rootdir "$root" "$root"/tests/ops
  done
else
  echo "compute-sanitizer is not here: memcheck and racecheck left out"
fi
LINES_SHOWN=120 part bench python3 "$root/bench/run.py" --device cuda --core
cp "$root"/bench/results/*.json "$root"/bench/results/*.md "$out/" 2>/dev/null
[ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
echo "all parts passed"
