#!/usr/bin/env python3
"""Makes edits.png and edits.json of tests/golden/augmentation: what Pillow makes of one image by each operation.

    tools/make_edit_golden.py          needs Pillow; writes into tests/golden/augmentation

The picture is a column of squares: the input, then one for each line of the list, which names the operation and its
argument. The operations are called as timm's auto_augment.py and torchvision's autoaugment.py call them.
"""

import json
import math
import pathlib

from PIL import Image, ImageEnhance, ImageOps, __version__

SIDE = 32
FILL = (124, 116, 104)


def picture():
    """Smooth colours, hard edges and some noise; not all values occur, so that stretching changes them."""
    image = Image.new("RGB", (SIDE, SIDE))
    state = 1
    for y in range(SIDE):
        for x in range(SIDE):
            state = (state * 1103515245 + 12345) % (1 << 31)
            noise = (state >> 16) % 6
            red = 30 + 3 * x + noise
            green = int(90 + 60 * math.sin(x * 0.31) * math.cos(y * 0.17)) + noise
            blue = (200 if (x // 7 + y // 9) % 2 else 45) + noise
            image.putpixel((x, y), (red, green, blue))
    return image


def transform(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, fillcolor=FILL)


def solarize_add(image, add):
    return image.point([min(255, v + add) if v < 128 else v for v in range(256)] * 3)


def cases():
    for factor in (-0.3, 0.3, 0.99, -0.027):
        yield "shear-x", factor, lambda i, v: transform(i, (1, v, 0, 0, 1, 0))
        yield "shear-y", factor, lambda i, v: transform(i, (1, 0, 0, v, 1, 0))
    for pixels in (-0.405 * SIDE, 0.45 * SIDE, 7.0, -32.0):
        yield "translate-x", pixels, lambda i, v: transform(i, (1, 0, v, 0, 1, 0))
        yield "translate-y", pixels, lambda i, v: transform(i, (1, 0, 0, 0, 1, v))
    for degrees in (-24.0, 30.0, 0.0, 3.3, 90.0, 135.0, -121.5):
        yield "rotate", degrees, lambda i, v: i.rotate(v, fillcolor=FILL)
    yield "auto-contrast", 0, lambda i, v: ImageOps.autocontrast(i)
    yield "equalize", 0, lambda i, v: ImageOps.equalize(i)
    yield "invert", 0, lambda i, v: ImageOps.invert(i)
    for bits in (0, 1, 2, 4, 6):
        # Pillow itself refuses 0 bits in some versions; a mask of 0 is black.
        yield "posterize", bits, lambda i, v: ImageOps.posterize(i, v) if v else i.point(lambda _: 0)
    for threshold in (0, 51, 76, 204, 256):
        yield "solarize", threshold, lambda i, v: ImageOps.solarize(i, v)
    for add in (33, 77, 110):
        yield "solarize-add", add, solarize_add
    for factor in (0.1, 0.28, 0.64, 1.0, 1.54, 1.9, 0.01):
        yield "color", factor, lambda i, v: ImageEnhance.Color(i).enhance(v)
        yield "contrast", factor, lambda i, v: ImageEnhance.Contrast(i).enhance(v)
        yield "brightness", factor, lambda i, v: ImageEnhance.Brightness(i).enhance(v)
        yield "sharpness", factor, lambda i, v: ImageEnhance.Sharpness(i).enhance(v)


def main():
    folder = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "augmentation"
    image = picture()
    made = [(name, value, operation(image, value)) for name, value, operation in cases()]
    column = Image.new("RGB", (SIDE, SIDE * (len(made) + 1)))
    for row, square in enumerate([image] + [square for _, _, square in made]):
        column.paste(square, (0, row * SIDE))
    column.save(folder / "edits.png", optimize=True)
    names = [{"edit": name, "value": value} for name, value, _ in made]
    text = json.dumps({"pillow": __version__, "side": SIDE, "fill": FILL, "edits": names})
    (folder / "edits.json").write_text(text.replace("}, {", "},\n{") + "\n")


if __name__ == "__main__":
    main()
