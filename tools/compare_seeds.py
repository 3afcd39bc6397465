#!/usr/bin/env python3
"""Accuracy of the same recipe over several seeds: effnet's, and timm's network in PyTorch.

One run says little: seeds of one recipe differ by a per cent. This trains B0 on an IDX set such as Fashion-MNIST once for
each seed, on the CPU, writes a line of JSON for each run as soon as it ends, leaves out what the file has already, and
prints a table of mean, worst and best. With --torch it also trains timm's efficientnet_b0 with the recipe of --epochs,
--batch and --lr: RMSprop (alpha 0.9, momentum 0.9, eps 0.01, weight decay 1e-5), cosine after a warm-up, label smoothing
0.1, no dropout, images of 28x28 shifted at random within 32x32 and mirrored.

    tools/compare_seeds.py runs.jsonl --seeds 0-9 --torch
    tools/compare_seeds.py small.jsonl --seeds 0-2 --preset small
    tools/compare_seeds.py runs.jsonl --seeds 0-4 --precision bf16

The set is that of Debian's package dataset-fashion-mnist unless --set says otherwise. effnet is target/release unless
--effnet names the folder of its programs.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def effnet(args, seed, data):
    """Top-1, of the moving average where there is one, at each evaluation; and the seconds of all steps.

    A run that was stopped goes on; effnet-train refuses one that has another recipe.
    """
    out = data.parent / f"{args.recipe}-{seed}"
    command = [args.effnet / "effnet-train", "--device", "cpu", "--data", data, "--out", out]
    command += ["--seed", seed, "--resume" if (out / "checkpoint.bin").exists() else "--force"]
    if args.preset:
        command += ["--preset", args.preset]
    else:
        command += ["--resolution", 32, "--batch-size", args.batch, "--epochs", args.epochs]
        command += ["--warmup-epochs", args.epochs / 10, "--lr", args.lr]
        command += ["--dropout", 0, "--drop-connect", 0, "--eval-every", args.eval_every]
    if args.precision:
        command += ["--precision", args.precision]
    if args.threads:
        command += ["--threads", args.threads]
    subprocess.run(list(map(str, command)), check=True, stdout=sys.stderr)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "lr" in line]
    batch = tomllib.loads((out / "recipe.toml").read_text())["batch-size"]
    seconds = sum(batch / step["images_per_second"] for step in steps)
    return [line.get("ema_top1", line["top1"]) for line in lines if "top1" in line], seconds


def idx(path):
    import gzip

    import numpy

    raw = gzip.open(path).read()
    sides = [int.from_bytes(raw[4 + 4 * i : 8 + 4 * i], "big") for i in range(raw[3])]
    return numpy.frombuffer(raw, numpy.uint8, offset=4 + 4 * len(sides)).reshape(sides)


def torch_run(args, seed, _):
    import timm
    import torch

    torch.manual_seed(seed)
    part = {"train": "train", "val": "t10k"}
    images, labels = (
        {name: torch.from_numpy(idx(args.set / f"{file}-{kind}.gz").copy()) for name, file in part.items()}
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    )
    scaled = images["train"].float() / 255
    mean, deviation = scaled.mean(), scaled.std()

    def batch(split, numbers, augment):
        count = len(numbers)
        pixels = torch.zeros(count, 32, 32)
        picked = images[split][numbers].float() / 255
        if augment:
            mirrored = torch.rand(count) < 0.5
            picked[mirrored] = picked[mirrored].flip(-1)
            for at, (x, y) in enumerate(torch.randint(0, 5, (count, 2)).tolist()):
                pixels[at, y : y + 28, x : x + 28] = picked[at]
        else:
            pixels[:, 2:30, 2:30] = picked
        pixels = ((pixels - mean) / deviation)[:, None].expand(-1, 3, -1, -1)
        return pixels.contiguous(memory_format=torch.channels_last), labels[split][numbers].long()

    model = timm.create_model("efficientnet_b0", num_classes=10, drop_rate=0.0, drop_path_rate=0.0)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.RMSprop(
        model.parameters(), lr=args.lr, alpha=0.9, momentum=0.9, eps=0.01, weight_decay=1e-5
    )
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    count = len(labels["train"])
    steps = round(args.epochs * count / args.batch)
    warmup = round(args.epochs / 10 * count / args.batch)
    since, results, order = time.monotonic(), [], torch.empty(0, dtype=torch.long)
    for step in range(steps):
        if step < warmup:
            rate = args.lr * (step + 1) / warmup
        else:
            rate = args.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        if len(order) < args.batch:
            order = torch.cat([order, torch.randperm(count)])
        numbers, order = order[: args.batch], order[args.batch :]
        pixels, targets = batch("train", numbers, True)
        optimizer.zero_grad()
        loss_of(model(pixels), targets).backward()
        optimizer.step()
        done = step + 1
        if done == steps or done % round(args.eval_every * count / args.batch) == 0:
            results.append(top1(model, batch, len(labels["val"])))
            print(f"timm, seed {seed}, step {done}: {results[-1]:.4f}", file=sys.stderr, flush=True)
    return results, time.monotonic() - since


def top1(model, batch, count):
    import torch

    model.eval()
    right = 0
    with torch.no_grad():
        for first in range(0, count, 500):
            pixels, targets = batch("val", torch.arange(first, min(first + 500, count)), False)
            right += int((model(pixels).argmax(1) == targets).sum())
    model.train()
    return right / count


def seeds(text):
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="a file of JSON lines, which is added to")
    parser.add_argument("--seeds", type=seeds, default=range(3), help="such as 0-9")
    parser.add_argument("--preset", help="effnet's, instead of --epochs, --batch and --lr")
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.001)
    parser.add_argument("--eval-every", type=float, default=1.0, help="epochs between evaluations")
    parser.add_argument("--torch", action="store_true", help="train timm's network too")
    parser.add_argument("--set", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--runs", type=Path, help="a folder that keeps effnet's runs: one that was stopped is resumed")
    parser.add_argument("--precision", choices=["fp32", "bf16"], help="of effnet's activations")
    parser.add_argument("--threads", type=int, help="of effnet; the result is the same with any number")
    parser.add_argument("--effnet", type=Path, default=ROOT / "target/release")
    args = parser.parse_args()
    if args.torch and args.preset:
        parser.error("--torch trains the recipe of --epochs, --batch and --lr, not a preset")

    recipe = args.preset or f"{args.epochs:g} epochs, batch {args.batch}, lr {args.lr:g}"
    if args.eval_every != 1 and not args.preset:
        recipe += f", evaluated every {args.eval_every:g}"
    if args.precision:
        recipe += f", {args.precision}"
    args.recipe = f"{args.set.name}-{recipe}".replace(", ", "-").replace(" ", "-")
    done = {}
    if args.results.exists():
        for line in args.results.read_text().splitlines():
            run = json.loads(line)
            done[run["recipe"], run["program"], run["seed"]] = run
    programs = {"effnet": effnet} | ({"timm": torch_run} if args.torch else {})
    with tempfile.TemporaryDirectory() as folder:
        data = (args.runs or Path(folder)) / args.set.name
        if not (data / "dataset.json").exists():
            subprocess.run([args.effnet / "effnet-pack", args.set, data], check=True, stdout=sys.stderr)
        for seed in args.seeds:
            for program, train in programs.items():
                if (recipe, program, seed) in done:
                    continue
                top1s, seconds = train(args, seed, data)
                run = {"recipe": recipe, "program": program, "seed": seed, "top1": top1s, "seconds": round(seconds)}
                with args.results.open("a") as file:
                    print(json.dumps(run), file=file)
                done[recipe, program, seed] = run

    print(f"{recipe}: top-1 on the held-out images, %\n")
    print("| program | seeds | mean | worst | best | after the first evaluation, worst |\n|---|---:|---:|---:|---:|---:|")
    for program in programs:
        runs = [done[recipe, program, seed]["top1"] for seed in args.seeds]
        last = [100 * run[-1] for run in runs]
        first = min(100 * run[0] for run in runs)
        row = [len(runs), statistics.mean(last), min(last), max(last), first]
        print(f"| {program} | {row[0]} | " + " | ".join(f"{value:.2f}" for value in row[1:]) + " |")


if __name__ == "__main__":
    main()
