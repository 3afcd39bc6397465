#!/usr/bin/env python3
"""Writes tests/golden/schedules/rates.json: the learning rates of other programs' schedulers, step by step.

Needs only Python. Each scheduler is written down as its own documentation defines it: PyTorch's by their recursions from
one rate to the next (the chainable form of torch.optim.lr_scheduler), TensorFlow's by the formula of
tf.train.exponential_decay and the warm-up of its EfficientNet recipe. effnet uses closed forms, so the two share no
arithmetic.
"""

import json
import math
import pathlib


class CosineAnnealingLR:
    def __init__(self, steps, least=0.0):
        self.steps, self.least = steps, least

    def first(self, base):
        return base

    def next(self, base, rate, t):
        if (t - 1 - self.steps) % (2 * self.steps) == 0:
            return rate + (base - self.least) * (1 - math.cos(math.pi / self.steps)) / 2
        ratio = (1 + math.cos(math.pi * t / self.steps)) / (1 + math.cos(math.pi * (t - 1) / self.steps))
        return ratio * (rate - self.least) + self.least


class LinearLR:
    def __init__(self, start, end, steps):
        self.start, self.end, self.steps = start, end, steps

    def first(self, base):
        return base * self.start

    def next(self, base, rate, t):
        if t > self.steps:
            return rate
        slope = self.end - self.start
        return rate * (1 + slope / (self.steps * self.start + (t - 1) * slope))


class StepLR:
    def __init__(self, every, gamma):
        self.every, self.gamma = every, gamma

    def first(self, base):
        return base

    def next(self, base, rate, t):
        return rate * self.gamma if t % self.every == 0 else rate


class ExponentialLR(StepLR):
    def __init__(self, gamma):
        super().__init__(1, gamma)


class MultiStepLR:
    def __init__(self, milestones, gamma):
        self.milestones, self.gamma = milestones, gamma

    def first(self, base):
        return base

    def next(self, base, rate, t):
        return rate * self.gamma ** self.milestones.count(t)


class ConstantLR(StepLR):
    def __init__(self):
        super().__init__(1, 1.0)


def run(scheduler, base, steps):
    rates = [scheduler.first(base)]
    for t in range(1, steps):
        rates.append(scheduler.next(base, rates[-1], t))
    return rates


def sequential(base, first, milestone, second, steps):
    """SequentialLR: `second` starts anew, from its own step 0, when `milestone` steps are done."""
    return run(first, base, milestone) + run(second, base, steps - milestone)


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
        "CosineAnnealingLR", run(CosineAnnealingLR(150), 0.4, 150), epochs=15.0, warmup_epochs=0.0, lr=0.4
    )
    yield case(
        "LinearLR 0.05, then CosineAnnealingLR to 0.01",
        sequential(0.4, LinearLR(0.05, 1.0, 20), 20, CosineAnnealingLR(130, 0.01), 150),
        epochs=15.0, warmup_epochs=2.0, lr=0.4, warmup_lr=0.02, min_lr=0.01,
    )
    yield case(
        "LinearLR to 0.1 of the rate",
        run(LinearLR(1.0, 0.1, 150), 0.4, 150),
        epochs=15.0, warmup_epochs=0.0, lr=0.4, schedule="linear", min_lr=0.04,
    )
    yield case(
        "LinearLR 0.25, then LinearLR to 0",
        sequential(0.4, LinearLR(0.25, 1.0, 30), 30, LinearLR(1.0, 0.0, 120), 150),
        epochs=15.0, warmup_epochs=3.0, lr=0.4, warmup_lr=0.1, schedule="linear",
    )
    yield case(
        "StepLR every 2 epochs",
        run(StepLR(20, 0.5), 0.4, 150),
        epochs=15.0, warmup_epochs=0.0, lr=0.4, schedule="exponential", decay_rate=0.5, decay_epochs=2.0,
    )
    yield case(
        "ExponentialLR after every step",
        run(ExponentialLR(0.98), 0.4, 150),
        epochs=15.0, warmup_epochs=0.0, lr=0.4, schedule="exponential", decay_rate=0.98, decay_epochs=0.1,
    )
    yield case(
        "MultiStepLR after epochs 3, 6 and 12",
        run(MultiStepLR([30, 60, 120], 0.1), 0.4, 150),
        epochs=15.0, warmup_epochs=0.0, lr=0.4, schedule="steps", decay_rate=0.1, milestones=[3.0, 6.0, 12.0],
    )
    yield case(
        "LinearLR 0.5, then ConstantLR",
        sequential(0.4, LinearLR(0.5, 1.0, 10), 10, ConstantLR(), 120),
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
    found = list(cases())
    for one in found:
        assert len(one["rates"]) >= 100, one["name"]
        one["recipe"] = {key.replace("_", "-"): value for key, value in one["recipe"].items()}
    path = pathlib.Path(__file__).parent.parent / "tests/golden/schedules/rates.json"
    path.write_text("[\n" + ",\n".join(json.dumps(one) for one in found) + "\n]\n")


if __name__ == "__main__":
    main()
