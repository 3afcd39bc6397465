#!/usr/bin/env python3
"""Checks a run's event files: TensorBoard's own reader finds every figure of log.jsonl in them, and no other.

    pip install tensorboard
    effnet-train --demo --tensorboard --out runs/demo
    python tools/check_tensorboard.py runs/demo

TensorBoard has numbers in single precision, so each figure is rounded to that and must then be equal. The run may have
been resumed: what a killed process wrote after its last checkpoint must be gone.
"""

import argparse
import json
import math
import struct
import sys
from pathlib import Path

NOT_SHOWN = {"step", "epoch", "images", "skipped"}


def single(value):
    """The nearest number of single precision; null in the log is a number that is not finite."""
    return math.nan if value is None else struct.unpack("<f", struct.pack("<f", value))[0]


def logged(run):
    """Step and value of each tag, in the order of the log."""
    tags = {}
    for line in (run / "log.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "extended_to" in record:
            continue
        kind = "eval" if "top1" in record else "train"
        for key, value in record.items():
            if key not in NOT_SHOWN:
                tags.setdefault(f"{kind}/{key}", []).append((record["step"], single(value)))
    return tags


def equal(one, two):
    return one[0] == two[0] and (one[1] == two[1] or math.isnan(one[1]) and math.isnan(two[1]))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run

    from tensorboard.backend.event_processing import event_accumulator

    everything = {name: 0 for name in event_accumulator.DEFAULT_SIZE_GUIDANCE}
    events = event_accumulator.EventAccumulator(str(run), size_guidance=everything)
    events.Reload()
    expected = logged(run)
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    wrong = sorted(set(found) ^ set(expected))
    for tag in set(found) & set(expected):
        pairs = zip(found[tag], expected[tag])
        if len(found[tag]) != len(expected[tag]) or not all(equal(one, two) for one, two in pairs):
            wrong.append(tag)
    texts = [tag for tag in events.Tags()["tensors"] if events.SummaryMetadata(tag).plugin_data.plugin_name == "text"]
    images = [(image.width, image.height) for tag in events.Tags()["images"] for image in events.Images(tag)]
    files = len(list(run.glob("events.out.tfevents.*")))
    print(f"{sum(map(len, found.values()))} figures of {len(found)} tags in {files} files; "
          f"texts: {', '.join(texts)}; images: {images}")
    if sorted(texts) != ["recipe", "run"] or len(images) != 1:
        wrong.append("texts or images")
    if wrong:
        sys.exit(f"not as in log.jsonl: {', '.join(wrong)}")
    print("all figures are those of log.jsonl")


if __name__ == "__main__":
    main()
