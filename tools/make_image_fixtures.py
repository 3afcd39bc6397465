#!/usr/bin/env python3
"""Makes tests/fixtures/images: small files of unusual kinds, and beside each what Pillow decodes.

    python tools/make_image_fixtures.py [--cjpeg cjpeg]

Needs Pillow 11 or later with WebP and libtiff (`pip install pillow numpy`) and libjpeg's cjpeg, for JPEGs in several scans
(Debian: libjpeg-turbo-progs). The files are kept with the tests, so that these need neither.
"""
import argparse
import io
import subprocess
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sweep_jpeg import adobe, encoded, picture, without

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "images"
WIDTH, HEIGHT = 41, 29
TURNED = Image.Exif()
TURNED[0x112] = 6


def save(name, image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    put(name, out.getvalue())


def put(name, data):
    (FOLDER / name).write_bytes(data)
    image = Image.open(io.BytesIO(data))
    image.seek(0)
    if image.mode.startswith("I;16"):
        expected = Image.fromarray(((np.asarray(image).astype(int) + 128) // 257).astype("uint8"))
    else:
        image = ImageOps.exif_transpose(image)
        expected = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
    expected.save(FOLDER / (name + ".expected.png"), optimize=True)


def cjpeg(program, script, *flags):
    scans, ppm = FOLDER / "scans", io.BytesIO()
    scans.write_text(script)
    picture(WIDTH, HEIGHT).save(ppm, "PPM")
    command = [program, "-quality", "90", "-scans", str(scans), *flags]
    ran = subprocess.run(command, input=ppm.getvalue(), capture_output=True, check=True)
    scans.unlink()
    return ran.stdout


def jpegs(program):
    put("scans-each-420.jpg", cjpeg(program, "0; 1; 2;", "-sample", "2x2"))
    put("scans-each-440.jpg", cjpeg(program, "0; 1; 2;", "-sample", "1x2"))
    put("scans-each-422.jpg", cjpeg(program, "0; 1; 2;", "-sample", "2x1"))
    put("scans-each-restart.jpg", cjpeg(program, "0; 1; 2;", "-sample", "1x1", "-restart", "3B"))
    put("scans-ycb-cr.jpg", cjpeg(program, "0 1; 2;", "-sample", "2x1"))
    put("scans-y-cbcr.jpg", cjpeg(program, "0; 1 2;", "-sample", "2x2"))
    put("scans-one-restart.jpg", cjpeg(program, "0 1 2;", "-sample", "2x2", "-restart", "1B"))
    put("coarse-first-plane.jpg", cjpeg(program, "0 1 2;", "-sample", "1x1,2x2,2x2"))
    put("progressive-restart.jpg", cjpeg(program, "", "-progressive", "-restart", "2B"))
    jpeg = encoded(picture(WIDTH, HEIGHT))
    after = 4 + int.from_bytes(jpeg[4:6], "big")
    put("colours-jfif-adobe0.jpg", jpeg[:after] + adobe(0) + jpeg[after:])
    put("colours-rgb-by-name.jpg", without(encoded(picture(WIDTH, HEIGHT), keep_rgb=True), 0xEE))
    cmyk = encoded(picture(WIDTH, HEIGHT).convert("CMYK"))
    put("colours-ycck.jpg", cmyk.replace(adobe(0)[4:], adobe(2)[4:]))


def others():
    image = picture(WIDTH, HEIGHT)
    grey, other = image.convert("L"), ImageOps.invert(image)
    palette = image.quantize(16)
    alpha = image.copy()
    alpha.putalpha(grey)
    save("lossless.webp", image, "WEBP", lossless=True)
    save("lossy.webp", image, "WEBP", quality=80)
    save("alpha.webp", alpha, "WEBP", lossless=True, exact=True)
    save("animated.webp", image, "WEBP", lossless=True, save_all=True, append_images=[other])
    save("turned.webp", image, "WEBP", lossless=True, exif=TURNED)
    turned = (FOLDER / "turned.webp").read_bytes()
    at = turned.index(b"EXIF")
    chunk = b"Exif\0\0" + turned[at + 8 : at + 8 + int.from_bytes(turned[at + 4 : at + 8], "little")]
    turned = turned[:at] + b"EXIF" + len(chunk).to_bytes(4, "little") + chunk + b"\0" * (len(chunk) % 2)
    put("turned-prefix.webp", turned[:4] + (len(turned) - 8).to_bytes(4, "little") + turned[8:])
    save("palette.gif", palette, "GIF")
    save("animated.gif", palette, "GIF", save_all=True, append_images=[other.quantize(16)])
    save("grey.gif", grey, "GIF", interlace=False)
    save("rgb.bmp", image, "BMP")
    save("palette.bmp", palette, "BMP")
    save("grey.bmp", grey, "BMP")
    save("bits.bmp", image.convert("1"), "BMP")
    save("alpha.bmp", alpha, "BMP")
    save("rgb.tif", image, "TIFF")
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        save(f"{compression.removeprefix('tiff_')}.tif", image, "TIFF", compression=compression)
    save("grey.tif", grey, "TIFF")
    save("alpha.tif", alpha, "TIFF")
    save("cmyk.tif", image.convert("CMYK"), "TIFF")
    save("turned.tif", image, "TIFF", tiffinfo={0x112: 6})
    save("pages.tif", image, "TIFF", save_all=True, append_images=[other])
    wide = np.asarray(grey).astype("uint16") * 251 + 17
    save("wide.tif", Image.fromarray(wide), "TIFF")
    save("fax.tif", image.convert("1"), "TIFF", compression="group4")
    save("bits.tif", image.convert("1"), "TIFF")
    save("alpha-palette.png", palette, "PNG", transparency=bytes(range(0, 256, 16)))
    save("bits.png", image.convert("1"), "PNG")
    save("wide.png", Image.fromarray(wide), "PNG")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cjpeg", default="cjpeg")
    arguments = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for file in FOLDER.iterdir():
        file.unlink()
    jpegs(arguments.cjpeg)
    others()


if __name__ == "__main__":
    main()
