#!/usr/bin/env python3
"""Checks an export against timm: the names load with strict=True and the logits agree.

    pip install torch timm safetensors
    effnet-eval runs/b0/checkpoint.bin --export b0.safetensors
    python tools/check_export.py runs/b0/checkpoint.bin b0.safetensors IMAGE...

effnet-eval prints the probabilities of each image's best classes; timm's model, given the same weights and the
same preprocessing, must give the same ones to a part in a thousand.
"""

import argparse
import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def settings(checkpoint):
    """The metadata of a checkpoint: model, classes, resolution, padding, batch-norm constants, crop."""
    from safetensors import safe_open

    with safe_open(checkpoint, "pt") as file:
        return json.loads(file.metadata()["effnet"])


def preprocess(path, resolution, crop, mean, deviation):
    """The pixels, and whether they were resized. Resize the shorter side to resolution/0.875 and crop the centre; or pad,
    where a larger image is first scaled down until its longer side fits."""
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    if crop == "resized":
        target = round(resolution / 0.875)
        scale = target / min(image.size)
        image = image.resize([max(target, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    scaled_down = crop == "pad" and max(image.size) > resolution
    if scaled_down:
        scale = resolution / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (resolution, resolution))
    canvas.paste(image, ((resolution - image.width) // 2, (resolution - image.height) // 2))
    pixels = torch.from_numpy(np.asarray(canvas).copy()).float() / 255
    pixels = ((pixels - torch.tensor(mean)) / torch.tensor(deviation)).permute(2, 0, 1)
    return pixels, crop == "resized" or scaled_down


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("export")
    parser.add_argument("images", nargs="*")
    parser.add_argument("--effnet", default=str(ROOT / "target/release/effnet-eval"))
    args = parser.parse_args()

    import timm
    import torch
    from safetensors.torch import load_file

    meta = settings(args.checkpoint)
    family = "tf_efficientnet" if meta["padding"] == "same" else "efficientnet"
    names = meta["classes"]
    model = timm.create_model(f"{family}_{meta['model']}", num_classes=len(names), bn_eps=meta["batch-norm"]["eps"])
    model.load_state_dict(load_file(args.export), strict=True)
    model.eval()
    print(f"{args.export}: {len(model.state_dict())} tensors load into timm's {family}_{meta['model']}, strict")
    if not args.images:
        return

    out = subprocess.run([args.effnet, args.checkpoint, "--json", *args.images], check=True, capture_output=True, text=True)
    worst, agrees = 0.0, True
    for path, line in zip(args.images, out.stdout.splitlines(), strict=True):
        image, resized = preprocess(path, meta["resolution"], meta["crop"], meta["normalise"]["mean"], meta["normalise"]["deviation"])
        with torch.no_grad():
            expected = model(image[None]).softmax(1)[0]
        for found in json.loads(line)["classes"]:
            difference = abs(expected[names.index(found["class"])].item() - found["probability"])
            worst = max(worst, difference)
            # Pillow rounds to bytes between its two resizing passes and its filter weights are fixed-point; without
            # resizing only fp32 rounding is left.
            agrees = agrees and difference <= (1e-2 if resized else 1e-4)
    print(f"{len(args.images)} images: probabilities differ by at most {worst:.1e}")
    if not agrees:
        raise SystemExit("the export does not agree with timm")


if __name__ == "__main__":
    main()
