#!/usr/bin/env bash
# The CUDA kernels without a device: their unchanged source compiled for the host, run behind the operations
# against the CPU's own, and run again with each barrier, and each wait for copies under way, removed, which must
# fail.   Usage: kernels.sh
set -euo pipefail
cd "$(dirname "$0")/.."
command -v g++ >/dev/null || { apt-get update -qq && apt-get install -y -qq g++; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Builds the library of a source folder.
library() { g++ -std=c++17 -O2 -shared -fPIC -Wall -Wno-unknown-pragmas -o "$2" "$1/all_on_host.cpp"; }

# Usage: run LIBRARY TESTS
run() { HASHWATT_HOST_KERNELS=$1 cargo test --locked --quiet --test it -- "$2"; }

# The quick tests of a source file; what they let pass, all tests must catch.
tests_of() {
  case $(basename "$1") in
    attention* | mma.cuh) echo kernels::attention ;;
    gemv.cu) echo kernels::gemv::a_norm ;;
    sample.cu) echo kernels::kernels_sample ;;
    *) echo kernels::a_decoder_of_kernels ;;
  esac
}

library src/ops/cuda "$work/kernels.so"
run "$work/kernels.so" kernels

missed=0
for file in src/ops/cuda/*.cu src/ops/cuda/*.cuh; do
  for line in $(grep -nE '^ *(__syncthreads\(\)|__syncwarp\(\)|await_copies<[A-Z0-9]+>\(\));' "$file" | cut -d: -f1); do
    rm -rf "$work/broken" && cp -r src/ops/cuda "$work/broken"
    sed -i "${line}d" "$work/broken/$(basename "$file")"
    library "$work/broken" "$work/broken.so"
    if run "$work/broken.so" "$(tests_of "$file")" >"$work/log" 2>&1 &&
      run "$work/broken.so" kernels >"$work/log" 2>&1; then
      echo "without the barrier of $file:$line nothing fails" >&2
      missed=1
    else
      echo "without the barrier of $file:$line: caught"
    fi
  done
done
exit $missed
