#!/usr/bin/env python3
"""Training speed of effnet against timm's model in PyTorch, on one machine in one run.

Both train EfficientNet-B0 on the CPU with the same number of threads: PyTorch eager, channels-last, RMSprop
with momentum; effnet its own RMSprop. They take turns (PyTorch, effnet, PyTorch, ...), so that a machine whose
speed drifts slows both; the ratio is taken pair by pair and the median printed. PyTorch gets its batch as a
ready tensor, effnet loads its images: what unfairness there is lies on PyTorch's side.

    pip install torch timm
    cargo build --release
    python tools/compare_pytorch.py
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def torch_worker(args):
    """Runs in a process of its own: prints the images per second of each timed step."""
    import timm
    import torch

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = timm.create_model(f"efficientnet_{args.model}", num_classes=args.classes, drop_rate=0.2, drop_path_rate=0.2)
    model = model.to(memory_format=torch.channels_last).train()
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-4, alpha=0.9, momentum=0.9, eps=0.01, weight_decay=1e-5)
    side, batch = args.resolution, args.batch
    images = torch.randn(batch, 3, side, side).to(memory_format=torch.channels_last)
    labels = torch.randint(0, args.classes, (batch,))
    rates = []
    for step in range(args.warmup + args.steps):
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()
        if step >= args.warmup:
            rates.append(batch / (time.perf_counter() - start))
    print(json.dumps(rates))


def run_torch(args, side, batch, steps):
    command = [sys.executable, __file__, "--worker", "--model", args.model, "--resolution", str(side)]
    command += ["--batch", str(batch), "--steps", str(steps), "--warmup", str(args.warmup)]
    command += ["--threads", str(args.threads), "--classes", str(args.classes)]
    environment = dict(os.environ, OMP_NUM_THREADS=str(args.threads), MKL_NUM_THREADS=str(args.threads))
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return statistics.median(json.loads(out.strip().splitlines()[-1]))


def run_effnet(args, side, batch, steps):
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        command = [args.effnet, "--device", "cpu", "--model", args.model, "--data", "synthetic", "--out", str(run)]
        command += ["--resolution", str(side), "--batch-size", str(batch), "--threads", str(args.threads)]
        command += ["--max-steps", str(args.warmup + steps), "--lr", "1e-4", "--eval-every", "1000000"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    rates = [r["images_per_second"] for r in records if "lr" in r]
    return statistics.median(rates[args.warmup :])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--effnet", default=str(ROOT / "target/release/effnet-train"), help="the program to measure")
    parser.add_argument("--model", default="b0")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3, help="pairs of runs for each size")
    parser.add_argument("--warmup", type=int, default=2, help="steps before timing starts")
    parser.add_argument("--sizes", default="32:128:20,224:16:6", help="resolution:batch:steps, comma-separated")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    for hidden in ("--resolution", "--batch", "--steps"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return torch_worker(args)

    print(f"{args.model}, {args.threads} threads, images/s in training, median of a run's steps")
    print(f"{'size':>12} {'batch':>6} {'PyTorch':>18} {'effnet':>18} {'ratio (median, range)':>26}")
    for size in args.sizes.split(","):
        side, batch, steps = map(int, size.split(":"))
        pairs = [(run_torch(args, side, batch, steps), run_effnet(args, side, batch, steps)) for _ in range(args.rounds)]
        ratios = sorted(ours / theirs for theirs, ours in pairs)
        spread = lambda values: f"{min(values):.1f}-{max(values):.1f}"
        print(
            f"{side:>8}x{side:<3} {batch:>6} {spread([p[0] for p in pairs]):>18} {spread([p[1] for p in pairs]):>18}"
            f" {statistics.median(ratios):>12.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
