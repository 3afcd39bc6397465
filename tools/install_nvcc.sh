#!/usr/bin/env bash
# Installs NVIDIA's compiler, as published on PyPI, into a folder of its own; no root, no GPU, no driver needed.
#
#   tools/install_nvcc.sh [--cuda 12|13] [FOLDER]
#
#   --cuda     13 (the default): its code needs driver 580. 12: for drivers from 525 on; see tools/nvcc12.py.
#   FOLDER     target/cuda, where the build looks by itself if it finds no other compiler
#
# About 130 MB to download and 300 MB on disk. Does nothing where the same versions lie there already. The last
# line printed is the command that makes a build use this compiler whatever else it finds.
set -euo pipefail

packages=(
  # To look into kernels (tools/check_kernels.py); these wheels begin with 13.2 and read older code.
  nvidia-cuda-cuobjdump==13.2.86
  nvidia-cuda-nvdisasm==13.2.86
)

fail() {
  echo "install_nvcc: $1" >&2
  exit 1
}

cuda=13
if [[ ${1-} == --cuda ]]; then
  cuda=${2-}
  shift 2 || fail "--cuda needs 12 or 13"
fi
[[ $# -le 1 && ${1-} != -* ]] || fail "unknown arguments: $*; use [--cuda 12|13] [FOLDER]"
case $cuda in
  12)
    home=nvidia/cuda_nvcc
    packages+=(nvidia-cuda-nvcc-cu12==12.9.86 nvidia-cuda-nvrtc-cu12==12.9.86 nvidia-cuda-runtime-cu12==12.9.79)
    ;;
  13)
    home=nvidia/cu13
    packages+=(
      nvidia-cuda-nvcc==13.0.88
      nvidia-cuda-crt==13.0.88
      nvidia-nvvm==13.0.88
      nvidia-cuda-runtime==13.0.96
      nvidia-cuda-cccl==13.0.85
    )
    ;;
  *) fail "--cuda $cuda: use 12 or 13" ;;
esac

tools=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$tools/../target/cuda}
mkdir -p "$folder" || fail "cannot make the folder $folder"
folder=$(cd "$folder" && pwd)
home=$folder/$home
if [[ ! -x $home/bin/nvcc || $(cat "$folder/installed" 2>/dev/null) != "${packages[*]}" ]]; then
  python=$(command -v python3 || command -v python) || fail "no python3 found; install Python with pip, or CUDA 12 or later"
  "$python" -m pip --version >/dev/null 2>&1 || fail "$python has no pip; install it (python3-pip), or CUDA 12 or later"
  rm -rf "${folder:?}/nvidia" "$folder/installed" "$folder"/nvidia_*.dist-info
  # One call for all: with --target, pip does not merge a package into a folder that is there.
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --target "$folder" "${packages[@]}" ||
    fail "pip could not install the compiler into $folder (see above)"
  for programs in "$folder"/nvidia/*/bin "$home/nvvm/bin"; do
    [[ ! -d $programs ]] || find "$programs" -type f -exec chmod +x {} +
  done
  echo "${packages[*]}" >"$folder/installed"
  touch "$tools/../build.rs" # so that the next build looks for a compiler again
fi
[[ $cuda == 13 ]] || install -m 755 "$tools/nvcc12.py" "$home/bin/nvcc"
"$home/bin/nvcc" --version >/dev/null || fail "$home/bin/nvcc does not run on this machine"
"$home/bin/nvcc" --version | sed -n 's/^Cuda compilation tools, /nvcc: /p'
echo "export EFFNET_CUDA_HOME=$home"
