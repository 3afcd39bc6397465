#!/usr/bin/env python3
"""Speed and memory of effnet against what else runs an EfficientNet, on one machine in one run.

On a GPU: training and inference, images per second, of timm's model in PyTorch eager (channels-last, AMP with
gradient scaling), of the same under torch.compile with max-autotune and CUDA graphs, and of effnet's benchmark
`network`. All get a batch that lies ready, with RMSprop in training. They take turns, so that a machine whose speed
drifts slows all; ratios are taken round by round against the best PyTorch configuration, and the median is printed.
All run at least a second before they are timed, so that the clocks have risen, and then at least 100 steps. By default
that takes about ten minutes on an H100, most of it for torch.compile; --no-compile leaves that out.

On the CPU: training by PyTorch eager and compiled; inference by these, ONNX Runtime and OpenVINO, of a batch and of one
image; each in fp32 and in bf16 where the engine has it. Before an engine of inference is timed, its logits are compared
with those of PyTorch in fp32; in training the first loss is. The result is two tables in Markdown. An engine that is
missing or fails is named with the reason. tools/rivals has this half.

    pip install torch timm onnx onnxscript onnxruntime openvino
    python tools/compare_pytorch.py                     # on a GPU where there is one, else on the CPU
    python tools/compare_pytorch.py --device cpu --sizes b0:224:16:6,b4:380:4:2 --json rounds.json

`--effnet-bench FILE` names the compiled benchmark where there is no cargo. PyTorch compiles for a CPU with g++.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPU_SIZES = "b0:32:128:20,b0:224:16:6"
GPU_SIZES = "b0:224:128:100,b0:224:512:100,b4:380:32:100"
GPU_ROUNDS, CPU_ROUNDS = 1, 3
GPU_WARM_SECONDS = 1.0


class TorchModel:
    """timm's network with what a training step needs, eager or compiled."""

    def __init__(self, args):
        import timm
        import torch

        self.torch, self.args = torch, args
        torch.set_num_threads(args.threads)
        torch.manual_seed(0)
        self.device = torch.device("cuda")
        torch.backends.cudnn.benchmark = True
        model = timm.create_model(
            f"efficientnet_{args.model}", num_classes=args.classes, drop_rate=0.2, drop_path_rate=0.2
        )
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.loss_of = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
        self.optimizer = torch.optim.RMSprop(
            self.model.parameters(), lr=1e-4, alpha=0.9, momentum=0.9, eps=0.01, weight_decay=1e-5, foreach=True
        )
        self.half = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": None}[args.precision]
        self.scaler = torch.amp.GradScaler("cuda", enabled=self.half == torch.float16)
        side = args.resolution
        images = torch.randn(args.batch, 3, side, side, device=self.device)
        self.images = images.to(memory_format=torch.channels_last)
        self.labels = torch.randint(0, args.classes, (args.batch,), device=self.device)
        self.run_model = self.model
        if args.compile:
            self.run_model = torch.compile(self.model, mode="max-autotune")

    def autocast(self):
        return self.torch.autocast("cuda", dtype=self.half or self.torch.float16, enabled=self.half is not None)

    def train_step(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss_of(self.run_model(self.images), self.labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def infer(self):
        with self.torch.inference_mode(), self.autocast():
            self.run_model(self.images)

    def wait(self):
        self.torch.cuda.synchronize()

    def rate(self, work):
        """Images per second, after at least so many steps and seconds of warm-up."""
        begin = time.perf_counter()
        done = 0
        while done < self.args.warmup or time.perf_counter() - begin < self.args.warm_seconds:
            work()
            self.wait()
            done += 1
        start = time.perf_counter()
        for _ in range(self.args.steps):
            work()
        self.wait()
        return self.args.batch * self.args.steps / (time.perf_counter() - start)


def torch_worker(args):
    """Runs in a process of its own and prints one object."""
    work = TorchModel(args)
    work.torch.cuda.reset_peak_memory_stats()
    work.model.train()
    training = work.rate(work.train_step)
    memory = work.torch.cuda.max_memory_allocated()
    work.model.eval()
    print(json.dumps({"training": training, "inference": work.rate(work.infer), "memory": memory}))


def last_object(command, environment=None):
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        problem = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise RuntimeError(f"{Path(command[0]).name} failed with {done.returncode}: {problem}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_torch(args, case, compiled):
    model, side, batch, steps = case
    command = [sys.executable, __file__, "--worker", "--precision", args.precision]
    command += ["--model", model, "--resolution", str(side), "--batch", str(batch), "--steps", str(steps)]
    command += ["--threads", str(args.threads), "--classes", str(args.classes)]
    command += ["--warm-seconds", str(args.warm_seconds)]
    command += ["--warmup", str(10 if compiled else args.warmup)] + (["--compile"] if compiled else [])
    threads = str(args.threads)
    return last_object(command, dict(os.environ, OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads))


def run_effnet(args, case):
    model, side, batch, steps = case
    command = [args.effnet_bench, "--json", "--device", "cuda", "--model", model, "--resolution", str(side)]
    command += ["--batch", str(batch), "--steps", str(steps), "--rounds", "1", "--classes", str(args.classes)]
    command += ["--warmup", str(args.warmup), "--warm-seconds", str(args.warm_seconds)]
    command += ["--precision", args.precision]
    found = last_object(command)
    medians = {key: statistics.median(found[key]) for key in ("training", "inference")}
    return dict(medians, memory=found["memory"])


def build_bench():
    """The path of effnet's benchmark, compiled."""
    command = ["cargo", "bench", "--bench", "network", "--no-run", "--message-format", "json"]
    try:
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    except FileNotFoundError:
        sys.exit("no cargo here: name the compiled benchmark with --effnet-bench")
    if done.returncode != 0:
        sys.exit(f"effnet's benchmark does not build: {' '.join(command)}")
    messages = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = (m.get("executable") for m in messages if m.get("target", {}).get("name") == "network")
    return next(filter(None, found))


def measure(args, case):
    """All configurations of one case, round by round: name -> list of objects."""
    configurations = {"PyTorch eager": lambda: run_torch(args, case, False)}
    if not args.no_compile:
        configurations["PyTorch compiled"] = lambda: run_torch(args, case, True)
    configurations["effnet"] = lambda: run_effnet(args, case)
    found = {name: [] for name in configurations}
    for _ in range(args.rounds):
        for name, run in configurations.items():
            try:
                found[name].append(run())
            except (RuntimeError, OSError) as error:
                print(f"  {name}: {error}", file=sys.stderr)
                found[name].append(None)
    return found


def table(case, found):
    model, side, batch, _ = case
    for kind in ("training", "inference"):
        for name, runs in found.items():
            runs = [run for run in runs if run]
            if not runs:
                print(f"{model:>4} {side:>4} {batch:>5} {kind:>10} {name:>18} {'failed':>17}")
                continue
            rates = [run[kind] for run in runs]
            memory = runs[-1]["memory"]
            peak = f"{memory / 2**30:.2f}" if memory and kind == "training" else "-"
            print(
                f"{model:>4} {side:>4} {batch:>5} {kind:>10} {name:>18} {min(rates):>8.1f}-{max(rates):<8.1f} {peak:>9}"
                f" {ratio(found, kind) if name == 'effnet' else ''}",
                flush=True,
            )


def ratio(found, kind):
    """effnet's rate over the best PyTorch's of the same round."""
    ratios = []
    for number, ours in enumerate(found["effnet"]):
        theirs = [runs[number][kind] for name, runs in found.items() if name != "effnet" and runs[number]]
        if ours and theirs:
            ratios.append(ours[kind] / max(theirs))
    if not ratios:
        return ""
    return f"{statistics.median(ratios):>6.2f} ({min(ratios):.2f}-{max(ratios):.2f})"


def on_gpu(args):
    import torch

    args.precision = args.precision or "fp16"
    args.rounds = args.rounds or GPU_ROUNDS
    args.warm_seconds = GPU_WARM_SECONDS if args.warm_seconds is None else args.warm_seconds
    print(
        f"{torch.cuda.get_device_name()}, {args.precision}, PyTorch {torch.__version__}; images/s, least and most of "
        f"{args.rounds} rounds"
    )
    columns = f"{'images/s':>17} {'peak GiB':>9} {'ratio to the best PyTorch':>26}"
    print(f"{'':>4} {'side':>4} {'batch':>5} {'':>10} {'':>18} {columns}")
    for size in (args.sizes or GPU_SIZES).split(","):
        model, *numbers = size.split(":")
        case = (model, *map(int, numbers))
        table(case, measure(args, case))


def processor():
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return (names or [platform.processor() or platform.machine()])[0]


def version():
    """effnet with its version, where its sources are."""
    manifest = ROOT / "Cargo.toml"
    return f"effnet {tomllib.loads(manifest.read_text())['package']['version']}" if manifest.exists() else "effnet"


def on_cpu(args):
    from rivals import rounds, tables

    if args.precision == "fp16":
        sys.exit("--precision fp16: on the CPU it is fp32 or bf16, and both without the flag")
    args.rounds = args.rounds or CPU_ROUNDS
    args.warm_seconds = args.warm_seconds or 0.0
    args.machine, args.effnet_version = processor(), version()
    sizes = [rounds.Case.parse(size) for size in (args.sizes or CPU_SIZES).split(",")]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the workers are ended too
    cases = []
    if args.json:  # one that cannot be written is found before the work
        try:
            tables.write_json(args, cases, args.json)
        except OSError as error:
            sys.exit(f"--json {args.json}: {error.strerror}")
    for case in sizes:
        print(f"{tables.size(case)}:", file=sys.stderr)
        cases.append((case, rounds.measure(args, case)))
        if args.json:  # as soon as a size is done: a long run that is stopped has it
            tables.write_json(args, cases, args.json)
    print(tables.markdown(args, cases))


def has_gpu():
    """Asked in a process of its own: this one has to stay small (see tools/rivals)."""
    asked = "import torch, timm; print(torch.cuda.is_available())"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{(done.stderr.strip().splitlines() or ['no message'])[-1]}: pip install torch timm")
    return done.stdout.split()[-1] == "True"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--precision", choices=("fp16", "bf16", "fp32"), help="fp16 on a GPU, both others on the CPU")
    parser.add_argument("--sizes", help="MODEL:RESOLUTION:BATCH:STEPS, comma-separated")
    parser.add_argument("--effnet-bench", help="effnet's compiled benchmark `network`; built where this is missing")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the CPU")
    turns = f"turns for each size: {GPU_ROUNDS} on a GPU, {CPU_ROUNDS} on the CPU"
    parser.add_argument("--rounds", type=int, help=turns)
    parser.add_argument("--warmup", type=int, default=3, help="least steps before timing starts")
    parser.add_argument("--warm-seconds", type=float, help=f"least time before: {GPU_WARM_SECONDS:g} on a GPU")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it takes minutes a size")
    parser.add_argument("--json", help="also write all rounds into this file (on the CPU)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--compile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    for hidden in ("--resolution", "--batch", "--steps"):
        parser.add_argument(hidden, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return torch_worker(args)

    found = has_gpu()
    cuda = found if args.device == "auto" else args.device == "cuda"
    if cuda and not found:
        sys.exit("--device cuda: PyTorch finds no GPU")
    if cuda and args.json:
        parser.error("--json is for the CPU")
    args.effnet_bench = args.effnet_bench or build_bench()
    (on_gpu if cuda else on_cpu)(args)


if __name__ == "__main__":
    main()
