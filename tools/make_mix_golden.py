#!/usr/bin/env python3
"""Makes mixes.png and mixes.json of tests/golden/augmentation: what timm makes of pairs of squares.

    pip install --no-deps timm && pip install pillow numpy
    tools/make_mix_golden.py [PATH OF timm/data/mixup.py]

`FastCollateMixup` in the mode `pair` mixes one pair for each line of the list, with a share of its own, which the script
gives it in place of a draw. Timm's module only needs PyTorch to hand the results over, so a few lines stand for it here.
`share` is what timm makes of the share, its `lam`: of cutmix the area that is left. The picture is a column of
squares: the two inputs, then the two results of each line.

The script also prints quantiles and probabilities of Beta(a, a) by numerical integration, with which the draws are
compared in `mixing_tests.rs`.
"""

import importlib.util
import json
import math
import pathlib
import sys
import types

import numpy as np
from PIL import Image

SIDE = 33  # odd, so that nothing is symmetric by accident


class Tensor(np.ndarray):
    def unsqueeze(self, axis):
        return np.expand_dims(self, axis)


def load(path):
    """timm's module, with the four functions of PyTorch that its collation calls."""
    torch = types.ModuleType("torch")
    torch.uint8 = np.uint8
    torch.from_numpy = lambda array: array
    torch.tensor = lambda values, dtype=None: np.asarray(values).view(Tensor)
    torch.zeros = lambda shape, dtype=None: np.zeros(shape, dtype)
    torch.Tensor = Tensor
    data = types.ModuleType("torch.utils.data")
    data.default_collate = None
    sys.modules.update({"torch": torch, "torch.utils": types.ModuleType("torch.utils"), "torch.utils.data": data})
    spec = importlib.util.spec_from_file_location("mixup", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timm_path():
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        sys.exit("make_mix_golden.py: timm is not installed; see the head of this file")
    return pathlib.Path(spec.origin).parent / "data" / "mixup.py"


def square(number):
    """[3, side, side]: all values occur, without order."""
    at = np.arange(3 * SIDE * SIDE, dtype=np.uint64) + np.uint64(1 + (number << 32))
    hashed = at * np.uint64(0x9E3779B97F4A7C15)
    return (hashed >> np.uint64(56)).astype(np.uint8).reshape(3, SIDE, SIDE)


def cases():
    for weight in (0, 1, 13107, 32767, 32768, 43691, 65535):
        yield {"kind": "mixup", "lam": weight / 65536, "weight": weight}
    for lam, centre in ((0.1, (16, 16)), (0.37, (0, 32)), (0.5, (3, 20)), (0.9, (32, 32)), (0.75, (12, 1))):
        yield {"kind": "cutmix", "lam": lam, "centre": centre}


def mixed(module, case, squares):
    mixup = module.FastCollateMixup(mixup_alpha=1.0, cutmix_alpha=1.0, mode="pair")
    cuts = case["kind"] == "cutmix"
    mixup._params_per_elem = lambda count: (np.array([case["lam"]]), np.array([cuts]))
    draws = iter(case.get("centre", ()))
    module.np.random.randint = lambda low, high, size=None: next(draws)  # the row, then the column
    boxes = []
    made_box = module.cutmix_bbox_and_lam

    def bbox(*arguments, **named):
        box, lam = made_box(*arguments, **named)
        boxes.append([int(v) for v in box])
        return box, lam

    module.cutmix_bbox_and_lam = bbox
    output = np.zeros((2, 3, SIDE, SIDE), dtype=np.uint8)
    lam = mixup._mix_pair_collate(output, [(each.copy(), 0) for each in squares])
    module.cutmix_bbox_and_lam = made_box
    if boxes:
        case["rows"], case["columns"] = boxes[0][:2], boxes[0][2:]
    case["share"] = float(np.asarray(lam)[0, 0])
    return output


def beta_cdf(alpha, x, steps=200000):
    """P(X <= x) of Beta(alpha, alpha): with x = sin² t the integrand is (sin t cos t)^(2 alpha − 1)."""
    # t = end·s^k takes the pole at 0 away.
    power = max(1.0, 1.0 / alpha)
    end, whole = math.asin(math.sqrt(x)), math.pi / 4

    def integral(top):
        s = (np.arange(steps) + 0.5) / steps
        t = top * s**power
        slope = top * power * s ** (power - 1.0)
        return float(np.sum((np.sin(t) * np.cos(t)) ** (2 * alpha - 1) * slope) / steps)

    return integral(end) / (2 * integral(whole))


def main():
    module = load(sys.argv[1] if len(sys.argv) > 1 else timm_path())
    folder = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "augmentation"
    squares = [square(0), square(1)]
    rows, lines = list(squares), []
    for case in cases():
        rows.extend(mixed(module, case, squares))
        lines.append(case)
    column = np.concatenate([row.transpose(1, 2, 0) for row in rows])
    Image.fromarray(column).save(folder / "mixes.png", optimize=True)
    text = json.dumps({"side": SIDE, "mixes": lines})
    (folder / "mixes.json").write_text(text.replace("}, {", "},\n{") + "\n")
    for alpha in (0.1, 0.2, 0.4, 1.0, 2.0, 8.0):
        print(alpha, *(f"{x}: {beta_cdf(alpha, x):.6f}" for x in (0.001, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)))


if __name__ == "__main__":
    main()
