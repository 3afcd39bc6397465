#!/usr/bin/env bash
# Says in about ten minutes what one wants to know of a machine with an NVIDIA GPU: whether the CUDA engine is right on it,
# and how fast it is. Every test has a process of its own and every part a time limit, so what hangs or faults costs its
# own row only. What this machine lacks is skipped, with the reason.
#
#   tools/check_gpu.sh              runs what lies in bin/ of a pack (tools/pack_gpu.sh), else builds it with Cargo
#   tools/check_gpu.sh PROGRAM...   runs only these of operators-*, network-*, training-*, ranks-*, effnet-train, and
#                                   bench-network, which is the benchmark `network`
#
#   --out DIR                for logs, results.tsv and figures.md, which docs/ can take as it is [gpu-check-DATE-TIME]
#   --only PART,PART         only these; --skip PART,PART: without these. In their order:
#                            machine dry-run step tests nccl sanitizer bench pytorch train ncu
#   --filter TEXT            of the tests, only those with TEXT in their names; may be given several times
#   --jobs N                 tests at a time [8, or the number of cores]
#   --budget SECONDS         what has not begun by then has failed [570]
#   --limit WHAT=SECONDS     the limit of a part's commands, or of each `test` or `rank` test
#   --device cpu             what the programs train on, to try this script without a GPU; images are small then
#
# COMPUTE_SANITIZER names that program; otherwise it is looked for in PATH and /usr/local/cuda/bin. NCCL is found as
# effnet-train finds it, by NCCL_LIBRARY first. Exit status: 0 where nothing failed, 1 where something did, 2 where it
# cannot run.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# Where the tests find their files, if they were built elsewhere.
export CARGO_MANIFEST_DIR=$root

refuse() {
    echo "check_gpu.sh: $1" >&2
    exit 2
}

# ---- what to run --------------------------------------------------------------------------------------------

parts=(machine dry-run step tests nccl sanitizer bench pytorch train ncu)
# Seconds: of a command of these parts, and of one test.
declare -A limit=([machine]=20 [dry-run]=30 [test]=60 [rank]=60 [sanitizer]=90 [bench]=60 [pytorch]=150 [train]=60 [ncu]=90)
declare -A wanted program
for part in "${parts[@]}"; do wanted[$part]=yes; done
out='' filters=() given=() budget=570 device=cuda
cores=$(nproc)
jobs=$((cores < 8 ? cores : 8))

# choose yes|no PART,PART
choose() {
    local part
    for part in ${2//,/ }; do
        [[ -n ${wanted[$part]:-} ]] || refuse "$part: no such part; there are ${parts[*]}"
        wanted[$part]=$1
    done
}

while (($#)); do
    [[ $1 != --* || $# -gt 1 ]] || refuse "$1: unknown, or without its value; see the head of this file"
    case $1 in
    --out) out=$2 ;;
    --only)
        for part in "${parts[@]}"; do wanted[$part]=no; done
        choose yes "$2"
        ;;
    --skip) choose no "$2" ;;
    --filter) filters+=("$2") ;;
    --jobs) jobs=$2 ;;
    --budget) budget=$2 ;;
    --limit)
        [[ -n ${limit[${2%%=*}]:-} && $2 == *=* ]] || refuse "--limit $2: use one of ${!limit[*]}, such as test=60"
        limit[${2%%=*}]=${2#*=}
        ;;
    --device) device=$2 ;;
    --*) refuse "$1: unknown; see the head of this file" ;;
    *)
        given+=("$1")
        shift
        continue
        ;;
    esac
    shift 2
done

[[ -e /dev/nvidia0 || -e /dev/nvidiactl || -e /dev/dxg ]] || nvidia-smi -L 2>/dev/null | grep -q '^GPU ' ||
    refuse "no NVIDIA GPU here (no /dev/nvidia0, and nvidia-smi lists none); run it on a machine with one"
command -v timeout >/dev/null || refuse "no timeout(1); install coreutils"

if ((${#given[@]} == 0)); then
    bin=$root/bin
    if [[ ! -d $bin ]]; then
        "$root/tools/pack_gpu.sh" --folder "$root/target/gpu-check" || refuse "the programs were not built"
        bin=$root/target/gpu-check/bin
    fi
    given=("$bin"/*)
fi
for path in "${given[@]}"; do
    [[ -f $path && -x $path ]] || refuse "$path: not a program"
    name=$(basename "$path")
    case $name in
    effnet-* | bench-network) ;;
    *) name=${name%%-*} ;;
    esac
    program[$name]=$(realpath "$path")
done
[[ -z ${program[effnet-train]:-} ]] || export EFFNET_TRAIN=${program[effnet-train]}

out=${out:-gpu-check-$(date +%Y-%m-%d-%H%M%S)}
mkdir -p "$out/logs" || refuse "$out: cannot be made"
out=$(cd "$out" && pwd)
logs=$out/logs results=$out/results.tsv facts=$out/facts.tsv speeds=$out/speeds.tsv kernels=$out/kernels.tsv
rm -f "$logs"/* "$results" "$facts" "$speeds" "$kernels" "$out/tests.tsv"
touch "$results" "$facts" "$speeds" "$kernels" "$out/tests.tsv"
exec 3>&1 # for rows, from wherever they come

# What runs is ended with this script.
stop() {
    # shellcheck disable=SC2046 # process ids
    kill $(jobs -rp) 2>/dev/null
    exit 143
}
trap stop INT TERM

# shellcheck source=tools/gpu_figures.sh
source "$root/tools/gpu_figures.sh"

# ---- one command, one row -----------------------------------------------------------------------------------

# row PART NAME OUTCOME SECONDS NOTE: a line of the results, printed at once unless it is a test that passed.
row() {
    printf '%s\t%s\t%s\t%s\t%s\n' "$@" >>"$results"
    [[ $1 == tests && $3 == ok ]] || show "$2" "$3" "$4" "$5"
}

show() { printf '%-58s %-7s %4ss  %s\n' "$@" >&3; }

skip() { row "$1" "$2" skipped 0 "$3"; }

fact() { printf '%s\t%s\n' "$1" "$2" >>"$facts"; }

# The seconds that a command with this limit has; none if the budget is spent.
left() {
    local rest=$((budget - SECONDS))
    echo $((rest < $1 ? rest : $1))
}

# bounded SECONDS LOG COMMAND...: ends the command and what it started when the time is over. A process that waits for a
# broken card may not end at all, and the inner timeout would wait for it.
bounded() {
    local seconds=$1 log=$2
    shift 2
    timeout --kill-after=5 $((seconds + 15)) timeout --kill-after=5 "$seconds" "$@" >"$log" 2>&1 </dev/null &
    wait $! 2>/dev/null # the shell would say how it ended
}

# The first line in which a log says what went wrong.
complaint() {
    local line
    line=$(awk '/ panicked at /{ while ((getline line) > 0) if (line ~ /[^ ]/) { print line; exit } }' "$1")
    [[ -n $line ]] || line=$(grep -m1 -E '^(error|Error|ERROR|=+ (Error|Invalid|Race|Program)|.*[Ee]rror: )' "$1")
    [[ -n $line ]] || line=$(grep '[^ ]' "$1" | tail -1)
    plain "${line:-no message}"
}

# A line of a log without what frames it.
plain() { tr '\t' ' ' <<<"$1" | sed 's/^[ =]*//' | cut -c1-300; }

# why STATUS SECONDS LIMIT LOG
why() {
    case $1 in
    124) echo "did not end in $3 s" ;;
    137) (($2 >= $3)) && echo "did not end in $3 s, nor when told to" || echo "was killed (too little memory?)" ;;
    *) echo "$(complaint "$4") (status $1)" ;;
    esac
}

# attempt PART NAME LIMIT COMMAND...: runs it. A row if it fails or has no time left, and then false. What fails with a
# line that fits the pattern `unavailable` is skipped.
unavailable=
attempt() {
    local part=$1 name=$2 seconds log=$logs/${2//[: ]/_}.log status=0 began=$SECONDS line
    seconds=$(left "$3")
    shift 3
    ((seconds > 0)) || { row "$part" "$name" FAILED 0 "no time left of $budget s" && return 1; }
    bounded "$seconds" "$log" "$@" || status=$?
    spent=$((SECONDS - began))
    ((status != 0)) || return 0
    if [[ -n $unavailable ]] && line=$(grep -m1 -E "$unavailable" "$log"); then
        skip "$part" "$name" "not available here: $(plain "$line")"
    else
        row "$part" "$name" FAILED $spent "$(why $status $spent "$seconds" "$log")"
    fi
    return 1
}

# test_alone PART PROGRAM TEST LIMIT
test_alone() {
    attempt "$1" "$3" "$4" "$2" --exact "$3" --include-ignored --test-threads=1 || return 0
    if grep -q '^test result: ok\. 1 passed' "$logs/${3//[: ]/_}.log"; then
        row "$1" "$3" ok "$spent" ""
    else
        row "$1" "$3" FAILED "$spent" "no test was run"
    fi
}

# tests_of PROGRAM: those on a GPU that the filters let through.
tests_of() {
    local listed filter
    listed=$("${program[$1]}" on_a_gpu --include-ignored --list 2>&1 </dev/null) ||
        { row tests "$1" FAILED 0 "does not list its tests: $(head -1 <<<"$listed")" && return; }
    listed=$(sed -n 's/: test$//p' <<<"$listed")
    [[ -n $listed ]] || { row tests "$1" FAILED 0 "has no test for a GPU" && return; }
    for filter in "${filters[@]}"; do grep -F -- "$filter" <<<"$listed"; done | sort -u
    ((${#filters[@]})) || echo "$listed"
}

# ---- the parts ----------------------------------------------------------------------------------------------

machine() {
    local found card driver memory log=$logs/nvidia-smi.log
    if ! command -v nvidia-smi >/dev/null; then
        skip machine nvidia-smi "no nvidia-smi here"
    elif attempt machine nvidia-smi "${limit[machine]}" nvidia-smi --format=csv,noheader \
        --query-gpu=name,driver_version,memory.total,power.limit,clocks.max.sm; then
        IFS=, read -r card driver memory _ <"$log"
        fact GPU "$card,$memory"
        fact driver "${driver# }"
        row machine nvidia-smi ok "$spent" "$(head -1 "$log")"
    fi
    fact nvcc "$(nvcc --version 2>/dev/null | sed -n 's/.*release \([0-9.]*\).*/\1/p' | grep . || echo none)"
    found=$("${PYTHON:-python3}" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null)
    fact PyTorch "${found:-none}"
    fact NCCL "${nccl:-none}"
    fact effnet "$(cat "$root/VERSION" 2>/dev/null || git -C "$root" describe --always --dirty 2>/dev/null)"
    fact date "$(date +%Y-%m-%d)"
    row machine versions ok 0 "$(awk -F'\t' 'NR > 1 { printf "%s %s; ", $1, $2 }' "$facts")"
}

# The version of the NCCL that effnet-train would load, or why there is none.
find_nccl() {
    local log=$logs/nccl.log
    nccl='' no_nccl="the program ranks is not among those given"
    [[ -n ${program[ranks]:-} ]] || return
    bounded "${limit[machine]}" "$log" "${program[ranks]}" --exact --include-ignored --nocapture \
        nccl::nccl_is_found_and_creates_identifiers
    nccl=$(sed -n 's/^NCCL \([0-9.]*\)$/\1/p' "$log")
    no_nccl=$(complaint "$log")
}

# named PART PROGRAM: whether there is such a program, or a row.
named() {
    [[ -n ${program[$2]:-} ]] || { skip "$1" "$2" "the program $2 is not among those given" && return 1; }
}

dry_run() {
    named dry-run effnet-train || return
    local batch=512 log=$logs/dry_run.log
    [[ $device == cuda ]] || batch=8
    attempt dry-run dry_run "${limit[dry-run]}" "${program[effnet-train]}" --dry-run --device "$device" --data synthetic \
        --batch-size $batch || return
    row dry-run dry_run ok "$spent" "$(head -1 "$log"); largest micro-batch $(awk '/largest micro-batch/{ print $NF }' "$log")"
}

# together PART: runs tests, several at a time; their programs and names are on the input.
together() {
    local part=$1 name owner
    while IFS=$'\t' read -r owner name; do
        while (($(jobs -rp | wc -l) >= jobs)); do wait -n; done
        (trap stop INT TERM && test_alone "$part" "${program[$owner]}" "$name" "${limit[test]}") &
    done
    wait
}

# list_tests: program and test, a line each.
list_tests() {
    local owner
    for owner in operators network training ranks; do
        named tests "$owner" && tests_of "$owner" | sed "s/^/$owner\t/" >>"$out/tests.tsv"
    done
}

of_nccl=$'\t(cuda_ranks|gpu_ranks)::'
step() { together step < <(grep $'\tcuda_step::' "$out/tests.tsv"); }
tests() { together tests < <(grep -v $'\tcuda_step::' "$out/tests.tsv" | grep -vE "$of_nccl"); }

# Ranks share the card, so one test at a time.
nccl() {
    local owner name module
    while IFS=$'\t' read -r owner name; do
        module=${name%%::*}
        if [[ -z $nccl ]]; then
            skip nccl "$name" "no NCCL: $no_nccl"
        elif [[ $module == gpu_ranks && $(printf '%s\n' "$nccl" 2.30 | sort -V | head -1) != 2.30 ]]; then
            skip nccl "$name" "NCCL $nccl < 2.30, which cannot put two ranks on one card"
        else
            test_alone nccl "${program[$owner]}" "$name" "${limit[rank]}"
        fi
    done < <(grep -E "$of_nccl" "$out/tests.tsv")
}

sanitizer() {
    local tool found step=cuda_step::step_is_the_same_bit_by_bit_in_every_run::on_a_gpu
    local unavailable='[Dd]evice not supported|not supported on this|[Uu]nsupported (GPU|device)'
    found=${COMPUTE_SANITIZER:-$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)}
    for tool in memcheck racecheck; do
        [[ -x $found ]] || { skip sanitizer $tool "no compute-sanitizer here" && continue; }
        named sanitizer network || return
        # While the engine waits, the driver answers "not ready", which counts as an error there.
        attempt sanitizer $tool "${limit[sanitizer]}" "$found" --tool $tool --report-api-errors no --error-exitcode 3 \
            "${program[network]}" --exact $step --include-ignored || continue
        if grep -q '^test result: ok\. 1 passed' "$logs/$tool.log"; then
            row sanitizer $tool ok "$spent" "a step in fp16"
        else
            row sanitizer $tool FAILED "$spent" "no test was run"
        fi
    done
}

bench() {
    named bench bench-network || return
    local case model side batch steps name found cases="b0:224:128:100 b0:224:512:100 b4:380:32:50"
    [[ $device == cuda ]] || cases=b0:32:8:2
    for case in $cases; do
        IFS=: read -r model side batch steps <<<"$case"
        name="bench $model $side $batch"
        attempt bench "$name" "${limit[bench]}" "${program[bench-network]}" --device "$device" --model "$model" \
            --resolution "$side" --batch "$batch" --steps "$steps" || continue
        found=$(sed -n 's|^.* at .*, batch .*: \(.*\) images/s in training, \(.*\) in inference, \(.*\) GiB$|\1\t\2\t\3|p' \
            "$logs/${name// /_}.log")
        [[ -n $found ]] || { row bench "$name" FAILED "$spent" "no figures" && continue; }
        printf '%s\t%s\t%s\t%s\n' "$model" "$side" "$batch" "$found" >>"$speeds"
        row bench "$name" ok "$spent" "${found%%$'\t'*} images/s in training"
    done
}

pytorch() {
    local python=${PYTHON:-python3} missing log=$logs/pytorch.log
    command -v "$python" >/dev/null || { skip pytorch pytorch "no $python here" && return; }
    missing=$(timeout 60 "$python" -c 'import torch, timm; assert torch.cuda.is_available(), "torch finds no GPU"' 2>&1) ||
        { skip pytorch pytorch "$(tail -1 <<<"$missing")" && return; }
    named pytorch bench-network || return
    attempt pytorch pytorch "${limit[pytorch]}" "$python" "$root/tools/compare_pytorch.py" --device cuda --no-compile \
        --rounds 2 --sizes b0:224:128:100,b0:224:512:100 --effnet-bench "${program[bench-network]}" || return
    missing=$(grep -m1 ' failed' "$log") && row pytorch pytorch FAILED "$spent" "$missing" && return
    row pytorch pytorch ok "$spent" "times PyTorch eager: $(awk '/training +effnet/{ printf "%s ", $(NF - 1) }' "$log")"
}

# Trains on generated images until it is told to stop after 60 steps, and resumes for 20 more.
train() {
    named train effnet-train || return
    local run=$out/run log=$logs/train.log size="--resolution 224 --batch-size 128" status=0 began=$SECONDS seconds child steps
    [[ $device == cuda ]] || size="--resolution 32 --batch-size 4"
    seconds=$(left "${limit[train]}")
    ((seconds > 0)) || { row train train FAILED 0 "no time left of $budget s" && return; }
    # shellcheck disable=SC2086 # two flags with their values
    timeout --kill-after=20 "$seconds" "${program[effnet-train]}" --data synthetic --device "$device" $size --out "$run" \
        --force >"$log" 2>&1 </dev/null &
    child=$!
    until (($(steps_of "$run") >= 60)) || ! kill -0 $child 2>/dev/null; do sleep 0.1; done
    kill $child 2>/dev/null
    wait $child || status=$?
    spent=$((SECONDS - began)) steps=$(steps_of "$run")
    # 130: told to stop, and saved.
    if ((status != 130)); then
        row train train FAILED $spent "$(why $status $spent "$seconds" "$log")"
        return
    fi
    row train train ok $spent "$steps steps, then SIGTERM"
    attempt train resume "${limit[train]}" "${program[effnet-train]}" --device "$device" --resume --out "$run" \
        --max-steps $((steps + 20)) || return
    if (($(steps_of "$run") == steps + 20)); then
        row train resume ok "$spent" "$((steps + 20)) steps, the last at $(rate_of "$run") images/s"
        fact "training from end to end (B0, $size)" "$(rate_of "$run") images/s"
    else
        row train resume FAILED "$spent" "$(steps_of "$run") steps instead of $((steps + 20))"
    fi
    rm -rf "$run"
}

# Steps in the log of a run, and images a second of its last one.
steps_of() { sed -n 's/.*"step":\([0-9]*\),.*"images_per_second".*/\1/p' "$1/log.jsonl" 2>/dev/null | tail -1 | grep . || echo 0; }
rate_of() { sed -n 's/.*"images_per_second":\([0-9]*\).*/\1/p' "$1/log.jsonl" | tail -1; }

# Each launch of one step; the five kernels with the longest sums.
ncu() {
    named ncu bench-network || return
    local found log=$logs/ncu.log unavailable='ERR_NVGPUCTRPERM|not supported|[Uu]nsupported'
    found=$(type -P ncu || find /usr/local/cuda/bin /opt/nvidia/nsight-compute -maxdepth 2 -name ncu 2>/dev/null | tail -1)
    [[ -n $found ]] || { skip ncu ncu "no ncu here" && return; }
    attempt ncu ncu "${limit[ncu]}" "$found" --csv --print-units base --launch-count 400 --metrics \
        gpu__time_duration.sum,dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__inst_issued.avg.pct_of_peak_sustained_active \
        "${program[bench-network]}" --device cuda --model b0 --batch 128 --steps 1 --rounds 1 || return
    longest "$log" >"$kernels"
    [[ -s $out/kernels.tsv ]] || { row ncu ncu FAILED "$spent" "no figures" && return; }
    row ncu ncu ok "$spent" "longest: $(head -1 "$kernels" | cut -f1)"
}

find_nccl
[[ "${wanted[step]}${wanted[tests]}${wanted[nccl]}" != *yes* ]] || list_tests
for part in "${parts[@]}"; do
    [[ ${wanted[$part]} == no ]] || "${part//-/_}"
done
[[ -s $results ]] || refuse "nothing was run: no part and no test fits"
figures >"$out/figures.md"
printf '\n'
summary | while IFS=$'\t' read -r name outcome seconds note; do show "$name" "$outcome" "$seconds" "$note"; done
echo "tests: $(counts); $SECONDS s in all; logs: $logs; for docs/: $out/figures.md"
! grep -q $'^[^\t]*\t[^\t]*\tFAILED\t' "$results"
