#!/usr/bin/env python3
"""Compares how effnet-pack decodes JPEGs with how libjpeg does: every kind of sampling, scans and restart markers.

    python tools/sweep_jpeg.py [--pack target/release/effnet-pack] [--cjpeg cjpeg] [--sizes 640x480,31x7]

It makes some 1,900 small JPEGs, packs them with `--encoding raw`, reads the shards and compares the pixels with Pillow's.
A file passes if it differs by at most 8 levels, because decoders interpolate the planes of colour differently, or if it
was left out with a reason. (With --sizes: at widths of 8 and of 4 or less, the edges of subsampled pictures differ more.)
Needs Python 3.9 or later, Pillow
(`pip install pillow numpy`) and libjpeg's cjpeg (Debian: libjpeg-turbo-progs). Status 1 if a file was read wrongly.
"""
import argparse
import io
import itertools
import json
import os
import struct
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image, ImageDraw

SIZES = [(61, 47), (88, 88), (33, 17), (9, 8), (100, 75), (40, 129)]
SAMPLINGS = ["1x1", "2x1", "1x2", "2x2", "4x1", "1x4", "4x2", "2x1,1x2,1x1", "2x2,2x1,2x1", "1x1,2x2,2x2", "2x2,1x2,1x2"]
SCANS = {
    "one": "0 1 2;",
    "each": "0; 1; 2;",
    "y_cbcr": "0; 1 2;",
    "ycb_cr": "0 1; 2;",
    "backwards": "2; 1; 0;",
    "progressive": "0 1 2: 0-0, 0, 1; 0: 1-5, 0, 2; 2: 1-63, 0, 1; 1: 1-63, 0, 1; 0: 6-63, 0, 2; 0: 1-63, 2, 1;"
    "0 1 2: 0-0, 1, 0; 2: 1-63, 1, 0; 1: 1-63, 1, 0; 0: 1-63, 1, 0;",
    "progressive_each": "0: 0-0, 0, 0; 1: 0-0, 0, 0; 2: 0-0, 0, 0; 0: 1-63, 0, 0; 1: 1-63, 0, 0; 2: 1-63, 0, 0;",
}
RESTARTS = {"none": [], "mcu": ["-restart", "1B"], "five": ["-restart", "5B"], "row": ["-restart", "1"]}


def picture(width, height):
    y, x = np.mgrid[0:height, 0:width].astype(float)
    blue = 127 + 120 * np.sin((x + 2 * y) / 9)
    red, green = 255 * x / max(1, width - 1), 255 * y / max(1, height - 1)
    image = Image.fromarray(np.stack([red, green, blue], 2).clip(0, 255).astype("uint8"))
    draw = ImageDraw.Draw(image)
    draw.ellipse([width // 2, height // 2, width - width // 8, height - height // 8], fill=(10, 200, 240))
    return image


def encoded(image, **options):
    out = io.BytesIO()
    image.save(out, "JPEG", quality=92, **options)
    return out.getvalue()


def without(jpeg, marker):
    """A JPEG without the first segment of that marker."""
    at = jpeg.index(bytes([0xFF, marker]))
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]


def adobe(transform):
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])


def colour_cases():
    """Files whose colours the segments of JFIF and Adobe dispute."""
    jpeg = encoded(picture(61, 47))
    after = 2 + 2 + int.from_bytes(jpeg[4:6], "big")
    bare = without(jpeg, 0xE0)
    for transform in (0, 1, 2):
        yield f"jfif_adobe{transform}", jpeg[:after] + adobe(transform) + jpeg[after:]
        yield f"adobe{transform}_jfif", jpeg[:2] + adobe(transform) + jpeg[2:]
        yield f"adobe{transform}", bare[:2] + adobe(transform) + bare[2:]
    yield "bare", bare
    yield "rgb", encoded(picture(61, 47), keep_rgb=True)
    yield "rgb_bare", without(encoded(picture(61, 47), keep_rgb=True), 0xEE)
    yield "grey", encoded(picture(61, 47).convert("L"))
    cmyk = encoded(picture(61, 47).convert("CMYK"))
    yield "cmyk", cmyk
    yield "ycck", cmyk.replace(adobe(0)[4:], adobe(2)[4:])


def cases(cjpeg, sizes):
    for (width, height), sampling, (scans, script), (restart, flags) in itertools.product(
        sizes, SAMPLINGS, SCANS.items(), RESTARTS.items()
    ):
        ppm = io.BytesIO()
        picture(width, height).save(ppm, "PPM")
        with tempfile.NamedTemporaryFile("w", suffix=".scans") as file:
            file.write(script)
            file.flush()
            command = [cjpeg, "-quality", "92", "-sample", sampling, "-scans", file.name, *flags]
            ran = subprocess.run(command, input=ppm.getvalue(), capture_output=True)
        if ran.returncode == 0:
            yield f"{width}x{height} {sampling} {scans} restart-{restart}".replace(" ", "-"), ran.stdout
    yield from colour_cases()


def samples(folder, split):
    """Source number and pixels of every sample of a set that was packed raw."""
    for name in sorted(os.listdir(folder)):
        if not (name.startswith(split) and name.endswith(".shard")):
            continue
        with open(os.path.join(folder, name), "rb") as file:
            data = file.read()
        (count,) = struct.unpack_from("<Q", data, 24)
        for number in range(count):
            offset, id, length, width, height, _, _, channels = struct.unpack_from("<QQIIIIIB", data, 64 + 40 * number)
            pixels = np.frombuffer(data, np.uint8, length, offset).reshape(height, width, channels)
            yield id, np.broadcast_to(pixels, (height, width, 3)).astype(int)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", default="target/release/effnet-pack")
    parser.add_argument("--cjpeg", default="cjpeg")
    parser.add_argument("--sizes", help="other sizes of the pictures, such as 640x480,31x7")
    parser.add_argument("--keep", help="keep the files in this folder")
    arguments = parser.parse_args()
    root = arguments.keep or tempfile.mkdtemp()
    source, out = os.path.join(root, "source"), os.path.join(root, "out")
    for folder in ("train/a", "train/b", "val/a", "val/b"):
        os.makedirs(os.path.join(source, folder), exist_ok=True)
    expected = {}
    sizes = SIZES
    if arguments.sizes:
        sizes = [tuple(map(int, size.split("x"))) for size in arguments.sizes.split(",")]
    for name, jpeg in cases(arguments.cjpeg, sizes):
        with open(os.path.join(source, "train/a", name + ".jpg"), "wb") as file:
            file.write(jpeg)
        expected[name] = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)
    for folder in ("train/b", "val/a", "val/b"):
        picture(9, 9).save(os.path.join(source, folder, "filler.png"))
    command = [arguments.pack, source, out, "--encoding", "raw", "--force", "--json"]
    said = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    for broken in said["broken"]:
        print(f"left out {broken['file']}: {broken['problem']}")
    names, wrong = sorted(name + ".jpg" for name in expected), 0
    for id, pixels in samples(out, "train"):
        if id >= len(names):
            continue
        name = names[id].removesuffix(".jpg")
        if pixels.shape != expected[name].shape:
            print(f"{name}: {pixels.shape}, libjpeg {expected[name].shape}")
            wrong += 1
            continue
        difference = np.abs(pixels - expected[name])
        if difference.max() > 8:
            print(f"{name}: differs by up to {difference.max()}, {difference.mean():.2f} on average")
            wrong += 1
    print(f"{len(names)} files, {len(said['broken'])} left out, {wrong} read otherwise than by libjpeg")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
