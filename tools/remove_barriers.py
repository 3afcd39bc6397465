#!/usr/bin/env python3
"""Removes every barrier, and every wait for copies, of the kernels in turn, and asks whether a test notices.

    tools/remove_barriers.py                       # all of them: an hour on two cores
    tools/remove_barriers.py stem.cu dense.cuh:107 # those of a file, or one
    tools/remove_barriers.py --markdown FILE       # also writes the table

The tests are built once for each of two builds of the host harness, `plain` and `race`. A barrier is removed while
they run (EFFNET_HARNESS_WITHOUT=FILE:LINE), for all kernels that contain it, in all blocks. The tests (those called
on_the_harness) of the operators whose kernels contain it run until the first one fails, in the plain build; if none does, in the race build. Each is
shown with the build, the test and the first thing that was said. Exit status 1 if a removal passes all tests.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KERNELS = ROOT / "kernels"
PLACE = re.compile(
    r"^(?!\s*//)(?!\s*#define).*?\b(barrier\(\)|warp_barrier\(\)|copy_async_wait<[^;]*>\(\)|last_to_arrive\([^;]*\))"
)


def sources():
    return sorted([*KERNELS.glob("*.cu"), *KERNELS.glob("*.cuh")])


def places(path):
    """(line, what) of each barrier and wait."""
    for number, text in enumerate(path.read_text().splitlines(), 1):
        if path.name != "device.cuh" and (found := PLACE.match(text)):
            yield number, re.sub(r"<.*>|\(.*", "", found[1]) + "()"


def includes(path, seen):
    if path in seen or not path.is_file():
        return seen
    seen.add(path)
    for name in re.findall(r'^#include "([^"]+)"', path.read_text(), re.M):
        includes(KERNELS / name, seen)
    return seen


def tests_of(path):
    """Names of the tests whose kernels contain a file's code: a header's are those that include it."""
    if path.suffix == ".cu":
        users = [path]
    else:
        users = [source for source in sorted(KERNELS.glob("*.cu")) if path in includes(source, set())]
    stems = {user.stem for user in users}
    # Kernels of both make the fused pass.
    return sorted(stems | ({"expand_depthwise"} if stems & {"depthwise", "expand"} else set()))


def build(harness):
    """Builds the operators' tests, in a folder of the harness's own, and returns their program."""
    environment = os.environ | {"EFFNET_HARNESS": harness, "EFFNET_CUDA": "skip"}
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / f"harness-{harness}"
    environment["CARGO_TARGET_DIR"] = str(target)
    command = ["cargo", "test", "--locked", "--no-run", "--message-format=json", "--test=operators"]
    built = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if built.returncode != 0:
        sys.exit(f"remove_barriers: the tests do not build for {harness}")
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    return next(m["executable"] for m in messages if m.get("executable") and m["target"]["kind"] == ["test"])


def tests_on_the_harness(program):
    """Names of the tests that run kernels, by the operator that they are about."""
    listed = subprocess.run([program, "on_the_harness", "--list"], stdout=subprocess.PIPE, text=True, check=True).stdout
    tests = {}
    for name in re.findall(r"^(.*): test$", listed, re.M):
        tests.setdefault(name.split("::")[0], []).append(name)
    return tests


def run(program, tests, without):
    """(test, what it said) of the first of the tests that fails, or none."""
    environment = os.environ | {"RUST_BACKTRACE": "0", "EFFNET_HARNESS_WITHOUT": without}
    # What a test says comes at the end, with --nocapture at once.
    command = [program, "--exact", *tests, "--nocapture", "--test-threads=2"]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    test, said = None, []
    for line in process.stdout:
        if found := re.match(r"thread '([^']+)' .*panicked at", line):
            test = test or found[1]
        elif test and line.strip():
            # "12 failures", and the first of them.
            said.append(line.strip())
            if len(said) == 2:
                break
    else:
        if process.wait() != 0:
            return "(all)", f"ended with status {process.returncode}"
        return None
    process.kill()
    process.wait()
    return test, " ".join(said)


def gist(said):
    """The kind of complaint in a few words."""
    kinds = [
        (r"race on", "a race"),
        (r"nobody has written", "a read of what was not written"),
        (r"still under way at the end", "copies never waited for"),
        (r"was under way when", "a copy still under way"),
        (r"stuck", "a stuck block"),
        (r"order: (\w+)\W.* gives? (?:different|other) bits", "other bits in {} order"),
        (r"[1-9]\d* NaN|\bNaN, not", "NaN"),
        (r"error \d|values differ|grey levels off|of \d+ factors|was changed", "wrong values"),
    ]
    for pattern, kind in kinds:
        if found := re.search(pattern, said):
            return kind.format(*(text.lower() for text in found.groups()))
    return said[:90]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="*", metavar="FILE[:LINE]")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    wanted = [
        (path, line, what)
        for path in sources()
        for line, what in places(path)
        if not arguments.places or path.name in arguments.places or f"{path.name}:{line}" in arguments.places
    ]
    if not wanted:
        sys.exit("remove_barriers: no barrier there")
    programs = {harness: build(harness) for harness in ("plain", "race")}
    tests = tests_on_the_harness(programs["plain"])
    operators = sorted({name for path, _, _ in wanted for name in tests_of(path)})
    if missing := sorted(set(operators) - set(tests)):
        sys.exit(f"remove_barriers: no tests of {', '.join(missing)}")
    for harness, program in programs.items():
        for name in operators:
            if failed := run(program, tests[name], "nowhere:0"):
                sys.exit(f"remove_barriers: with nothing removed, {name} fails in the {harness} build: {failed[0]}: {failed[1]}")
    rows, passed = [], 0
    for path, line, what in wanted:
        began, row = time.monotonic(), None
        for harness, name in [(harness, name) for harness in programs for name in tests_of(path)]:
            if failed := run(programs[harness], tests[name], f"{path.name}:{line}"):
                row = (f"{path.name}:{line}", what, harness, failed[0], gist(failed[1]))
                break
        if not row:
            passed += 1
            row = (f"{path.name}:{line}", what, "—", "NOT NOTICED", "")
        rows.append(row)
        print(f"{row[0]:<28} {row[1]:<18} {row[2]:<6} {row[3]:<64} {row[4]}  {time.monotonic() - began:.0f} s", flush=True)
    print(f"{len(rows)} removed, {len(rows) - passed} noticed")
    if arguments.markdown:
        lines = ["| place | what | build | test | noticed as |", "|---|---|---|---|---|"]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        arguments.markdown.write_text("\n".join(lines) + "\n")
    return 1 if passed else 0


if __name__ == "__main__":
    sys.exit(main())
