#!/usr/bin/env bash
# Compiles every kernel with nvcc for every architecture that is served, as build.rs does with the feature `cuda`, on
# a machine without a GPU. (`cargo build --features cuda` compiles candle's kernels too, which takes far longer.)
set -euo pipefail
cd "$(dirname "$0")/../.."
eval "$(bash .ci/cuda/setup.sh)"
unset NVCC_APPEND_FLAGS
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
targets=()
for architecture in $(sed -n 's/.*ARCHITECTURES.*= \[\(.*\)\];/\1/p' build.rs | tr -d '",'); do
  targets+=("-gencode=arch=compute_$architecture,code=sm_$architecture")
done
[ ${#targets[@]} -ge 6 ] || { echo "build.rs names too few architectures" >&2; exit 1; }
for source in src/ops/cuda/*.cu; do
  nvcc -fatbin --threads 0 -std=c++17 -O3 -Werror all-warnings -Xptxas -v "${targets[@]}" -o "$work/out" "$source" 2>"$work/log" ||
    { cat "$work/log" >&2; exit 1; }
  kernels=$(grep -c 'bytes spill' "$work/log" || true)
  spilling=$(grep -cE '[1-9][0-9]* bytes spill' "$work/log" || true)
  echo "$(basename "$source"): $((kernels / ${#targets[@]})) kernels for ${#targets[@]} architectures, $spilling spill registers"
done
