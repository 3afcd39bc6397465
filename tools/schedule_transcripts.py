#!/usr/bin/env python3
"""Writes tests/golden/schedules/rates.json: the learning rates of other programs' schedulers, step by step.

PyTorch's are those that torch.optim.lr_scheduler itself gives (pip install torch); TensorFlow's follow from the formula of
tf.train.exponential_decay and the warm-up of its EfficientNet recipe, as their documentation gives it.
"""

import json
import math
import pathlib
import warnings

import torch
from torch.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LinearLR,
    MultiStepLR,
    SequentialLR,
    StepLR,
)


def run(base, steps, make):
    """The rates of `steps` steps; `make` gives the scheduler of an optimizer."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def sequential(base, first, milestone, second, steps):
    """SequentialLR: `second` starts anew, from its own step 0, when `milestone` steps are done."""
    return run(base, steps, lambda optimizer: SequentialLR(optimizer, [first(optimizer), second(optimizer)], [milestone]))


def tensorflow(base, steps_per_epoch, warmup_epochs, rate, decay_epochs, steps):
    """exponential_decay(staircase=True) with the recipe's warm-up from 0."""
    warmup = int(steps_per_epoch * warmup_epochs)
    decayed = [base * rate ** math.floor(s / (steps_per_epoch * decay_epochs)) for s in range(steps)]
    return [base * s / warmup if s < warmup else decayed[s] for s in range(steps)]


def case(name, rates, images=100, batch=10, **recipe):
    return {"name": name, "images": images, "batch-size": batch, "recipe": recipe, "rates": rates}


def cases():
    # 100 images in batches of 10: ten steps an epoch.
    yield case(
        "CosineAnnealingLR", run(0.4, 150, lambda o: CosineAnnealingLR(o, 150)), epochs=15.0, warmup_epochs=0.0, lr=0.4
    )
    yield case(
        "LinearLR 0.05, then CosineAnnealingLR to 0.01",
        sequential(0.4, lambda o: LinearLR(o, 0.05, 1.0, 20), 20, lambda o: CosineAnnealingLR(o, 130, 0.01), 150),
        epochs=15.0, warmup_epochs=2.0, lr=0.4, warmup_lr=0.02, min_lr=0.01,
    )
    yield case(
        "LinearLR to 0.1 of the rate",
        run(0.4, 150, lambda o: LinearLR(o, 1.0, 0.1, 150)),
        epochs=15.0, warmup_epochs=0.0, lr=0.4, schedule="linear", min_lr=0.04,
    )
    yield case(
        "LinearLR 0.25, then LinearLR to 0",
        sequential(0.4, lambda o: LinearLR(o, 0.25, 1.0, 30), 30, lambda o: LinearLR(o, 1.0, 0.0, 120), 150),
        epochs=15.0, warmup_epochs=3.0, lr=0.4, warmup_lr=0.1, schedule="linear",
    )
    yield case(
        "StepLR every 2 epochs",
        run(0.4, 150, lambda o: StepLR(o, 20, 0.5)),
        epochs=15.0, warmup_epochs=0.0, lr=0.4, schedule="exponential", decay_rate=0.5, decay_epochs=2.0,
    )
    yield case(
        "ExponentialLR after every step",
        run(0.4, 150, lambda o: ExponentialLR(o, 0.98)),
        epochs=15.0, warmup_epochs=0.0, lr=0.4, schedule="exponential", decay_rate=0.98, decay_epochs=0.1,
    )
    yield case(
        "MultiStepLR after epochs 3, 6 and 12",
        run(0.4, 150, lambda o: MultiStepLR(o, [30, 60, 120], 0.1)),
        epochs=15.0, warmup_epochs=0.0, lr=0.4, schedule="steps", decay_rate=0.1, milestones=[3.0, 6.0, 12.0],
    )
    yield case(
        "LinearLR 0.5, then ConstantLR",
        sequential(0.4, lambda o: LinearLR(o, 0.5, 1.0, 10), 10, lambda o: ConstantLR(o, 1.0), 120),
        epochs=12.0, warmup_epochs=1.0, lr=0.4, warmup_lr=0.2, schedule="constant",
    )
    # 1,240 images in batches of 100: 12.4 steps an epoch.
    yield case(
        "TensorFlow's EfficientNet recipe",
        tensorflow(0.256, 12.4, 5, 0.97, 2.4, 248),
        images=1240, batch=100, epochs=20.0, warmup_epochs=5.0, lr=0.256, warmup_lr=0.0,
        schedule="exponential", decay_rate=0.97, decay_epochs=2.4,
    )


def main():
    # SequentialLR passes its second scheduler the step, which warns of a form that will go.
    warnings.filterwarnings("ignore", message=".*epoch parameter.*")
    found = list(cases())
    for one in found:
        assert len(one["rates"]) >= 100, one["name"]
        one["recipe"] = {key.replace("_", "-"): value for key, value in one["recipe"].items()}
    path = pathlib.Path(__file__).parent.parent / "tests/golden/schedules/rates.json"
    path.write_text("[\n" + ",\n".join(json.dumps(one) for one in found) + "\n]\n")


if __name__ == "__main__":
    main()
