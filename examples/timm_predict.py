#!/usr/bin/env python3
"""Classifies images by an exported network in timm.

    pip install torch timm safetensors pillow
    effnet-eval runs/b0 --export b0.safetensors
    python examples/timm_predict.py b0.safetensors cat.jpg dog.png
"""

import json
import sys

import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file


def prepared(path, note):
    """An image as the network was trained to see it: float [3, side, side]."""
    side = note["resolution"]
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    if note["crop"] == "pad":
        scale = min(1, side / max(image.size))
    else:
        scale = round(side / 0.875) / min(image.size)
    if scale != 1:
        image = image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.BILINEAR)
    canvas = Image.new("RGB", (side, side))
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    pixels = torch.from_numpy(np.asarray(canvas).copy()).float() / 255
    return ((pixels - torch.tensor(note["mean"])) / torch.tensor(note["deviation"])).permute(2, 0, 1)


def main(weights, *images):
    with safe_open(weights, "pt") as file:
        note = json.loads(file.metadata()["effnet-network"])
    family = "tf_efficientnet" if note["padding"] == "same" else "efficientnet"
    classes, eps = note["classes"], note["batch-norm-eps"]
    model = timm.create_model(f"{family}_{note['model']}", num_classes=len(classes), bn_eps=eps)
    model.load_state_dict(load_file(weights), strict=True)
    model.eval()
    for path in images:
        with torch.no_grad():
            shares = model(prepared(path, note)[None]).softmax(1)[0]
        best = int(shares.argmax())
        print(f"{path}\t{classes[best]}\t{shares[best]:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
