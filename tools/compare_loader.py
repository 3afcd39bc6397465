#!/usr/bin/env python3
"""Packing and loading of effnet against the sum of their own parts and against PyTorch's DataLoader, on one machine.

Makes photographs of 500x375 as JPEG files, about 0.1 MB each, and then:

1. packs them scaled down to a shorter side of 256, as pixels, and compares the rate with that of the decoder and the
   resizer alone on the same cores (`effnet-pack --bench`): 1 / (1/decode + 1/resize). Packs them as they are, too, and
   compares with the decoder alone.
2. loads training batches at 224: effnet from the JPEG shards, from the shards of pixels, and from the JPEG shards with
   AutoAugment; PyTorch's DataLoader with torchvision's ImageFolder, RandomResizedCrop, RandomHorizontalFlip and
   AutoAugment, from the JPEG files. Both give bytes, 64 images a batch, from as many workers as there are cores. They
   take turns, ratios are taken round by round, and the median is printed with the least and the most: by the clock, and
   by the processor's time for an image, which other programs on the machine disturb less.

    cargo build --release --bin effnet-pack
    pip install numpy pillow torch torchvision
    python tools/compare_loader.py                       # about fifteen minutes on two cores, and 8 GB of disk
    python tools/compare_loader.py --images 2000 --rounds 1 --keep photographs

Without torch and torchvision, effnet's own figures are printed, and what is missing. All files should be in memory: a
machine with less than 12 GB needs fewer --images.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CLASSES, WIDTH, HEIGHT, SHORTER, RESOLUTION, BATCH = 10, 500, 375, 256, 224, 64
CPU_BATCHES, GPU_BATCHES = "whole batches, for a CPU", "whole batches, for a GPU"


def make_part(folder, first, end):
    """Photographs first..end: windows of smooth noise, under grain."""
    import numpy
    from PIL import Image

    random = numpy.random.default_rng(first)

    def smooth(cells):
        small = random.integers(0, 256, (cells, cells, 3), dtype=numpy.uint8)
        return numpy.asarray(Image.fromarray(small).resize((1200, 1200), Image.BICUBIC)).astype(numpy.int16)

    field = smooth(8) // 2 + smooth(60) // 4 + smooth(300) // 4
    grain = random.integers(-28, 29, (1200, 1200, 3), dtype=numpy.int16)

    def window(of):
        top, left = random.integers(0, 1200 - HEIGHT), random.integers(0, 1200 - WIDTH)
        return of[top : top + HEIGHT, left : left + WIDTH]

    for number in range(first, end):
        pixels = numpy.clip(window(field) + window(grain), 0, 255).astype(numpy.uint8)
        path = folder / f"class{number % CLASSES}" / f"{number:06}.jpg"
        Image.fromarray(pixels).save(path, quality=87)


def make(folder, images, threads):
    for number in range(CLASSES):
        (folder / f"class{number}").mkdir(parents=True, exist_ok=True)
    have = sum(1 for _ in folder.glob("*/*.jpg"))
    if have == images:
        return
    if have:
        sys.exit(f"{folder} has {have} images, not {images}: remove it, or give --images {have}")
    step = -(-images // (4 * threads))
    with ProcessPoolExecutor(threads) as pool:
        parts = [pool.submit(make_part, folder, at, min(at + step, images)) for at in range(0, images, step)]
        [part.result() for part in parts]


def run(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}: {done.stderr.strip()}")
    return done.stdout


class Rate:
    """Images a second on all cores, and the processor's milliseconds for one."""

    def __init__(self, images, seconds, cpu_seconds):
        self.images, self.cpu = images / seconds, cpu_seconds / images * 1e3

    def then(self, other):
        return Rate(1, 1 / self.images + 1 / other.images, (self.cpu + other.cpu) / 1e3)

    def over(self, other):
        """How much faster this is: by the clock, and by the processor's time."""
        return self.images / other.images, other.cpu / self.cpu

    def __str__(self):
        return f"{self.images:.0f} images/s ({self.cpu:.3f} ms of a core)"


def pack(args, out, *flags):
    """Packing as a whole, with the wait for the disk at its end."""
    before, since = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [args.effnet_pack, args.folder, out, "--force", "--json", "--threads", args.threads, *flags]
    summary = json.loads(run(command))
    if summary["train"]["images"] + summary["val"]["images"] != args.images:
        sys.exit(f"{out}: images are missing")
    seconds, after = time.perf_counter() - since, resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Rate(args.images, seconds, worked)


def bench(args, out, *flags):
    """The rates of all cores, by stage."""
    words = ["--bench", out, "--json", "--threads", args.threads, "--seconds", args.seconds]
    found = json.loads(run([args.effnet_pack, *words, "--resolution", RESOLUTION, *flags]))
    threads = found["threads"]
    return {
        row["stage"]: Rate(row["images"], row["seconds"] / threads, row["cpu_seconds"])
        for row in found["rows"]
        if row["seconds"] > 0
    }


def torch_rate(args, auto_augment):
    import torch
    from torchvision import datasets, transforms

    steps = [transforms.RandomResizedCrop(RESOLUTION), transforms.RandomHorizontalFlip()]
    steps += [transforms.AutoAugment()] if auto_augment else []
    data = datasets.ImageFolder(args.folder, transforms.Compose([*steps, transforms.PILToTensor()]))
    loader = torch.utils.data.DataLoader(
        data, batch_size=BATCH, shuffle=True, num_workers=args.threads, drop_last=True, prefetch_factor=4
    )
    ticks = os.sysconf("SC_CLK_TCK")

    def worked(batches):
        stats = [Path(f"/proc/{worker.pid}/stat").read_text() for worker in batches._workers]
        times = [stat.rsplit(")", 1)[1].split()[11:13] for stat in stats]
        return time.process_time() + sum(int(user) + int(system) for user, system in times) / ticks

    if len(loader) < 2:
        sys.exit(f"fewer than two batches of {BATCH} images: give more --images")
    # As for effnet: the batches that lie ready at the start do not count. Of a small set, half is left to measure.
    warm, images, batches = min(4 * args.threads, len(loader) // 2), 0, iter(loader)
    for number, (batch, _) in enumerate(batches, 1):
        if number == warm:
            since, before = time.perf_counter(), worked(batches)
        elif number > warm:
            # Noted at every batch: when the set ends, so do the workers, and their figures with them.
            images += len(batch)
            seconds, busy = time.perf_counter() - since, worked(batches) - before
            if seconds >= 2 * args.seconds:
                break
    return Rate(images, seconds, busy)


def spread(ratios):
    """Of ratios by the clock and by the processor's time."""
    words = [f"{statistics.median(r):.2f} ({min(r):.2f} to {max(r):.2f})" for r in zip(*ratios)]
    return f"{words[0]}, by the processor's time {words[1]}"


def packing(args):
    jpeg, pixels = args.work / "jpeg", args.work / "pixels"
    flags = ["--encoding", "raw", "--resize-shorter", SHORTER]
    whole, reduced = [], []
    for _ in range(args.rounds):
        plain = pack(args, jpeg)
        small = pack(args, pixels, *flags)
        parts = bench(args, jpeg, "--resize-shorter", SHORTER)
        decode, resize = parts["decode"], parts["scale down, as packing does"]
        both = decode.then(resize)
        whole.append(plain.over(decode))
        reduced.append(small.over(both))
        print(f"packing as they are: {plain}; decoder: {decode}")
        print(f"packing to {SHORTER}, as pixels: {small}; decoder, then resizer: {both}; resizer: {resize}", flush=True)
    print(f"packing to {SHORTER}, as pixels / decoder and resizer: {spread(reduced)}")
    print(f"packing as they are / decoder: {spread(whole)}")


def loading(args):
    try:
        import torch
        import torchvision

        print(f"against torch {torch.__version__} and torchvision {torchvision.__version__}")
        rival = True
    except Exception as error:
        print(f"no rival: torch and torchvision do not run here ({error}): pip install torch torchvision")
        rival = False
    cases = [
        ("JPEG shards", "jpeg", [], False),
        ("shards of pixels", "pixels", [], False),
        ("JPEG shards, AutoAugment", "jpeg", ["--augment", "autoaugment"], True),
    ]
    ratios = {name: [] for name, *_ in cases}
    for _ in range(args.rounds):
        for name, folder, flags, auto_augment in cases:
            ours = bench(args, args.work / folder, *flags)
            print(f"{name}: effnet {ours[CPU_BATCHES]}; for a GPU {ours[GPU_BATCHES]}", flush=True)
            if rival:
                theirs = torch_rate(args, auto_augment)
                ratios[name].append(ours[CPU_BATCHES].over(theirs))
                print(f"{name}: torchvision {theirs}", flush=True)
    if rival:
        for name, values in ratios.items():
            print(f"{name} / torchvision: {spread(values)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", type=Path, help="a folder for photographs and shards, which is used again")
    parser.add_argument("--effnet-pack", type=Path, default=ROOT / "target/release/effnet-pack")
    parser.add_argument("--only", choices=["packing", "loading"], help="loading alone needs the shards of --keep")
    args = parser.parse_args()
    if not args.effnet_pack.exists():
        sys.exit(f"{args.effnet_pack} is missing: cargo build --release --bin effnet-pack")
    with tempfile.TemporaryDirectory() as folder:
        args.work = args.keep or Path(folder)
        args.folder = args.work / "photographs"
        make(args.folder, args.images, args.threads)
        size = sum(path.stat().st_size for path in args.folder.glob("*/*.jpg"))
        print(f"{args.images} photographs of {WIDTH}x{HEIGHT}, {size / args.images / 1e3:.0f} kB each, {args.threads} cores")
        if args.only != "loading":
            packing(args)
        if args.only != "packing":
            loading(args)


if __name__ == "__main__":
    main()
