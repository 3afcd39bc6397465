#!/usr/bin/env python3
"""Cut the demo's data out of Fashion-MNIST.

    tools/make_demo_data.py [SOURCE] [OUT]

SOURCE is the folder with the four IDX files, as Debian's package dataset-fashion-mnist installs it
(/usr/share/datasets/fashion-mnist). Of the official training files the first 1000 images of each class are kept,
of the official test files the first 200 of each class, both in the order of the file. Nothing is drawn at random
and the gzip headers hold no time, so one version of zlib writes the same bytes each time. Needs Python's standard
library only.
"""

import gzip
import io
import struct
import sys
from collections import Counter
from pathlib import Path

CLASSES = 10
TAKE = {"train": 1000, "t10k": 200}
LIMIT = 6 << 20


def read_idx(path, dimensions):
    data = gzip.decompress(path.read_bytes())
    zero, kind, count = struct.unpack(">HBB", data[:4])
    if (zero, kind, count) != (0, 8, dimensions):
        sys.exit(f"{path}: no IDX file of bytes with {dimensions} dimensions")
    shape = struct.unpack(f">{count}I", data[4 : 4 + 4 * count])
    return shape, data[4 + 4 * count :]


def write_idx(path, shape, payload):
    header = struct.pack(">HBB", 0, 8, len(shape)) + struct.pack(f">{len(shape)}I", *shape)
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as stream:
        stream.write(header + payload)
    path.write_bytes(buffer.getvalue())
    return len(buffer.getvalue())


def cut(source, out, split, per_class):
    (images, rows, columns), pixels = read_idx(source / f"{split}-images-idx3-ubyte.gz", 3)
    (labels_count,), labels = read_idx(source / f"{split}-labels-idx1-ubyte.gz", 1)
    if images != labels_count:
        sys.exit(f"{split}: {images} images but {labels_count} labels")
    taken, kept = Counter(), []
    for index, label in enumerate(labels):
        if taken[label] < per_class:
            taken[label] += 1
            kept.append(index)
    if len(kept) != CLASSES * per_class:
        sys.exit(f"{split}: not {CLASSES} classes of {per_class} images")
    area = rows * columns
    chosen = b"".join(pixels[i * area : (i + 1) * area] for i in kept)
    size = write_idx(out / f"{split}-images-idx3-ubyte.gz", (len(kept), rows, columns), chosen)
    size += write_idx(out / f"{split}-labels-idx1-ubyte.gz", (len(kept),), bytes(labels[i] for i in kept))
    print(f"{split}: {len(kept)} images, {size:,} bytes")
    return size


def main():
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist")
    out = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).resolve().parent.parent / "src/data/demo"
    out.mkdir(parents=True, exist_ok=True)
    size = sum(cut(source, out, split, per_class) for split, per_class in TAKE.items())
    if size > LIMIT:
        sys.exit(f"{size:,} bytes are more than the repository shall carry ({LIMIT:,})")


if __name__ == "__main__":
    main()
