#!/usr/bin/env python3
"""Trains on a set that is several times as large as the memory that the run may use, and reports how long steps waited.

Makes a set of 512x512 grey images, four times the limit, and trains B0 on one epoch of it inside a memory control group
(version 2 or 1), whose limit counts the pages of mapped files too. Before each run the set is dropped from the page cache.
Both orders of the images are tried.

    cargo build --release
    python tools/train_beyond_memory.py                  # as a user who may make control groups: root, or in a container
    python tools/train_beyond_memory.py --limit 2048 --keep folder

Without such a group nothing limits mapped files, so there is nothing to measure; the script says so.
"""

import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SIDE, CLASSES, VALIDATION = 512, 10, 64


def make(args):
    out = args.work / "set"
    images = args.times * args.limit * (1 << 20) // SIDE**2 + 1
    if (out / "dataset.json").exists():
        return out
    idx = args.work / "idx"
    idx.mkdir(parents=True, exist_ok=True)
    chance = random.Random(0)
    for name, count in [("train", images), ("t10k", VALIDATION)]:
        with open(idx / f"{name}-images-idx3-ubyte", "wb") as file:
            file.write(struct.pack(">4B3I", 0, 0, 8, 3, count, SIDE, SIDE))
            for _ in range(count):
                file.write(chance.randbytes(SIDE**2))
        with open(idx / f"{name}-labels-idx1-ubyte", "wb") as file:
            file.write(struct.pack(">4BI", 0, 0, 8, 1, count))
            # Sorted by class, as folders are packed.
            file.write(bytes(number * CLASSES // count for number in range(count)))
    subprocess.run([args.programs / "effnet-pack", idx, out, "--force"], check=True)
    for file in idx.iterdir():
        file.unlink()
    return out


def drop(folder):
    """Drops a set from the page cache."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Group:
    """A control group below this process's own, with a limit of memory."""

    def __init__(self, limit):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                root, limits, self.peak = Path("/sys/fs/cgroup"), "memory.max", "memory.peak"
            elif "memory" in controllers.split(","):
                root, limits, self.peak = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.max_usage_in_bytes"
            else:
                continue
            self.path = root / path.lstrip("/") / f"effnet-{os.getpid()}"
            try:
                self.path.mkdir()
            except OSError:
                continue
            try:
                (self.path / limits).write_text(str(limit))
                return
            except OSError:
                self.path.rmdir()
        sys.exit("no memory control group can be made here: run it as root, or in a container with a limit of its own")

    def enter(self):
        (self.path / "cgroup.procs").write_text(str(os.getpid()))

    def most(self):
        return int((self.path / self.peak).read_text())

    def remove(self):
        self.path.rmdir()


def train(args, folder, shuffle):
    drop(folder)
    group = Group(args.limit << 20)
    words = ["--shuffle", shuffle, "--resolution", args.resolution, "--batch-size", args.batch, "--epochs", 1]
    words += ["--warmup-epochs", 0.1, "--data", folder, "--out", args.work / f"run-{shuffle}", "--force", "--json"]
    words += ["--device", "cpu", "--max-steps", args.steps] if args.steps else ["--device", "cpu"]
    try:
        command = [str(word) for word in [args.programs / "effnet-train", *words]]
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=group.enter)
        most = group.most()
    finally:
        group.remove()
    if done.returncode != 0:
        sys.exit(f"--shuffle {shuffle}: status {done.returncode}: {done.stderr.strip()}")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    finished = next(event for event in events if event["event"] == "finished")
    first = next(event["data_wait"] for event in events if event["event"] == "step")
    seconds, wait = finished["train_seconds"], finished["data_wait"]
    print(
        f"--shuffle {shuffle}: {finished['step']} steps in {seconds:.0f} s, {finished['images_per_second']:.0f} images/s, "
        f"wait {wait * 100:.2f} %, without the first step's {max(wait * seconds - first, 0) / seconds * 100:.2f} %; "
        f"at most {most / (1 << 20):.0f} MiB of memory",
        flush=True,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=1024, help="MiB of memory for a run")
    parser.add_argument("--times", type=int, default=4, help="size of the set in limits")
    parser.add_argument("--resolution", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=0, help="fewer than an epoch")
    parser.add_argument("--keep", type=Path, help="a folder for the set, which is used again")
    parser.add_argument("--programs", type=Path, default=ROOT / "target/release")
    parser.add_argument("--orders", default="blocks,full")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        args.work = args.keep or Path(folder)
        Group(args.limit << 20).remove()
        data = make(args)
        size = sum(path.stat().st_size for path in data.iterdir())
        print(f"a set of {size / (1 << 30):.2f} GiB, {args.limit} MiB of memory", flush=True)
        for shuffle in args.orders.split(","):
            train(args, data, shuffle)


if __name__ == "__main__":
    main()
