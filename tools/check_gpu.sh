#!/usr/bin/env bash
# Runs on a machine with an NVIDIA GPU what every other machine can only list as ignored: the tests of the CUDA engine
# through the driver, ranks through NCCL among them (one alone, and two that share a card), then one small training step
# under compute-sanitizer's memcheck and racecheck.
#
#   tools/check_gpu.sh                     builds the tests with Cargo (needs nvcc: tools/install_nvcc.sh)
#   tools/check_gpu.sh BINARY...           runs test programs built elsewhere by `EFFNET_GPU=1 cargo test --no-run`
#   tools/check_gpu.sh --tests-only ...    without compute-sanitizer
#   tools/check_gpu.sh --without-nccl ...  without ranks
#
# COMPUTE_SANITIZER names that program; otherwise it is looked for in PATH and in /usr/local/cuda/bin. NCCL is found as
# effnet-train finds it, by NCCL_LIBRARY first; two ranks on a card need 2.30 or later. ranks starts effnet-train: the
# one that Cargo put near it, or that EFFNET_TRAIN names. Exit status: 0 where all passed, 1 where something failed, 2
# where it cannot be run.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

refuse() {
    echo "check_gpu.sh: $1" >&2
    exit 2
}

# Test programs with tests that need a GPU, and the modules of theirs that need NCCL.
programs=(operators network training ranks)
nccl_modules=(cuda_ranks gpu_ranks)
step=cuda_step::step_is_the_same_bit_by_bit_in_every_run::on_a_gpu

sanitize=yes nccl=yes
while [[ ${1:-} == -* ]]; do
    case $1 in
    --tests-only) sanitize=no ;;
    --without-nccl) nccl=no ;;
    *) refuse "$1: unknown; see the head of this file" ;;
    esac
    shift
done
[[ $nccl == yes ]] || programs=(operators network training)

[[ -e /dev/nvidia0 ]] || nvidia-smi -L 2>/dev/null | grep -q '^GPU ' ||
    refuse "no NVIDIA GPU here (no /dev/nvidia0, and nvidia-smi lists none); run it on a machine with one"
sanitizer=
if [[ $sanitize == yes ]]; then
    sanitizer=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
    [[ -x $sanitizer ]] ||
        refuse "no compute-sanitizer; install it with the CUDA toolkit, name it in COMPUTE_SANITIZER, or use --tests-only"
fi

binaries=("$@")
if ((${#binaries[@]} == 0)); then
    command -v cargo >/dev/null || refuse "no cargo; give the paths of test programs that were built elsewhere"
    listed=$(cd "$root" && EFFNET_CUDA=require EFFNET_GPU=1 \
        cargo test --locked --no-run --color never "${programs[@]/#/--test=}" 2>&1) || {
        echo "$listed" >&2
        refuse "the tests do not build"
    }
    mapfile -t binaries < <(cd "$root" && sed -n 's/^ *Executable .*(\(.*\))$/\1/p' <<<"$listed" | xargs -r realpath)
fi
step_of=
for binary in "${binaries[@]}"; do
    [[ -f $binary && -x $binary ]] || refuse "$binary: not a program"
    case $(basename "$binary") in
    network*) step_of=$binary ;;
    ranks*)
        [[ $nccl == yes ]] || refuse "$binary needs NCCL, which --without-nccl leaves out"
        # Test programs lie in deps/, where they were built.
        for near in "$(dirname "$binary")"/{,../}effnet-train; do
            [[ -n ${EFFNET_TRAIN:-} || ! -x $near ]] || EFFNET_TRAIN=$(realpath "$near")
        done
        [[ -x ${EFFNET_TRAIN:-} ]] || refuse "ranks starts effnet-train, which is not near it; name it in EFFNET_TRAIN"
        export EFFNET_TRAIN
        ;;
    esac
done
[[ $sanitize == no || -n $step_of ]] ||
    refuse "compute-sanitizer runs a step of network, which is not among the programs; name it, or use --tests-only"

log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Where the tests find their files, if they were built elsewhere.
export CARGO_MANIFEST_DIR=$root
failed=0

# row WHAT COMMAND...: runs it, prints a line of the table, and on failure what the command said.
row() {
    local what=$1 began=$SECONDS status=0 passed outcome=ok
    shift
    "$@" >"$log" 2>&1 || status=$?
    passed=$(sed -n 's/^test result: .* \([0-9]*\) passed;.*/\1/p' "$log" | tail -1)
    # A program without such tests, or one that never came to them, has not passed.
    if ((status != 0)); then
        outcome="FAILED ($status)"
    elif ((${passed:-0} == 0)); then
        outcome="FAILED (no test was run)"
    fi
    printf '%-28s %6s %6ss  %s\n' "$what" "${passed:-0}" $((SECONDS - began)) "$outcome"
    if [[ $outcome != ok ]]; then
        failed=1
        tail -40 "$log" | sed 's/^/    /'
    fi
}

printf '%-28s %6s %7s\n' "" passed time
# One line for each module of a program.
for binary in "${binaries[@]}"; do
    listed=$("$binary" on_a_gpu --include-ignored --list 2>&1) || refuse "$binary does not list its tests: $listed"
    tests=$(sed -n 's/: test$//p' <<<"$listed")
    [[ -n $tests ]] || row "$(basename "$binary")" "$binary" on_a_gpu --include-ignored
    for module in $(sed 's/::.*//' <<<"$tests" | uniq); do
        [[ $nccl == yes || " ${nccl_modules[*]} " != *" $module "* ]] || continue
        mapfile -t names < <(grep "^$module::" <<<"$tests")
        # One at a time: the runs of gpu_ranks share the card, and each has several processes.
        row "$module" "$binary" --exact "${names[@]}" --include-ignored $([[ $module != gpu_ranks ]] || echo --test-threads=1)
    done
done
if [[ $sanitize == yes ]]; then
    for tool in memcheck racecheck; do
        row "a step under $tool" "$sanitizer" --tool "$tool" --error-exitcode 3 \
            "$step_of" "$step" --exact --include-ignored
    done
fi
exit $failed
