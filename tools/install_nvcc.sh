#!/usr/bin/env bash
# Installs NVIDIA's compiler, as published on PyPI, into a folder of its own; no root, no GPU, no driver needed.
#
#   tools/install_nvcc.sh [FOLDER]     FOLDER: target/cuda, where the build looks by itself
#
# About 110 MB to download and 300 MB on disk. Does nothing where the same versions lie there already. The last
# line printed is the command that makes a build use a folder other than target/cuda.
set -euo pipefail

folder=${1:-$(dirname "$0")/../target/cuda}
packages=(
  nvidia-cuda-nvcc==13.0.88
  nvidia-cuda-crt==13.0.88
  nvidia-nvvm==13.0.88
  nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85
  # To look into kernels (tools/check_kernels.py); these wheels begin with 13.2 and read older code.
  nvidia-cuda-cuobjdump==13.2.86
  nvidia-cuda-nvdisasm==13.2.86
)

fail() {
  echo "install_nvcc: $1" >&2
  exit 1
}

mkdir -p "$folder" || fail "cannot make the folder $folder"
folder=$(cd "$folder" && pwd)
home=$folder/nvidia/cu13
if [[ ! -x $home/bin/nvcc || $(cat "$folder/installed" 2>/dev/null) != "${packages[*]}" ]]; then
  python=$(command -v python3 || command -v python) || fail "no python3 found; install Python with pip, or CUDA 12 or later"
  "$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip; install it (python3-pip), or CUDA 12 or later"
  rm -rf "${folder:?}/nvidia" "$folder/installed" "$folder"/nvidia_*.dist-info
  # One call for all: with --target, pip does not merge a package into a folder that is there.
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --target "$folder" "${packages[@]}" ||
    fail "pip could not install the compiler into $folder (see above)"
  find "$home/bin" "$home/nvvm/bin" -type f -exec chmod +x {} +
  "$home/bin/nvcc" --version >/dev/null || fail "$home/bin/nvcc does not run on this machine"
  echo "${packages[*]}" >"$folder/installed"
  touch "$(dirname "$0")/../build.rs" # so that the next build looks for a compiler again
fi
"$home/bin/nvcc" --version | sed -n 's/^Cuda compilation tools, /nvcc: /p'
echo "export EFFNET_CUDA_HOME=$home"
