#!/usr/bin/env python3
"""Makes tests/fixtures/pth: small files of torch.save, and expected.json with the tensors that are in them.

    python tools/make_pth_fixtures.py [--folder FOLDER] [--timm MODEL]

Needs PyTorch (`pip install torch numpy`), and timm for --timm, which writes that model's weights and a checkpoint with
the state of an optimiser instead: files of real sizes, which are not kept with the tests. `EFFNET_PTH_DIR=FOLDER cargo
test --test pth` reads those. Only legacy.pth differs each time, because addresses are in it.
"""
import argparse
import collections
import fractions
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "pth"
READ = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
OTHER = {
    torch.int64: "Int64",
    torch.int32: "Int32",
    torch.uint8: "UInt8",
    torch.uint16: "UInt16",
    torch.bool: "Bool",
    torch.complex64: "Complex64",
    torch.float8_e4m3fn: "Float8_e4m3fn",
    torch.qint8: "QInt8",
}


def listed(tensor):
    """Type, shape and bytes as the reader gives them."""
    shape = list(tensor.shape)
    if tensor.layout != torch.strided:
        return {"type": "sparse", "shape": shape, "bytes": ""}
    if tensor.dtype not in READ or tensor.is_neg():
        name = "Float32 (a negated or conjugated view)" if tensor.is_neg() else OTHER[tensor.dtype]
        return {"type": name, "shape": shape, "bytes": ""}
    values = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    return {"type": READ[tensor.dtype], "shape": shape, "bytes": values.numpy().tobytes().hex()}


def named(value, name=""):
    if isinstance(value, torch.Tensor):
        yield name, listed(value)
    elif isinstance(value, (dict, list, tuple)):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from named(item, f"{name}.{key}" if name else f"{key}")


class Fixtures:
    def __init__(self, folder):
        self.folder, self.expected = folder, {}

    def save(self, name, value, **options):
        torch.save(value, self.folder / name, **options)
        self.expected[name] = dict(named(value))

    def refused(self, name, value, message, **options):
        if isinstance(value, torch.jit.ScriptModule):
            value.save(self.folder / name)
        else:
            torch.save(value, self.folder / name, **options)
        self.expected[name] = {"refused": message}

    def end(self):
        (self.folder / "expected.json").write_text(json.dumps(self.expected, indent=0) + "\n")


def trained(layers):
    """A network after a step, and its optimiser."""
    network = nn.Sequential(collections.OrderedDict(layers))
    optimiser = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.randn(2, 2, 3, 3)).sum().backward()
    optimiser.step()
    return network, optimiser


def checkpoint():
    """As timm's train.py writes one, and what else people put into theirs."""
    network, optimiser = trained([("conv", nn.Conv2d(2, 2, 3)), ("bn", nn.BatchNorm2d(2))])
    weights = network.state_dict()
    return {
        "epoch": 3,
        "arch": "small",
        "state_dict": weights,
        "state_dict_ema": collections.OrderedDict((name, value.clone()) for name, value in weights.items()),
        "optimizer": optimiser.state_dict(),
        "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.999), data=Path("images"), amp=True, mean=None),
        "version": 2,
        "metric": np.float64(71.25),
        "history": np.arange(3),
        "large": -(1 << 70),
        "modes": {"train", "val"},
        "frozen": frozenset([1]),
        "number": 1j,
        "bytes": b"\x00\xff",
        "array": bytearray(b"ab"),
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
        "device": torch.device("cpu"),
        "rng": torch.arange(5, dtype=torch.uint8),
        "states": [{"w": torch.randn(2)}, (torch.randn(1), None)],
        "counts": collections.defaultdict(list, a=[1]),
        "größe": -300,
    }


def plain(fixtures):
    network, _ = trained([("conv", nn.Conv2d(2, 3, 3, bias=False)), ("bn", nn.BatchNorm2d(3))])
    fixtures.save("state_dict.pth", network.state_dict())
    fixtures.save("checkpoint.pth", checkpoint())
    for protocol in 3, 4, 5:
        value = {"x": torch.randn(3), "set": {1}, "bytes": b"b", "args": argparse.Namespace(a=1), "m": np.float32(2)}
        value["states"] = [network.state_dict()["bn.weight"], bytearray(b"c"), frozenset("d"), Path("e")]
        fixtures.save(f"protocol{protocol}.pth", value, pickle_protocol=protocol)
    torch.serialization.set_crc32_options(False)
    fixtures.save("unchecked.pth", {"x": torch.randn(3)})
    torch.serialization.set_crc32_options(True)


def tensors(fixtures):
    wide = torch.tensor([0.0, -0.0, 1.0, -1.5, float("inf"), float("nan"), 1e-7, 3.14159], dtype=torch.float64)
    types = {str(kind).removeprefix("torch."): wide.to(kind) for kind in READ}
    types["counter"] = torch.tensor(7)
    for kind in (torch.int32, torch.uint8, torch.uint16, torch.bool, torch.complex64, torch.float8_e4m3fn):
        types[str(kind).removeprefix("torch.")] = torch.ones(2).to(kind)
    fixtures.save("types.pth", types)
    base = torch.arange(120, dtype=torch.float32).reshape(2, 3, 4, 5)
    strides = {
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "transposed": base.transpose(0, 3).clone(memory_format=torch.preserve_format),
        "permuted": base.permute(3, 1, 0, 2),
        "every_other": base[:, ::2, 1:, 1::2],
        "part": base[1, 1],
        "column": base[0, 0, :, 3],
        "pointwise": torch.randn(4, 3, 1, 1).contiguous(memory_format=torch.channels_last),
        "half": torch.randn(3, 4).half().t(),
        "repeated": torch.arange(6.0)[:3].expand(2, 3),
    }
    fixtures.save("strides.pth", strides)
    table = torch.randn(3, 2)
    shared = {"encoder": table, "decoder": table, "rows": table[1:], "again": {"deep": table.t()}}
    fixtures.save("shared.pth", shared)
    marked = torch.randn(2)
    marked.no_decay = True
    special = nn.Parameter(torch.randn(3))
    special.group = 1
    parameters = {
        "weight": nn.Parameter(torch.randn(2, 2)),
        "frozen": nn.Parameter(torch.randn(2), requires_grad=False),
        "with_state": special,
        "buffer": nn.Buffer(torch.randn(2)),
        "marked": marked,
        "scalar": torch.tensor(0.5),
        "empty": torch.empty(0, 3),
        "sparse": torch.eye(2).to_sparse(),
        "negated": torch._neg_view(torch.ones(2)),
        "quantised": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    }
    fixtures.save("parameters.pth", parameters)
    fixtures.save("list.pth", [torch.randn(2), {3: torch.randn(1)}])


def refusals(fixtures):
    network = nn.Linear(2, 1)
    name = "torch.nn.modules.linear.Linear"
    model = ". It seems to hold a whole model: torch.save(model.state_dict(), NEW) saves the weights alone"
    names = "its pickle names {}, which is not among what weights need; nothing of it was run{}"
    fixtures.refused("module.pth", network, names.format(name, model))
    fixtures.refused("fraction.pth", {"f": fractions.Fraction(1, 2)}, names.format("fractions.Fraction", ""))
    fixtures.refused(
        "legacy.pth",
        network.state_dict(),
        "it has PyTorch's form from before version 1.6, which is not read; convert it in Python: "
        "torch.save(torch.load(FILE), NEW)",
        _use_new_zipfile_serialization=False,
    )
    fixtures.refused(
        "script.pth",
        torch.jit.script(network),
        "it is a program of TorchScript and not weights alone; save these in Python: "
        "torch.save(torch.jit.load(FILE).state_dict(), NEW)",
    )
    fixtures.refused("none.pth", {"epoch": 3}, "there are no tensors in it")


def large(fixtures, name):
    import timm

    network = timm.create_model(name).to(memory_format=torch.channels_last)
    optimiser = torch.optim.RMSprop(network.parameters(), momentum=0.9)
    network(torch.randn(2, 3, 64, 64)).sum().backward()
    optimiser.step()
    fixtures.save(f"{name}.pth", network.state_dict())
    whole = {"epoch": 1, "arch": name, "state_dict": network.state_dict(), "optimizer": optimiser.state_dict()}
    fixtures.save(f"{name}_checkpoint.pth.tar", whole | {"args": argparse.Namespace(model=name)})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--timm", metavar="MODEL")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    fixtures = Fixtures(arguments.folder)
    if arguments.timm:
        large(fixtures, arguments.timm)
    else:
        for file in arguments.folder.iterdir():
            file.unlink()
        plain(fixtures)
        tensors(fixtures)
        refusals(fixtures)
    fixtures.end()


if __name__ == "__main__":
    main()
