#!/usr/bin/env python3
"""Writes tests/golden/weights/names.json: the names and shapes that timm, torchvision, efficientnet-pytorch and Keras give
to the tensors of EfficientNets, so that a test can compare effnet's translations with the programs themselves.

    pip install torch torchvision timm efficientnet-pytorch keras
    KERAS_BACKEND=torch python tools/make_names_golden.py

For B0 all are listed, as "name [shape]", sorted; for the others, the CRC-32 of these lines, each with its end of line.
Counters of batch norm and Keras's layer of normalisation are left out. Keras's names are those of weights' paths, without
the name of the model.
"""

import json
import os
import zlib
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")
ROOT = Path(__file__).resolve().parent.parent
CLASSES = 1000


def of_torch(model):
    tensors = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    return {name: shape for name, shape in tensors.items() if not name.endswith("num_batches_tracked")}


def timms(number):
    import timm

    return of_torch(timm.create_model(f"efficientnet_b{number}", num_classes=CLASSES))


def torchvisions(number):
    import torchvision

    return of_torch(getattr(torchvision.models, f"efficientnet_b{number}")(num_classes=CLASSES))


def lukemelas(number):
    from efficientnet_pytorch import EfficientNet

    return of_torch(EfficientNet.from_name(f"efficientnet-b{number}", num_classes=CLASSES))


def kerass(number):
    from keras import applications

    model = getattr(applications, f"EfficientNetB{number}")(weights=None, classes=CLASSES)
    tensors = {weight.path: list(weight.shape) for weight in model.weights}
    return {name: shape for name, shape in tensors.items() if not name.startswith("normalization")}


def main():
    golden = {}
    for program, of in [("timm", timms), ("torchvision", torchvisions), ("lukemelas", lukemelas), ("keras", kerass)]:
        members = {}
        for number in range(8):
            lines = sorted(f"{name} {shape}" for name, shape in of(number).items())
            members[f"b{number}"] = lines if number == 0 else zlib.crc32("".join(f"{line}\n" for line in lines).encode())
        golden[program] = members
        print(program, {name: len(value) if isinstance(value, list) else f"{value:08x}" for name, value in members.items()})
    out = ROOT / "tests/golden/weights/names.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
