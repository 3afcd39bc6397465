# shellcheck shell=bash disable=SC2154 # the files are named by check_gpu.sh
# Tables of what check_gpu.sh found, from the files that it left. For check_gpu.sh, which sources it.

# longest LOG: kernel, launches, µs of all, mean percentages of the memory's rate and of instruction issue.
longest() {
    awk -F'","' '
        !/^"/ { next }
        /"Metric Name"/ { for (i = 1; i <= NF; i++) { gsub(/"/, "", $i); column[$i] = i } next }
        {
            value = $column["Metric Value"]
            gsub(/[",]/, "", value)
            kernel = $column["Kernel Name"]
            sub(/\(.*/, "", kernel)
            metric = $column["Metric Name"]
            if (metric ~ /^gpu__time/) { time[kernel] += value / 1000; calls[kernel]++ }
            else if (metric ~ /^dram/) dram[kernel] += value
            else issue[kernel] += value
        }
        END { for (k in time) printf "%s\t%d\t%.0f\t%.0f\t%.0f\n", k, calls[k], time[k], dram[k] / calls[k], issue[k] / calls[k] }
    ' "$1" | sort -t$'\t' -k3,3nr | head -5
}

# One line for each module of tests and each other row, and one for each test that did not pass.
summary() {
    awk -F'\t' '
        {
            tests = $2 ~ /::/
            key = $2
            if (tests) sub(/::.*/, "", key)
            if (!(key in all)) order[++keys] = key
            all[key]++
            count[key, $3]++
            seconds[key] += $4
            note[key] = tests ? "" : $5
            if (tests && $3 != "ok") failures[key] = failures[key] sprintf("  %s\t%s\t%s\t%s\n", $2, $3, $4, $5)
        }
        END {
            for (i = 1; i <= keys; i++) {
                key = order[i]
                outcome = count[key, "FAILED"] ? "FAILED" : count[key, "ok"] ? "ok" : "skipped"
                if (!note[key]) note[key] = sprintf("%d of %d passed", count[key, "ok"], all[key])
                printf "%s\t%s\t%s\t%s\n%s", key, outcome, seconds[key], note[key], failures[key]
            }
        }' "$results"
}

# The rows of a table of Markdown.
cells() { sed 's/|/\\|/g; s/^/| /; s/\t/ | /g; s/$/ |/'; }

# How many tests ended how.
counts() {
    awk -F'\t' '$2 ~ /::/ { n[$3]++ } END { printf "%d passed, %d failed, %d skipped", n["ok"], n["FAILED"], n["skipped"] }' "$results"
}

figures() {
    echo "# $(sed -n 's/^GPU\t//p' "$facts" | grep . || echo "A GPU"): figures of tools/check_gpu.sh"
    printf '\n| | |\n|---|---|\n'
    { cat "$facts" && printf 'tests\t%s\n' "$(counts)"; } | cells
    printf '\n| what | outcome | s | |\n|---|---|---:|---|\n'
    summary | cells
    if [[ -s $speeds ]]; then
        printf '\n| model | side | batch | training, images/s | inference, images/s | GiB |\n|---|---:|---:|---:|---:|---:|\n'
        cells <"$speeds"
    fi
    if grep -q $'^pytorch\tpytorch\tok' "$results"; then
        printf '\n```text\n' && cat "$logs/pytorch.log" && printf '```\n'
    fi
    if [[ -s $out/kernels.tsv ]]; then
        printf '\n| kernel, B0 at 224, batch 128 | launches | µs | of memory, %% | of issue, %% |\n|---|---:|---:|---:|---:|\n'
        cells <"$kernels"
    fi
}
