"""The results as Markdown, for people, and as JSON, with every round."""

import dataclasses
import json
import statistics

from .rounds import COMPILED, INFERENCE_STEPS, LATENCY_STEPS, OURS, ratios

PRECISIONS = ("fp32", "bf16")
NONE = "–"


def number(value):
    """Three digits, or all before the point."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def gib(value):
    return NONE if value is None else f"{value / 2**30:.2f}"


def milliseconds(rate):
    return None if rate is None else 1000 / rate


def ratio(found):
    """Median, least and most."""
    if not found:
        return NONE
    return f"**{statistics.median(found):.2f}** ({min(found):.2f}–{max(found):.2f})"


def row(cells):
    return "| " + " | ".join(cells) + " |"


def head(columns):
    return [row(columns), row(["---"] * 2 + ["--:"] * (len(columns) - 2))]


def engines(results):
    """Names in order, with the result of each precision."""
    found = {}
    for result in results:
        found.setdefault(result.engine, {})[result.precision] = result
    return found


def cells(by_precision, of):
    """`of` a result, in each precision that was measured."""
    return [of(by_precision[p]) if p in by_precision else NONE for p in PRECISIONS]


def against(results, kind, of_all):
    """Ratios of effnet in each precision."""
    ours = engines(results).get(OURS, {})
    return cells(ours, lambda own: ratio(ratios(results, own, kind, PRECISIONS if of_all else (own.precision,))))


def size(case):
    return f"{case.model.upper()} at {case.side}², batch {case.batch}"


def training(cases):
    lines = head(["training", "", "fp32, images/s", "bf16, images/s", "fp32, peak GiB", "bf16, peak GiB"])
    for case, results in cases:
        results = [result for result in results if result.half == "training"]
        for name, found in engines(results).items():
            rates = cells(found, lambda result: number(result.median("training")))
            peaks = cells(found, lambda result: gib(result.peak_bytes))
            lines.append(row([size(case), name, *rates, *peaks]))
        planned = cells(engines(results)[OURS], lambda result: gib(result.planned_bytes))
        lines.append(row([size(case), "effnet, planned", "", "", *planned]))
        for words, of_all in (("the same precision", False), ("any precision", True)):
            name = f"effnet over the best rival in {words}"
            lines.append(row([size(case), name, *against(results, "training", of_all), "", ""]))
    return lines


def inference(cases):
    columns = ["fp32, images/s", "bf16, images/s", "fp32, ms of one image", "bf16, ms of one image"]
    lines = head(["inference", "", *columns])
    for case, results in cases:
        results = [result for result in results if result.half == "inference"]
        for name, found in engines(results).items():
            rates = cells(found, lambda result: number(result.median("inference")))
            times = cells(found, lambda result: number(milliseconds(result.median("latency"))))
            lines.append(row([size(case), name, *rates, *times]))
        both = [against(results, kind, False) for kind in ("inference", "latency")]
        lines.append(row([size(case), "effnet over the best rival in the same precision", *both[0], *both[1]]))
    return lines


def span(values, form):
    values = sorted(value for value in values if value is not None)
    return f"{form(values[0])} to {form(values[-1])}"


def notes(args, cases):
    """What was measured, by what, and what is missing."""
    results = [result for _, found in cases for result in found]
    versions = list(dict.fromkeys(result.version for result in results if result.version))
    turns = "; ".join(f"{size(case)}: {case.shape('training')[1]} steps" for case, _ in cases)
    lines = [
        f"{args.machine}, {args.threads} threads; {', '.join(versions)}.",
        f"Medians of {args.rounds} rounds, in each of which all take turns.",
        "Ratios are taken round by round, more than 1 where effnet is faster: median (least–most).",
        f"A turn: {turns}; {INFERENCE_STEPS} times as many batches of inference, {LATENCY_STEPS} single images.",
        "Peak GiB: resident memory of the whole process; of PyTorch compiled with that of compiling.",
    ]
    compiled = [result.start_seconds for result in results if result.engine == COMPILED]
    if any(compiled):
        text = span(compiled, lambda value: f"{value:.0f}")
        lines.append(f"torch.compile took {text} s a start, which no rate contains.")
    for precision in PRECISIONS:
        distances = [r.distance for r in results if (r.half, r.precision) == ("inference", precision)]
        if any(distances):
            text = span(distances, lambda value: f"{value:.1e}")
            lines.append(f"Logits in {precision} against PyTorch's in fp32: {text} of their deviation over the images.")
    for case, found in cases:
        for result in found:
            if result.problem:
                name = f"{size(case)}, {result.half}, {result.engine} {result.precision}"
                lines.append(f"{name}: {result.problem.rstrip('.')}.")
    return [f"- {line}" for line in lines]


def markdown(args, cases):
    return "\n".join([*training(cases), "", *inference(cases), "", *notes(args, cases)])


def write_json(args, cases, path):
    found = {
        "machine": args.machine,
        "threads": args.threads,
        "rounds": args.rounds,
        "cases": [
            {**dataclasses.asdict(case), "results": [dataclasses.asdict(result) for result in results]}
            for case, results in cases
        ],
    }
    with open(path, "w") as file:
        json.dump(found, file, indent=1)
        file.write("\n")
