#!/usr/bin/env bash
# Puts an NVIDIA CUDA 13.0 compiler on a machine that has none and no GPU, from PyPI's own wheels,
# so that `cargo build --features cuda` compiles and links there. Usage:
#
#   eval "$(.ci/cuda/setup.sh)"        # installs once into $CUDA_DIR (default ~/.cache/cuda-13.0), prints exports
#   cargo build --release --features cuda
#
# Built for compute capability 8.0 with PTX embedded, so that the binary runs from Ampere on; CUDA_COMPUTE_CAP=90 builds for Hopper only.
# nvcc, ptxas, cudart, NVRTC and CCCL are the real ones. libcuda, libcublas, libcublasLt and libcurand are
# link-time stubs (right soname, every symbol cudarc binds, no code): a binary linked here starts only on a
# machine that has the NVIDIA driver and the CUDA 13 libraries.
set -euo pipefail
dir=${CUDA_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/cuda-13.0}
cudarc_version=${CUDARC_VERSION:-0.19.10}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [[ ! -f $dir/.complete ]]; then
  exec 3>&1 1>&2                       # progress to stderr: stdout is for the exports
  rm -rf "$dir"; mkdir -p "$dir/lib64"
  python3 -m venv "$dir/venv"
  "$dir/venv/bin/pip" install -q --disable-pip-version-check \
    'nvidia-cuda-nvcc==13.0.*' 'nvidia-nvvm==13.0.*' 'nvidia-cuda-crt==13.0.*' \
    'nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-nvrtc==13.0.*' 'nvidia-cuda-cccl==13.0.*'
  wheel=$(echo "$dir"/venv/lib/python3*/site-packages/nvidia/cu13)
  for part in bin include nvvm; do ln -s "$wheel/$part" "$dir/$part"; done
  for lib in "$wheel"/lib/*; do ln -s "$lib" "$dir/lib64/"; done
  ln -s libcudart.so.13 "$dir/lib64/libcudart.so"
  ln -s libnvrtc.so.13 "$dir/lib64/libnvrtc.so"
  ln -s lib64 "$dir/lib"
  python3 "$here/stubs.py" "$cudarc_version" "$dir/lib64"
  touch "$dir/.complete"
  exec 1>&3
fi
cat <<EXPORTS
export CUDA_HOME=$dir CUDA_PATH=$dir CUDA_ROOT=$dir CUDA_TOOLKIT_ROOT_DIR=$dir
export CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-80}
[ "\$CUDA_COMPUTE_CAP" = 80 ] && export NVCC_APPEND_FLAGS=-gencode=arch=compute_80,code=compute_80
export PATH=$dir/bin:\$PATH
export LIBRARY_PATH=$dir/lib64\${LIBRARY_PATH:+:\$LIBRARY_PATH}
EXPORTS
