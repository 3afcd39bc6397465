#!/usr/bin/env python3
"""Writes tests/golden/bf16/errors.json: how far PyTorch's own bf16 is from the golden values, the yardstick for ours.

    pip install torch timm
    python tools/make_bf16_golden.py

timm's model takes the same parameters, images, masks and optimiser steps as each file of tests/golden says, once in float64
(which must give the file's values, or nothing is written) and twice under autocast to bf16, with images as NCHW and as NHWC.
The larger error of the two is written, in the measures of tests/golden/README.md: relative L2 errors of logits and losses,
and those of gradients, running statistics and parameters as the probes estimate them.
"""

import contextlib
import json
import math
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
# What the float64 run may be off by: rounding, amplified by three steps.
EXACT = 1e-9


def units(name, count):
    """`count` numbers in [0, 1) that follow from a name; see tests/golden/README.md."""
    start = 0xCBF29CE484222325
    for byte in name.encode():
        start = (start ^ byte) * 0x100000001B3 % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(start) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        z = z ^ z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53


def value_of(name, shape, is_norm):
    u = units(name, math.prod(shape))
    if name.endswith("running_mean"):
        values = 0.2 * (u - 0.5)
    elif name.endswith("running_var") or (is_norm and name.endswith("weight")):
        values = 0.5 + u
    elif name.endswith("bias"):
        values = (0.4 if is_norm else 0.2) * (u - 0.5)
    else:
        values = (2 * u - 1) * math.sqrt(3 / math.prod(shape[1:]))
    return values.astype(np.float32).reshape(shape)


def model_of(golden, torch, double, channels_last):
    import timm

    class FixedMask(torch.nn.Module):
        """Multiplies each image by a factor."""

        def __init__(self, name, rate):
            super().__init__()
            kept = units(f"drop_path.{name}", golden["batch"]) < 1 - rate
            self.factors = torch.from_numpy(kept / (1 - rate)).view(-1, 1, 1, 1)

        def forward(self, x):
            return x * self.factors.to(x.dtype) if self.training else x

    model = timm.create_model(golden["model"], num_classes=golden["classes"])
    norms = {name for name, module in model.named_modules() if isinstance(module, torch.nn.BatchNorm2d)}
    state = model.state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            values = value_of(name, tuple(tensor.shape), name.rsplit(".", 1)[0] in norms)
            state[name] = torch.from_numpy(values)
    model.load_state_dict(state)
    blocks = [(f"blocks.{s}.{b}", block) for s, stage in enumerate(model.blocks) for b, block in enumerate(stage)]
    for (name, block), rate in zip(blocks, golden.get("drop_path_rates", [])):
        if rate and block.has_skip:
            block.drop_path = FixedMask(name, rate)
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = 0.1
    if golden.get("dropout"):
        share = 1 - golden["dropout"]
        kept = units("dropout", golden["batch"] * model.num_features) < share
        factors = torch.from_numpy(kept / share).view(golden["batch"], -1)
        plain = model.classifier.forward
        model.classifier.forward = lambda x: plain(x * factors.to(x.dtype) if model.training else x)
    model = model.double() if double else model
    return model.to(memory_format=torch.channels_last) if channels_last else model


def optimizer_of(golden, model, torch):
    o = golden["optimizer"]
    options = {key: o[key] for key in ("lr", "alpha", "eps", "momentum", "weight_decay")}
    if o["kind"] == "rmsprop":
        return torch.optim.RMSprop(model.parameters(), **options)
    from timm.optim import RMSpropTF

    return RMSpropTF(model.parameters(), lr_in_momentum=True, **options)


def numbers_of(tensors):
    return {name: tensor.detach().double().numpy().reshape(-1).copy() for name, tensor in tensors}


def run(golden, double, channels_last):
    """All that a golden file compares."""
    import torch

    torch.manual_seed(0)
    side, batch = golden["resolution"], golden["batch"]
    image = (2 * units("input", batch * 3 * side * side) - 1).astype(np.float32).reshape(batch, 3, side, side)
    image = torch.from_numpy(image).to(torch.float64 if double else torch.float32)
    if channels_last:
        image = image.to(memory_format=torch.channels_last)
    labels = torch.tensor(golden["labels"])
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=golden["label_smoothing"])
    precision = (
        contextlib.nullcontext if double else lambda: torch.autocast("cpu", dtype=torch.bfloat16, enabled=True)
    )
    made = lambda: model_of(golden, torch, double, channels_last)
    result = {"loss": []}

    model = made()
    optimizer = optimizer_of(golden, model, torch)
    for step in range(golden["optimizer"]["steps"]):
        model.train()
        optimizer.zero_grad()
        with precision():
            logits = model(image)
        logits = logits if double else logits.float()
        loss = loss_of(logits, labels)
        loss.backward()
        result["loss"].append(loss.item())
        if step == 0:
            result["train_logits"] = logits.detach().double().numpy()
            result["gradients"] = numbers_of((name, p.grad) for name, p in model.named_parameters())
            result["running"] = numbers_of(b for b in model.named_buffers() if "running" in b[0])
        optimizer.step()
    result["parameters"] = numbers_of(model.named_parameters())

    def evaluate(model):
        model.eval()
        with torch.inference_mode(), precision():
            return model(image).double().numpy()

    result["eval_logits"] = evaluate(made())
    plain = dict(golden, drop_path_rates=[], dropout=0.0)
    model = model_of(plain, torch, double, channels_last)
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = 1.0
    model.train()
    with torch.inference_mode(), precision():
        model(image)
    result["eval_logits_calibrated"] = evaluate(model)
    return result


def probe_error(name, values, summary):
    """An estimate of the squared L2 norm of the difference to a tensor of which the file has probes."""
    square = 0.0
    for k, expected in enumerate(summary["probes"]):
        signs = np.where(units(f"{name}#{k}", values.size) < 0.5, -1.0, 1.0)
        square += (float(signs @ values) - expected) ** 2 / 4
    return square


def tensors_error(got, expected):
    """The error of a set of tensors taken as one vector, and the worst of one large tensor."""
    whole = sum(summary["l2"] ** 2 for summary in expected.values())
    total, worst = 0.0, 0.0
    for name, summary in expected.items():
        square = probe_error(name, got[name], summary)
        total += square
        if summary["l2"] ** 2 > 1e-6 * whole:
            worst = max(worst, math.sqrt(square) / summary["l2"])
    return math.sqrt(total / whole), worst


def errors_of(golden, result):
    def vector(key):
        expected = np.array(golden[key])
        return float(np.linalg.norm(result[key] - expected) / np.linalg.norm(expected))

    errors = {key: vector(key) for key in ("eval_logits", "eval_logits_calibrated", "train_logits")}
    sets = (
        ("gradients", "gradients"),
        ("running", "running_after_first_step"),
        ("parameters", "parameters_after_three_steps"),
    )
    worst_of_all = 0.0
    for own, of_file in sets:
        errors[own], worst = tensors_error(result[own], golden[of_file])
        worst_of_all = max(worst_of_all, worst)
        if own == "gradients":
            errors["gradients_worst_of_the_large"] = worst
    for step, (got, expected) in enumerate(zip(result["loss"], golden["loss"])):
        errors[f"loss_{step + 1}"] = abs(got / expected - 1)
    return errors, worst_of_all


def main():
    table = {}
    for path in sorted(GOLDEN.glob("*.json")):
        golden = json.loads(path.read_text())
        exact, worst = errors_of(golden, run(golden, double=True, channels_last=False))
        off = max([worst, *exact.values()])
        print(f"{path.name}: float64 is off by {off:.1e}", flush=True)
        if not off <= EXACT:
            sys.exit(f"{path.name}: this is not the network of the file: {exact}")
        both = [errors_of(golden, run(golden, False, channels_last))[0] for channels_last in (False, True)]
        table[path.name] = {key: float(f"{max(errors[key] for errors in both):.4g}") for key in both[0]}
        print("  " + ", ".join(f"{key} {value:.2g}" for key, value in table[path.name].items()), flush=True)
    out = GOLDEN / "bf16" / "errors.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
