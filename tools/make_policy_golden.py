#!/usr/bin/env python3
"""Makes tests/golden/augmentation/policies.json: the tables of AutoAugment, RandAugment and TrivialAugmentWide.

    pip install timm torchvision pillow numpy
    tools/make_policy_golden.py [PATH OF timm/data/auto_augment.py]

AutoAugment's pairs, RandAugment's operations and the arguments that a level stands for are read out of timm's module.
TrivialAugment's strengths are those of torchvision's class: computed by its formula, `linspace(0, most, 31)`, in double, and
compared with what the class itself has in single precision.
"""

import importlib.util
import json
import math
import pathlib
import sys

from torchvision.transforms.autoaugment import TrivialAugmentWide


def load(path):
    spec = importlib.util.spec_from_file_location("auto_augment", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timm_path():
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        sys.exit("make_policy_golden.py: timm is not installed; see the head of this file")
    return pathlib.Path(spec.origin).parent / "data" / "auto_augment.py"


def arguments(module, name):
    """What levels 0 to 10 stand for, in both directions: [direction][level]."""
    function = module.LEVEL_TO_ARG[name]
    if function is None:
        return None
    both = []
    for draw in (0.0, 1.0):  # the module negates if the draw is above one half
        module.random.random = lambda: draw
        both.append([function(float(level), module._HPARAMS_DEFAULT)[0] for level in range(11)])
    return both


def trivial():
    def linspace(most):
        return [most * i / 30 for i in range(31)]

    strengths = {
        "shear": linspace(0.99),
        "translate": [int(v) for v in linspace(32.0)],
        "rotate": linspace(135.0),
        "enhance": linspace(0.99),
        "posterize": [8 - round(i / (30 / 6)) for i in range(31)],
        "solarize": [255.0 - 255.0 * i / 30 for i in range(31)],
    }
    theirs = {name: values.tolist() for name, (values, _) in TrivialAugmentWide()._augmentation_space(31).items()}
    of = {"ShearX": "shear", "ShearY": "shear", "Rotate": "rotate", "Posterize": "posterize", "Solarize": "solarize"}
    of |= {name: "enhance" for name in ("Brightness", "Color", "Contrast", "Sharpness")}
    for name, values in theirs.items():
        if name.startswith("Translate"):
            # Cut off to whole pixels when they are used: the sixteenth, 16.0, is there 15.999999 in single precision.
            pairs = zip(values, linspace(32.0), strict=True)
            assert all(math.isclose(a, b, rel_tol=1e-6) for a, b in pairs), name
        elif name in of:
            pairs = zip(values, strengths[of[name]], strict=True)
            assert all(math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-4) for a, b in pairs), name
        else:
            assert values == 0.0, name
    return strengths


def main():
    module = load(sys.argv[1] if len(sys.argv) > 1 else timm_path())
    pairs = [[[op.name, op.prob, op.magnitude] for op in pair] for pair in module.auto_augment_policy("v0")]
    names = sorted({name for pair in pairs for name, _, _ in pair} | set(module._RAND_TRANSFORMS))
    names = sorted(set(names) | set(module._RAND_INCREASING_TRANSFORMS))
    golden = {
        "autoaugment": pairs,
        "rand": module._RAND_TRANSFORMS,
        "rand_increasing": module._RAND_INCREASING_TRANSFORMS,
        "rand_probability": module.rand_augment_ops()[0].prob,
        "arguments": {name: arguments(module, name) for name in names},
        "trivial": trivial(),
    }
    path = pathlib.Path(__file__).parent.parent / "tests" / "golden" / "augmentation" / "policies.json"
    path.write_text("{\n" + ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in golden.items()) + "\n}\n")


if __name__ == "__main__":
    main()
