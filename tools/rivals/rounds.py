"""All engines of a case take turns.

Training first, then inference of a batch and of one image. Each engine starts, is checked and compiles alone. Then come
the rounds: in each, every engine warms up and is timed once, and each round begins with the next engine of the list. An
engine that fails is kept with its reason, and with the rounds that it has.
"""

import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field

from .processes import Failed, Worker, run_once

OURS = "effnet"
EAGER, COMPILED = "PyTorch eager", "PyTorch compiled"
ENGINES = {
    "training": {EAGER: ("fp32", "bf16"), COMPILED: ("fp32", "bf16"), OURS: ("fp32", "bf16")},
    "inference": {
        EAGER: ("fp32", "bf16"),
        COMPILED: ("fp32", "bf16"),
        "ONNX Runtime": ("fp32",),  # its CPU provider has no bf16 convolutions
        "OpenVINO": ("fp32", "bf16"),
        OURS: ("fp32", "bf16"),
    },
}
# Inference is faster, so it takes more batches to be timed as well.
INFERENCE_STEPS, LATENCY_STEPS = 3, 50
START_LIMIT, TURN_LIMIT = 1200, 600
# Pools of threads spin for a moment after their work.
PAUSE = 0.25


@dataclass
class Case:
    model: str
    side: int
    batch: int
    steps: int

    @classmethod
    def parse(cls, text):
        model, *numbers = text.split(":")
        if len(numbers) != 3 or not all(number.isdigit() and int(number) > 0 for number in numbers):
            sys.exit(f"--sizes {text}: not MODEL:RESOLUTION:BATCH:STEPS, as in b0:224:16:6")
        return cls(model, *map(int, numbers))

    def shape(self, kind):
        """Images and steps of a turn."""
        if kind == "latency":
            return 1, LATENCY_STEPS
        return self.batch, self.steps * (INFERENCE_STEPS if kind == "inference" else 1)


@dataclass
class Result:
    """What one engine did in one precision. A round has images per second, or None where it failed."""

    engine: str
    precision: str
    half: str
    version: str = ""
    problem: str | None = None
    start_seconds: float | None = None
    distance: float | None = None
    peak_bytes: int | None = None
    planned_bytes: int | None = None
    rates: dict = field(default_factory=dict)

    def median(self, kind):
        rates = [rate for rate in self.rates.get(kind, []) if rate]
        return statistics.median(rates) if rates else None


class Rival:
    def __init__(self, args, case, folder, result):
        self.args, self.case, self.folder, self.result = args, case, folder, result
        self.worker = None

    def start(self, onnx_problem):
        result = self.result
        if onnx_problem and not result.engine.startswith("PyTorch"):
            raise Failed(onnx_problem)
        self.worker = Worker(self.folder, self.args.threads)
        job = job_of(self.args, self.case, self.folder)
        job |= {"do": "start", "engine": result.engine, "precision": result.precision, "half": result.half}
        found = self.worker.ask(job, START_LIMIT)
        result.version, result.start_seconds, result.distance = found["version"], found["seconds"], found["distance"]

    def turn(self, kind):
        images, steps = self.case.shape(kind)
        request = {"do": "turn", "kind": kind, "steps": steps}
        request |= {"warm_steps": self.args.warmup, "warm_seconds": self.args.warm_seconds}
        found = self.worker.ask(request, TURN_LIMIT)
        self.result.peak_bytes = found["memory"]
        return images * steps / found["seconds"]

    def close(self):
        if self.worker:
            self.worker.close()
            self.worker = None


class Ours:
    """effnet's benchmark, a new process each time."""

    def __init__(self, args, case, _folder, result):
        self.args, self.case, self.result = args, case, result
        result.version = args.effnet_version

    def run(self, kind, images, steps, warm_steps):
        args, case = self.args, self.case
        command = [args.effnet_bench, "--json", "--device", "cpu", "--threads", args.threads, "--model", case.model]
        command += ["--resolution", case.side, "--batch", images, "--steps", steps, "--rounds", 1]
        command += ["--classes", args.classes, "--warmup", warm_steps, "--warm-seconds", args.warm_seconds]
        command += ["--precision", self.result.precision, "--only", self.result.half]
        line, peak = run_once(command, TURN_LIMIT)
        found = json.loads(line)
        if kind != "latency":
            self.result.peak_bytes = max(peak, self.result.peak_bytes or 0)
            self.result.planned_bytes = found["memory"]
        return found[self.result.half][0]

    def start(self, _):
        try:
            self.run("latency", 2, 1, 1)
        except Failed as failed:
            raise Failed(f"not there: {failed}") from None

    def turn(self, kind):
        return self.run(kind, *self.case.shape(kind), self.args.warmup)

    def close(self):
        pass


def job_of(args, case, folder):
    return {
        "model": case.model,
        "side": case.side,
        "batch": case.batch,
        "classes": args.classes,
        "threads": args.threads,
        "folder": folder,
    }


def say(text):
    print(f"  {text}", file=sys.stderr, flush=True)


def make_reference(args, case, folder):
    """Makes the network of a case. Returns why there is no ONNX file, or None."""
    worker = Worker(folder, args.threads)
    try:
        return worker.ask(job_of(args, case, folder) | {"do": "reference"}, START_LIMIT)["onnx"]
    finally:
        worker.close()


def take_turns(args, engines, kinds):
    """The rounds of one half. An engine that fails leaves."""
    for number in range(args.rounds):
        for kind in kinds:
            for result in (engine.result for engine in engines):
                result.rates.setdefault(kind, []).append(None)
            first = number % len(engines)
            for engine in engines[first:] + engines[:first]:
                result = engine.result
                if result.problem:
                    continue
                time.sleep(PAUSE)
                try:
                    result.rates[kind][-1] = engine.turn(kind)
                except Failed as failed:
                    result.problem = f"round {number + 1}, {kind}: {failed}"
                    say(f"{result.engine} {result.precision}: {result.problem}")
                    engine.close()


def measure_half(args, case, half, folder, onnx_problem):
    """The results of all engines in training or in inference."""
    engines = []
    try:
        for name, precisions in ENGINES[half].items():
            if name == COMPILED and args.no_compile:
                continue
            for precision in precisions:
                if args.precision in (None, precision):
                    result = Result(name, precision, half)
                    engines.append((Ours if name == OURS else Rival)(args, case, folder, result))
        for engine in engines:
            result = engine.result
            begin = time.perf_counter()
            try:
                engine.start(onnx_problem)
                say(f"{half} {result.engine} {result.precision}: ready after {time.perf_counter() - begin:.0f} s")
            except Failed as failed:
                result.problem = str(failed)
                say(f"{half} {result.engine} {result.precision}: {result.problem}")
                engine.close()
        take_turns(args, engines, ("training",) if half == "training" else ("inference", "latency"))
    finally:
        for engine in engines:
            engine.close()
    return [engine.result for engine in engines]


def measure(args, case):
    """All results of a case."""
    with tempfile.TemporaryDirectory(prefix="effnet-rivals-") as folder:
        try:
            onnx_problem = make_reference(args, case, folder)
        except Failed as failed:
            sys.exit(f"{case.model} at {case.side}, batch {case.batch}: {failed}")
        if onnx_problem:
            say(onnx_problem)
        return [result for half in ENGINES for result in measure_half(args, case, half, folder, onnx_problem)]


def ratios(results, ours, kind, precisions):
    """Our rate over the best rival's of the same round, in every round that has both; rivals in these precisions."""
    rivals = [result for result in results if result.engine != OURS and result.precision in precisions]
    found = []
    for number, rate in enumerate(ours.rates.get(kind, [])):
        theirs = [rival.rates[kind][number] for rival in rivals if rival.rates.get(kind)]
        best = max((rate for rate in theirs if rate), default=None)
        if rate and best:
            found.append(rate / best)
    return found
