#!/usr/bin/env python3
"""Classifies images by an exported network in ONNX Runtime. No PyTorch; the file normalises by itself.

    pip install onnxruntime numpy pillow
    effnet-eval runs/b0 --export b0.onnx --bytes-in
    python examples/onnx_predict.py b0.onnx cat.jpg dog.png
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def prepared(path, note):
    """An image as the network was trained to see it: bytes [side, side, 3]."""
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
    return np.asarray(canvas)


def main(network, *images):
    session = onnxruntime.InferenceSession(network)
    note = json.loads(session.get_modelmeta().custom_metadata_map["effnet-network"])
    batch = np.stack([prepared(path, note) for path in images])
    [logits] = session.run(None, {"images": batch})
    powers = np.exp(logits - logits.max(1, keepdims=True))
    shares = powers / powers.sum(1, keepdims=True)
    for path, share in zip(images, shares):
        best = int(share.argmax())
        print(f"{path}\t{note['classes'][best]}\t{share[best]:.4f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
