#!/usr/bin/env bash
# The whole program with the feature `cuda`, candle's kernels included, compiled and linked on a machine without a GPU.
# Usage: build.sh [cargo arguments]
set -euo pipefail
cd "$(dirname "$0")/../.."
eval "$(bash .ci/cuda/setup.sh)"
cargo build --locked --release --features cuda "$@"
