#!/usr/bin/env bash
# The CUDA kernels without a device: their unchanged source compiled for the host, run behind the operations
# against the CPU's own, and run again with each barrier, and each wait for copies under way, removed, which must
# fail.   Usage: kernels.sh
set -euo pipefail
cd "$(dirname "$0")/.."
command -v g++ >/dev/null || { apt-get update -qq && apt-get install -y -qq g++; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
barriers='^ *(__syncthreads\(\)|__syncwarp\(\)|await_copies<[A-Z0-9]+>\(\));'

# Builds the library of a source folder.
library() { g++ -std=c++17 -O2 -shared -fPIC -Wall -Wno-unknown-pragmas -o "$2" "$1/all_on_host.cpp"; }

# Usage: run LIBRARY TESTS    by the test program itself: cargo's own second a run is spared
run() { HASHWATT_HOST_KERNELS=$1 "$tests" "$2"; }

# The quick tests of a source file; what they let pass, all tests must catch.
tests_of() {
  case $(basename "$1") in
    attention* | mma.cuh) echo kernels::attention ;;
    gemv.cu) echo kernels::gemv::a_norm ;;
    blocks.cu) echo kernels::blocks::a_decoder ;;
    experts.cu | grouped.cu) echo kernels::experts ;;
    sample.cu) echo kernels::kernels_sample ;;
    *) echo kernels::a_decoder_of_kernels ;;
  esac
}

# Usage: without FILE:LINE    fails where nothing notices that this line is gone
without() {
  local file=${1%:*} line=${1##*:} broken
  broken=$(mktemp -d -p "$work")
  cp src/ops/cuda/* "$broken"
  sed -i "${line}d" "$broken/$(basename "$file")"
  library "$broken" "$broken/kernels.so"
  if run "$broken/kernels.so" "$(tests_of "$file")" >"$broken/log" 2>&1 &&
    run "$broken/kernels.so" kernels >"$broken/log" 2>&1; then
    echo "without the barrier of $file:$line nothing fails" >&2
    return 1
  fi
  echo "without the barrier of $file:$line: caught"
  rm -rf "$broken"
}

tests=$(cargo test --locked --no-run --test it --message-format=json |
  sed -n 's/.*"executable":"\([^"]*\/it-[^"]*\)".*/\1/p')
[ -x "$tests" ] || { echo "no test program was built" >&2; exit 1; }
library src/ops/cuda "$work/kernels.so"
run "$work/kernels.so" kernels
export work tests
export -f library run tests_of without
# Each has a compilation of its own and a test of two threads or so.
grep -nHE "$barriers" src/ops/cuda/*.cu src/ops/cuda/*.cuh | cut -d: -f1,2 |
  xargs -P "$(nproc)" -I '{}' bash -euo pipefail -c 'without {}'
