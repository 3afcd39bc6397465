#!/usr/bin/env python3
"""Looks into the compiled kernels: a table of what each takes of a card, and a failure where something is amiss.

    tools/install_nvcc.sh                  # brings cuobjdump, too
    cargo build
    tools/check_kernels.py                 # the kernels of the last build
    tools/check_kernels.py FILE-OR-FOLDER... [--arch 80] [--shared expand_=66560] [--quiet]
    tools/check_kernels.py --table --launches FILE        # Markdown: how a step's kernels fit a multiprocessor

Fails where a kernel spills registers or has a stack frame or local memory, for any architecture up to 9.0 (for later
ones it only tells, because the kernels are not tuned for them); and where a pointwise kernel in a half type (expand_*,
project_*) lacks tensor-core products (HMMA), matrix loads (LDSM) or asynchronous copies (LDGSTS): such a kernel computes
the right numbers, several times too slowly. And where a kernel does what tools/kernel_lint.py looks for: vectors stored
in pieces, slow conversions in loops, loads one by one, and, with --launches, fewer blocks on a multiprocessor than its
declaration promises.

The occupancy is the share of a multiprocessor's warps that fit, by registers, threads and shared memory. Dynamic
shared memory is decided at launch: --shared NAME-PREFIX=BYTES tells it, otherwise it counts as none. --launches takes
what `cargo run --example predict -- --launches FILE` wrote: how each kernel of a training step is launched.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import kernel_lint

ROOT = Path(__file__).resolve().parent.parent
# Of a multiprocessor: warps, blocks, KiB of shared memory (a block takes 1 KiB besides its own), by architecture.
MULTIPROCESSORS = {
    80: (64, 32, 164), 86: (48, 16, 100), 89: (48, 24, 100), 90: (64, 32, 228), 100: (64, 32, 228), 120: (48, 24, 100)
}  # fmt: skip
# The last architecture for which the kernels' sizes were chosen.
TUNED = 90
REGISTERS, REGISTERS_AT_ONCE = 65536, 256
HALF_POINTWISE = re.compile(r"^(expand|project)_.*_(f16|bf16)(_|$)")
TENSOR_CORE = ("HMMA", "LDSM", "LDGSTS")
LOCAL = ("LDL", "STL")
LISTED = frozenset(TENSOR_CORE + LOCAL)


def find_cuobjdump():
    homes = [os.environ.get(name) for name in ("EFFNET_CUDA_HOME", "CUDA_HOME", "CUDA_PATH")]
    homes += [ROOT / "target/cuda", "/usr/local/cuda"]
    for home in filter(None, homes):
        for path in (Path(home) / "bin/cuobjdump", Path(home) / "nvidia/cu13/bin/cuobjdump"):
            if path.is_file():
                return str(path)
    return shutil.which("cuobjdump") or sys.exit("check_kernels: no cuobjdump; run tools/install_nvcc.sh")


def last_build():
    """The kernels that the last build embedded."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    builds = []
    for path in [*target.glob("*/build/effnet-*/out/kernels.rs"), *target.glob("*/*/build/effnet-*/out/kernels.rs")]:
        if files := [path.with_name(name) for name in re.findall(r"\w+\.fatbin", path.read_text())]:
            builds.append((max(file.stat().st_mtime for file in [path, *files]), files))
    if not builds:
        sys.exit(f"check_kernels: no build with kernels below {target}; run cargo build, with nvcc")
    return max(builds)[1]


def sections(cuobjdump, what, file):
    """Lines of one of cuobjdump's views, each with the architecture that it is about."""
    # Its own folder first: it calls nvdisasm by name.
    path = os.pathsep.join([str(Path(cuobjdump).parent), os.environ.get("PATH", "")])
    command = [cuobjdump, what, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PATH": path}) as process:
        arch = None
        for line in process.stdout:
            if match := re.match(r"arch = sm_(\d+)", line):
                arch = int(match[1])
            elif arch:
                yield arch, line
    if process.returncode:
        sys.exit(f"check_kernels: {' '.join(command)} failed")


def inspect(cuobjdump, file):
    """{(kernel, architecture): what is known of it}"""
    kernels = defaultdict(lambda: {"file": file.stem, "instructions": Counter(), "threads": 1024})
    name = None
    for arch, line in sections(cuobjdump, "-res-usage", file):
        if match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            values = map(int, match.groups())
            kernels[name, arch].update(zip(("registers", "stack", "shared", "local"), values))
    attribute = None
    for arch, line in sections(cuobjdump, "-elf", file):
        if line.startswith(".nv.info."):
            name = line.strip()[len(".nv.info.") :]
        elif line.startswith("\tAttribute:"):
            attribute = line.split()[-1]
        elif line.startswith("\tValue:") and (name, arch) in kernels:
            if attribute == "EIATTR_MAX_THREADS":
                kernels[name, arch]["threads"] = int(line.split()[1], 16)
            elif attribute == "EIATTR_CBANK_PARAM_SIZE":
                kernels[name, arch]["arguments"] = int(line.split()[1], 16)
    instruction = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)")
    key, lint = None, None
    for arch, line in sections(cuobjdump, "-sass", file):
        if match := re.match(r"\s*Function : (\S+)", line):
            if lint:
                kernels[key]["lint"] = lint.findings(key[0])
            key, lint = (match[1], arch), kernel_lint.Lint() if arch <= TUNED else None
        elif match := instruction.match(line):
            if match[1] in LISTED:
                kernels[key]["instructions"][match[1]] += 1
            if lint:
                lint.take(line)
    if lint:
        kernels[key]["lint"] = lint.findings(key[0])
    return kernels


def occupancy(kernel, arch, dynamic):
    """Blocks that fit a multiprocessor, the share of its warps, and what there is too little of for one more."""
    warps, blocks, shared = MULTIPROCESSORS[arch]
    own = -(-kernel["threads"] // 32)
    of_warp = -(-kernel["registers"] * 32 // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
    # Registers are dealt out to the four schedulers' warps.
    by_registers = REGISTERS // 4 // of_warp * 4 // own
    by_shared = (shared << 10) // (kernel["shared"] + dynamic + 1024)
    limits = {"threads": warps // own, "blocks": blocks, "registers": by_registers, "shared memory": by_shared}
    limit = min(limits, key=limits.get)
    return limits[limit], 100 * limits[limit] * own / warps, limit


def span(values, text=str):
    """"3", or "2–8"."""
    least, most = text(min(values)), text(max(values))
    return least if least == most else f"{least}–{most}"


def table(kernels, launches, architectures):
    """Markdown: the kernels of a step, as they are launched."""
    heads = "".join(f" sm_{a} registers | blocks | warps | limited by |" for a in architectures)
    yield f"| kernel | launches | grid's blocks | threads | shared KiB |{heads}"
    yield "|---|---:|---:|---:|---:|" + "---:|---:|---:|---|" * len(architectures)
    for name, how in sorted(launches.items()):
        line = f"| `{name}` | {how['launches']} | {span(how['blocks'])} | {how['threads']} | "
        line += span(how["shared"], lambda size: f"{size / 1024:.1f}") + " |"
        for arch in architectures:
            kernel = kernels.get((name, arch)) or sys.exit(f"check_kernels: {name} is not among the kernels for sm_{arch}")
            if kernel["threads"] < how["threads"]:
                sys.exit(f"check_kernels: {name} is launched with {how['threads']} threads, made for {kernel['threads']}")
            fits = [occupancy({**kernel, "threads": how["threads"]}, arch, size) for size in how["shared"]]
            blocks, warps = span([fit[0] for fit in fits]), span([fit[1] for fit in fits], lambda share: f"{share:.0f}")
            limit = " or ".join(sorted({fit[2] for fit in fits}))
            line += f" {kernel['registers']} | {blocks} | {warps} % | {limit} |"
        yield line


OCCUPANCY = """
## Registers, shared memory, occupancy

For the kernels of the first network's step, of its ranks and of edited images, as compiled and as launched: the number of
blocks that fit a multiprocessor at once, the share of its warps that these are, and the resource that is too small for one
more block.
Ranges are over the launches of different layers. Pointwise and depthwise kernels run with few warps, each with much work
under way, by design.
"""


def faults(name, kernel):
    count = kernel["instructions"]
    if kernel["stack"] or kernel["local"] or any(count[op] for op in LOCAL):
        spilled = sum(count[op] for op in LOCAL)
        yield f"spills or has local memory: stack {kernel['stack']}, local {kernel['local']}, {spilled} LDL/STL"
    if HALF_POINTWISE.match(name):
        if missing := [op for op in TENSOR_CORE if not count[op]]:
            yield f"no {', '.join(missing)}"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="*", type=Path, metavar="FILE-OR-FOLDER", help="fatbins or cubins")
    parser.add_argument("--arch", type=int, help="only this architecture's table; all are checked")
    parser.add_argument("--shared", action="append", default=[], metavar="NAME-PREFIX=BYTES")
    parser.add_argument("--launches", type=Path, metavar="FILE", help="how a step's kernels are launched")
    parser.add_argument("--table", action="store_true", help="Markdown of those kernels, for sm_86 and sm_90")
    parser.add_argument("--quiet", action="store_true", help="no table")
    options = parser.parse_args()
    if options.table and not options.launches:
        parser.error("--table needs --launches")
    launches = json.loads(options.launches.read_text()) if options.launches else {}
    dynamic = {prefix: int(number) for prefix, number in (text.split("=") for text in options.shared)}

    files = []
    for path in options.paths or last_build():
        inside = [file for kind in ("*.fatbin", "*.cubin") for file in path.glob(kind)] if path.is_dir() else [path]
        files += inside
    if missing := [str(file) for file in files if not file.is_file()] or (not files and ["any fatbin or cubin"]):
        sys.exit(f"check_kernels: cannot find {', '.join(missing)}")
    cuobjdump = find_cuobjdump()
    kernels = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(lambda file: inspect(cuobjdump, file), sorted(files)):
            kernels.update(found)

    wrong, told = [], []
    quiet = options.quiet or options.table
    if not quiet:
        print(
            f"{'kernel':44} {'arch':>4} {'threads':>7} {'regs':>4} {'shared':>6} {'stack':>5} {'spills':>6} {'args':>4} "
            f"{'blocks':>6} {'warps':>6}  {'HMMA':>5} {'LDSM':>5} {'LDGSTS':>6}"
        )
    for (name, arch), kernel in sorted(kernels.items(), key=lambda item: (item[1]["file"], item[0])):
        found = wrong if arch <= TUNED else told
        found += [f"{name} (sm_{arch}): {fault}" for fault in faults(name, kernel)]
        if quiet or arch not in MULTIPROCESSORS or options.arch not in (None, arch):
            continue
        more = max((size for prefix, size in dynamic.items() if name.startswith(prefix)), default=0)
        more = max([more, *launches.get(name, {}).get("shared", [])])
        blocks, share, _ = occupancy(kernel, arch, more)
        count = kernel["instructions"]
        print(
            f"{name:44} {arch:4} {kernel['threads']:7} {kernel['registers']:4} {kernel['shared'] + more:6} "
            f"{kernel['stack']:5} {sum(count[op] for op in LOCAL):6} {kernel.get('arguments', 0):4} "
            f"{blocks:6} {share:5.0f}%  " + f"{count['HMMA']:5} {count['LDSM']:5} {count['LDGSTS']:6}"
        )
    found = {key: {**kernel.get("lint", {})} for key, kernel in kernels.items() if key[1] <= TUNED}
    kinds = [kernel_lint.SPLIT, kernel_lint.CONVERSIONS, kernel_lint.ONE_BY_ONE]
    if launches:
        kinds.append(kernel_lint.BLOCKS)
        for (name, arch), number in kernel_lint.promised_blocks(ROOT / "kernels", found):
            for shared in launches.get(name, {}).get("shared", []):
                fit, _, limit = occupancy(kernels[name, arch], arch, shared)
                if fit < number:
                    found[name, arch][kernel_lint.BLOCKS] = f"{fit} of {number} fit, because of {limit}"
    wrong += kernel_lint.judge(found, kinds=kinds)
    for line in told + wrong:
        print(f"check_kernels: {line}", file=sys.stderr)
    names = {name for name, _ in kernels}
    architectures = sorted({arch for _, arch in kernels})
    if options.table:
        chosen = [options.arch] if options.arch else [86, 90]
        print(OCCUPANCY)
        print(*table(kernels, launches, chosen), sep="\n")
    else:
        print(f"{len(names)} kernels in {len(files)} files for {architectures}: {len(wrong)} faults")
    if not kernels:
        sys.exit("check_kernels: no kernels in there")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
