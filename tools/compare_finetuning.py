#!/usr/bin/env python3
"""What trained weights are worth with few images: fine-tuning against training from scratch, on the same images.

The classes of an IDX set such as Fashion-MNIST are divided: on the first half, with all their images, B0 is trained with
the preset `small`. Then a few training images of each class of the other half (100 unless --images says otherwise) are all
that the second network sees; its figure is the top-1 on all test images of those classes. Rows:

- scratch: the preset `small` without weights, for as many steps as the fine-tuning, and for four times as many;
- finetune: --preset finetune --init-from the first network;
- finetune, one rate: the same with --body-lr 1 --classifier-epochs 0;
- classifier: the same with --classifier-epochs as long as the run, so that only the classifier ever moves.

    pip install numpy pillow
    cargo build --release
    tools/compare_finetuning.py runs.jsonl --seeds 0-2

Each run is a line of runs.jsonl as soon as it ends, and is left out when it is there already. The set is that of Debian's
package dataset-fashion-mnist unless --set says otherwise; folders and runs are made in --work.
"""

import argparse
import gzip
import json
import statistics
import struct
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROWS = ["scratch", "scratch, longer", "finetune", "finetune, one rate", "classifier"]


def idx(path):
    import numpy as np

    with gzip.open(path) as file:
        header = file.read(4)
        shape = struct.unpack(f">{header[3]}I", file.read(4 * header[3]))
        return np.frombuffer(file.read(), np.uint8).reshape(shape)


def folders(source, work, images):
    """Class folders: first/{train,val}, second/{train,val}."""
    from PIL import Image

    if (work / "made").exists():
        return
    for part, name in [("train", "train"), ("val", "t10k")]:
        pixels, labels = idx(source / f"{name}-images-idx3-ubyte.gz"), idx(source / f"{name}-labels-idx1-ubyte.gz")
        half, seen = (int(labels.max()) + 1) // 2, {}
        for number, (image, label) in enumerate(zip(pixels, labels)):
            label = int(label)
            seen[label] = seen.get(label, 0) + 1
            which = "first" if label < half else "second"
            if which == "second" and part == "train" and seen[label] > images:
                continue
            folder = work / which / part / f"class{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{number:05}.png")
    (work / "made").touch()


def train(args, data, out, *flags):
    """Top-1 of the last evaluation, of the moving average where there is one."""
    command = [args.effnet / "effnet-train", "--device", "cpu", "--threads", args.threads, "--data", data, "--out", out]
    command += ["--resume"] if (out / "checkpoint.bin").exists() else ["--force", *flags]
    ran = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if ran.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: {ran.stderr.strip()}")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    last = [line for line in lines if "top1" in line][-1]
    return last.get("ema_top1", last["top1"])


def flags_of(row, args, weights, seed):
    small = ["--resolution", 32, "--seed", seed, "--eval-every", args.epochs]
    scratch = ["--preset", "small", "--batch-size", 32, *small]
    finetune = ["--preset", "finetune", "--init-from", weights, "--batch-size", 32, "--epochs", args.epochs, *small]
    return {
        "scratch": [*scratch, "--epochs", args.epochs],
        "scratch, longer": [*scratch, "--epochs", 4 * args.epochs],
        "finetune": finetune,
        "finetune, one rate": [*finetune, "--body-lr", 1, "--classifier-epochs", 0],
        "classifier": [*finetune, "--classifier-epochs", args.epochs - 1 / 1024],
    }[row]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("--seeds", default="0-2")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--first-epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--set", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--work", type=Path, default=Path("finetuning"))
    parser.add_argument("--effnet", type=Path, default=ROOT / "target/release")
    args = parser.parse_args()
    args.work.mkdir(exist_ok=True)
    folders(args.set, args.work, args.images)
    first = train(args, args.work / "first", args.work / "pretrained", "--preset", "small", "--epochs", args.first_epochs)
    print(f"the first network: {100 * first:.2f} % on its own classes")
    weights = args.work / "pretrained/best.bin"
    done = [json.loads(line) for line in args.results.read_text().splitlines()] if args.results.exists() else []
    low, _, high = args.seeds.partition("-")
    # Lines of other settings in the same file are no results of these.
    settings = {"images": args.images, "epochs": args.epochs, "first_epochs": args.first_epochs}
    done = [run for run in done if settings.items() <= run.items()]
    for row in ROWS:
        figures = []
        for seed in range(int(low), int(high or low) + 1):
            found = [run for run in done if (run["row"], run["seed"]) == (row, seed)]
            if found:
                figures.append(found[0]["top1"])
                continue
            out = args.work / f"{row.replace(', ', '-').replace(' ', '-')}-{seed}"
            top1 = train(args, args.work / "second", out, *flags_of(row, args, weights, seed))
            figures.append(top1)
            with args.results.open("a") as file:
                file.write(json.dumps({"row": row, "seed": seed, "top1": top1, **settings}) + "\n")
        mean = 100 * statistics.mean(figures)
        print(f"| {row} | {mean:.2f} | {', '.join(f'{100 * figure:.2f}' for figure in figures)} |", flush=True)


if __name__ == "__main__":
    main()
