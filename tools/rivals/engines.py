"""The programs that run the network, each as its documentation recommends on a CPU with a fixed number of threads.

| engine | training | inference of a batch | one image |
|---|---|---|---|
| PyTorch eager | channels-last, autocast | channels-last, `inference_mode`, autocast | same |
| PyTorch compiled | the same under `torch.compile` | and frozen: batch norm folded, weights packed | same |
| ONNX Runtime | | all graph optimisations, one pool of threads | same |
| OpenVINO | | hint THROUGHPUT: several requests at a time | hint LATENCY |

Shapes are fixed in all of them. An engine has `check`, which compares what it computes with PyTorch's fp32, and
`run(kind, steps)`, which returns when so many steps or batches are done.
"""

import contextlib
import time
from pathlib import Path

from .reference import SMOOTHING, create

# Of the root mean square of (logits - those of fp32) over that of the logits around their mean over the images. Another
# network has 1.4. PyTorch's bf16 has 0.09 for B0 at 32 and 0.08 at 224; fp32 rounds 65536 times as finely.
LOGITS_BOUND = {"fp32": 1e-3, "bf16": 0.25}
# Of the first training loss. Each engine draws its own dropout and stochastic depth: over 16 images at 224, PyTorch's own
# first loss then moved by 0.14. So this finds coarse faults only.
LOSS_BOUND = 0.5


def within(what, distance, bound):
    """The distance, which must be within the bound and a number."""
    if not distance <= bound:
        raise RuntimeError(f"{what} differ from PyTorch's in fp32 by {distance:.2g}, more than {bound:g}")
    return distance


class Inference:
    """What engines of inference share. They have `logits(images)`, for the batch and for one image."""

    def load(self, job):
        import torch

        self.job, self.torch = job, torch
        torch.set_num_threads(job["threads"])
        return torch.load(Path(job["folder"]) / "network.pt")

    def check(self, made):
        """Compares the logits of a batch and of a single image. Returns the larger distance."""
        want = made["logits"]
        spread = (want - want.mean(0)).square().mean().sqrt()
        distances = []
        for count in (self.job["batch"], 1):
            found = self.logits(made["images"][:count]).float()
            distances.append(((found - want[:count]).square().mean().sqrt() / spread).item())
        # A number that is not one fails, wherever it is.
        largest = next((found for found in distances if found != found), max(distances))
        return within("logits", largest, LOGITS_BOUND[self.job["precision"]])


class TorchInference(Inference):
    def __init__(self, job, compiled):
        made = self.load(job)
        torch = self.torch
        network = create(torch, job["model"], job["classes"])
        network.load_state_dict(made["weights"])
        network.eval()
        self.version = f"PyTorch {torch.__version__}"
        self.guard = torch.inference_mode
        if compiled:
            import torch._inductor.config

            torch._inductor.config.freezing = True
            self.guard = torch.no_grad  # freezing asks for it
            network = torch.compile(network, dynamic=False)
        self.network = network
        batches = {"inference": made["images"][: job["batch"]], "latency": made["images"][:1]}
        self.images = {kind: images.clone(memory_format=torch.channels_last) for kind, images in batches.items()}
        self.distance = self.check(made)

    def logits(self, images):
        images = images.clone(memory_format=self.torch.channels_last)
        with self.guard(), autocast(self.torch, self.job):
            return self.network(images)

    def run(self, kind, steps):
        images = self.images[kind]
        with self.guard():
            for _ in range(steps):
                with autocast(self.torch, self.job):
                    self.network(images)


class OnnxRuntime(Inference):
    """A session for the batch and one for a single image."""

    def __init__(self, job):
        import onnxruntime

        made = self.load(job)
        self.version = f"ONNX Runtime {onnxruntime.__version__}"
        self.sessions, self.images = {}, {}
        for kind, count in (("inference", job["batch"]), ("latency", 1)):
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = job["threads"]
            options.inter_op_num_threads = 1
            options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
            options.add_free_dimension_override_by_name("batch", count)
            path = str(Path(job["folder"]) / "network.onnx")
            self.sessions[kind] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            self.images[kind] = made["images"][:count].contiguous().numpy()
        self.distance = self.check(made)

    def logits(self, images):
        session = self.sessions["latency" if len(images) == 1 else "inference"]
        return self.torch.from_numpy(session.run(None, {"images": images.contiguous().numpy()})[0])

    def run(self, kind, steps):
        session, given = self.sessions[kind], {"images": self.images[kind]}
        for _ in range(steps):
            session.run(None, given)


class OpenVino(Inference):
    """A compiled model with as many requests as it likes for the batch, and one with the other hint for one image."""

    def __init__(self, job):
        import openvino
        import openvino.properties as properties
        import openvino.properties.hint as hint

        made = self.load(job)
        self.version = f"OpenVINO {openvino.__version__.split('-')[0]}"
        core = openvino.Core()
        kind_of = {"fp32": openvino.Type.f32, "bf16": openvino.Type.bf16}[job["precision"]]
        self.models, self.images = {}, {}
        modes = {"inference": hint.PerformanceMode.THROUGHPUT, "latency": hint.PerformanceMode.LATENCY}
        for kind, mode in modes.items():
            count = job["batch"] if kind == "inference" else 1
            model = core.read_model(Path(job["folder"]) / "network.onnx")
            model.reshape([count, 3, job["side"], job["side"]])
            settings = {
                hint.performance_mode: mode,
                hint.inference_precision: kind_of,
                properties.inference_num_threads: job["threads"],
            }
            compiled = core.compile_model(model, "CPU", settings)
            taken = compiled.get_property(hint.inference_precision)
            if taken != kind_of:
                raise RuntimeError(f"on this processor OpenVINO takes {taken.get_type_name()} instead of {kind_of}")
            self.models[kind] = compiled
            self.images[kind] = made["images"][:count].contiguous().numpy()
        self.queue = openvino.AsyncInferQueue(self.models["inference"])
        self.request = self.models["latency"].create_infer_request()
        self.distance = self.check(made)

    def logits(self, images):
        model = self.models["latency" if len(images) == 1 else "inference"]
        return self.torch.from_numpy(model([images.contiguous().numpy()])[0].copy())

    def run(self, kind, steps):
        given = self.images[kind]
        if kind == "latency":
            for _ in range(steps):
                self.request.infer([given], share_inputs=True, share_outputs=True)
            return
        for _ in range(steps):
            self.queue.start_async([given], share_inputs=True)
        self.queue.wait_all()


class TorchTraining:
    """timm's network with what a training step needs."""

    def __init__(self, job, compiled):
        import torch

        self.job, self.torch = job, torch
        torch.set_num_threads(job["threads"])
        torch.manual_seed(1)
        self.version = f"PyTorch {torch.__version__}"
        made = torch.load(Path(job["folder"]) / "network.pt")
        network = create(torch, job["model"], job["classes"], drop=0.2)
        network.load_state_dict(made["weights"])
        self.loss_of = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
        self.optimizer = torch.optim.RMSprop(
            network.parameters(), lr=1e-4, alpha=0.9, momentum=0.9, eps=0.01, weight_decay=1e-5, foreach=False
        )
        self.images = made["images"][: job["batch"]].clone(memory_format=torch.channels_last)
        self.labels = made["labels"]
        self.network = torch.compile(network.train(), dynamic=False) if compiled else network.train()
        self.distance = within("first losses", abs(self.step() / made["loss"] - 1), LOSS_BOUND)

    def step(self):
        """The loss of one step."""
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.torch, self.job):
            loss = self.loss_of(self.network(self.images), self.labels)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def run(self, _kind, steps):
        for _ in range(steps):
            self.step()


def autocast(torch, job):
    if job["precision"] == "fp32":
        return contextlib.nullcontext()
    return torch.autocast("cpu", dtype=torch.bfloat16)


def start(job):
    """The engine of a job, checked; torch.compile has compiled by then."""
    compiled = job["engine"] == "PyTorch compiled"
    if job["half"] == "training":
        return TorchTraining(job, compiled)
    if job["engine"].startswith("PyTorch"):
        return TorchInference(job, compiled)
    return {"ONNX Runtime": OnnxRuntime, "OpenVINO": OpenVino}[job["engine"]](job)


def seconds(engine, kind, steps, warm_steps, warm_seconds):
    """Seconds of `steps` steps, after at least so many steps and seconds of warm-up."""
    begin = time.perf_counter()
    engine.run(kind, warm_steps)
    while time.perf_counter() - begin < warm_seconds:
        engine.run(kind, 1)
    begin = time.perf_counter()
    engine.run(kind, steps)
    return time.perf_counter() - begin
