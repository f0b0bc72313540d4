#!/usr/bin/env bash
# The whole program with the feature `cuda`, candle's kernels included, compiled and linked on a machine without a GPU;
# its processor's part then runs on stand-ins for CUDA's libraries.   Usage: build.sh [cargo arguments]
set -euo pipefail
cd "$(dirname "$0")/../.."
eval "$(bash .ci/cuda/setup.sh)"
# compile.sh has compiled every kernel for every architecture; here what counts is that all of it fits together.
export CUDA_KERNEL_ARCHITECTURES=80
build=(--locked --release --features cuda --config 'profile.release.package.hashwatt.opt-level=1' "$@")
cargo build "${build[@]}"
libraries=$(mktemp -d)
trap 'rm -rf "$libraries"' EXIT
ln -s "$CUDA_HOME"/lib64/*.so.* "$libraries"
# The stubs as the loader asks for them.
for stub in cuda.so.1 cublas.so.13 cublasLt.so.13 curand.so.10; do
  ln -s "$CUDA_HOME/lib64/lib${stub%%.so*}.so" "$libraries/lib$stub"
done
LD_LIBRARY_PATH=$libraries cargo run --quiet "${build[@]}" -- selftest --device cpu --filter linear |
  tail -n 1
