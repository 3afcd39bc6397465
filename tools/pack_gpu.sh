#!/usr/bin/env bash
# Packs what tools/check_gpu.sh runs into one file, for a machine with a GPU that needs neither Rust nor nvcc then: the
# programs, the test programs, the benchmark `network`, and the files that they read. The programs are optimised and
# without their symbols.
#
#   tools/pack_gpu.sh --arch 90    for GPUs of compute capability 9.0 alone, which makes the pack small; 80,86 for two
#   tools/pack_gpu.sh              for all that build.rs compiles for
#   tools/pack_gpu.sh PROGRAM...   packs programs that are already built
#
#   --out FILE     what to make; .tar.zst, .tar.xz or .tar.gz [effnet-gpu.tar with the first of these that is installed]
#   --folder DIR   makes a folder and no pack
#
# Building needs nvcc (tools/install_nvcc.sh). Exit status: 0, 1 if something does not build, 2 if it cannot run.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

refuse() {
    echo "pack_gpu.sh: $1" >&2
    exit 2
}

out='' folder='' given=()
while (($#)); do
    [[ $1 != --* || $# -gt 1 ]] || refuse "$1: unknown, or without its value; see the head of this file"
    case $1 in
    --arch) export EFFNET_CUDA_ARCH=$2 ;;
    --out) out=$(realpath "$2") ;;
    --folder) folder=$(realpath "$2") ;;
    --*) refuse "$1: unknown; see the head of this file" ;;
    *)
        given+=("$(realpath "$1")")
        shift
        continue
        ;;
    esac
    shift 2
done
# The programs share most of their bytes, too far apart for gzip.
if [[ -z $out ]]; then
    if command -v zstd >/dev/null; then
        out=$PWD/effnet-gpu.tar.zst
    elif command -v xz >/dev/null; then
        out=$PWD/effnet-gpu.tar.xz
    else
        out=$PWD/effnet-gpu.tar.gz
    fi
fi
[[ $out =~ \.tar\.(zst|xz|gz)$ ]] || refuse "--out $out: use a name that ends in .tar.zst, .tar.xz or .tar.gz"
command -v strip >/dev/null || refuse "no strip; install binutils"

if ((${#given[@]} == 0)); then
    command -v cargo >/dev/null || refuse "no cargo; install Rust, or give the paths of programs that were built elsewhere"
    export EFFNET_CUDA=require EFFNET_GPU=1
    cd "$root"
    cargo build --release --locked --bins
    listed=$(cargo test --release --locked --no-run --color never --test operators --test network --test training \
        --test ranks 2>&1 | tee /dev/stderr)
    listed+=$'\n'$(cargo bench --locked --no-run --color never --bench network 2>&1 | tee /dev/stderr)
    mapfile -t given < <(sed -n 's/^ *Executable .*(\(.*\))$/\1/p' <<<"$listed")
    given+=(target/release/effnet-{train,eval,pack})
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
to=${folder:-$scratch/effnet-gpu}
rm -rf "${to:?}/bin"
mkdir -p "$to"/{bin,tools/rivals,tests}
for path in "${given[@]}"; do
    [[ -f $path && -x $path ]] || refuse "$path: not a program"
    name=$(basename "$path")
    # A test program's name ends with a hash. That of the benchmark is also called network.
    if [[ $name != effnet-* ]]; then
        name=${name%%-*}
        if grep -q 'Steps of a round' "$path"; then name=bench-network; fi
    fi
    strip -o "$to/bin/$name" "$path"
done
cp "$root"/tools/{check_gpu.sh,gpu_figures.sh,compare_pytorch.py} "$to/tools"
cp "$root"/tools/rivals/*.py "$to/tools/rivals"
cp -r "$root"/tests/{golden,fixtures} "$to/tests"
git -C "$root" describe --always --dirty >"$to/VERSION" 2>/dev/null || echo unknown >"$to/VERSION"

# needs LIBRARY: the newest version of a library's symbols that a program wants.
needs() {
    objdump -T "$to"/bin/* | grep -oE "\b$1_[0-9.]+" | sort -Vu | tail -1
}
echo "in $to/bin:"
(cd "$to/bin" && du -h ./*)
echo "needs $(needs GLIBC), $(needs GLIBCXX) and a driver"
[[ -z $folder ]] || exit 0
case $out in
*.zst) tar -C "$scratch" --use-compress-program='zstd -q -19 -T0 --long=27' -cf "$out" effnet-gpu ;;
*.xz) tar -C "$scratch" --use-compress-program='xz --lzma2=preset=9,dict=128MiB' -cf "$out" effnet-gpu ;;
*) tar -C "$scratch" --use-compress-program='gzip -9' -cf "$out" effnet-gpu ;;
esac
bytes=$(stat -c %s "$out")
most=$((60 << 20))
echo "$out: $((bytes >> 20)) MiB. There: tar -xf $(basename "$out") && effnet-gpu/tools/check_gpu.sh"
((bytes <= most)) || echo "That is more than $((most >> 20)) MiB; --arch makes it smaller." >&2
