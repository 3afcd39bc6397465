#!/usr/bin/env python3
"""Checks that weights come and go: other programs and effnet give the same logits for the same images.

    pip install torch torchvision timm safetensors onnx onnxruntime efficientnet-pytorch keras
    cargo build --release
    python tools/check_weights.py                       # all networks, some minutes
    python tools/check_weights.py --networks b0,tf_b0   # some

For each network: timm's model, with random weights of the size that training gives and with running statistics of its own
activations, is saved as safetensors. Then

1. effnet-eval reads that file, and a checkpoint as timm's train.py saves it with torch.save, and classifies random images
   (of a size that it crops without resizing): the logits of all classes must be timm's;
2. effnet-eval writes the weights again, under the names of timm, torchvision and efficientnet-pytorch; each program loads
   its file with strict=True and must give timm's logits again (torchvision and efficientnet-pytorch have one kind of
   padding each: they are compared where it is the network's);
3. effnet-eval writes ONNX, with normalised images and with bytes as its input; the checker of onnx accepts both, and ONNX
   Runtime must give timm's logits, with batches of 1 and of 7 through the same file.

Last, Keras's B0 in double precision: effnet-eval reads its weights (another order of axes) and must give its logits.

Logits are compared relative to the largest of an image, after their mean is taken away (probabilities, which effnet prints,
fix logits only up to a constant). They are compared with those of the network in fp64. The bound is 1e-5, or twice the
distance of PyTorch's own fp32, where that is more: a deep network amplifies the rounding of whoever computes it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOUND = 1e-5
CLASSES = 1000
IMAGES = 7
MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def model_of(network, images):
    """timm's model of `b0` or `tf_b0`, in evaluation mode, with weights that training could have given: its running
    statistics are those of such images, so that no layer grows out of bounds."""
    import timm
    import torch

    family = "tf_efficientnet" if network.startswith("tf_") else "efficientnet"
    torch.manual_seed(int(network[-1]) + len(network))
    model = timm.create_model(f"{family}_{network[-2:]}", num_classes=CLASSES)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(images.float())
    return f"{family}_{network[-2:]}", model.eval()


def centred(logits):
    logits = logits.double()
    return logits - logits.mean(1, keepdim=True)


def distance(found, expected):
    """The largest difference, relative to the image's largest logit. NaN is infinitely far."""
    found, expected = centred(found), centred(expected)
    worst = ((found - expected).abs().amax(1) / expected.abs().amax(1)).max().item()
    return worst if worst == worst else float("inf")


class Check:
    def __init__(self, effnet, folder):
        self.effnet, self.folder, self.failed, self.bound = effnet, Path(folder), False, BOUND

    def row(self, network, what, found, expected):
        far = distance(found, expected)
        sound = far <= self.bound
        self.failed |= not sound
        print(f"{network:6} {what:34} {far:.1e}{'' if sound else '   TOO FAR'}", flush=True)

    def eval(self, *arguments):
        ran = subprocess.run([self.effnet, *map(str, arguments)], capture_output=True, text=True)
        if ran.returncode != 0:
            raise SystemExit(f"effnet-eval {' '.join(map(str, arguments))}: {ran.stderr.strip()}")
        return ran.stdout

    def images(self, side):
        """Random pictures with large and small structure, as files and as bytes [N, side, side, 3]."""
        import numpy as np
        from PIL import Image

        random, files, pixels = np.random.default_rng(side), [], []
        for number in range(IMAGES):
            coarse = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side), Image.BILINEAR)
            noise = random.integers(-20, 21, (side, side, 3))
            image = np.clip(np.asarray(coarse).astype(int) + noise, 0, 255).astype(np.uint8)
            path = self.folder / f"{side}-{number}.png"
            Image.fromarray(image).save(path)
            files.append(path)
            pixels.append(image)
        return files, np.stack(pixels)

    def cropped(self, side):
        """Images of which effnet takes the inner `side` pixels without resizing; their files, and these pixels."""
        import numpy as np

        whole = round(side / 0.875)
        files, pixels = self.images(whole)
        at = round((whole - side) / 2)  # to even, as torchvision does
        return files, np.ascontiguousarray(pixels[:, at : at + side, at : at + side])

    def ours(self, weights, files, *flags):
        """effnet's logarithms of the probabilities, which are its logits but for a constant of each image."""
        import numpy as np
        import torch

        lines = self.eval(weights, "--json", "--device", "cpu", "--topk", CLASSES, *flags, *files).splitlines()
        ours = torch.full((IMAGES, CLASSES), float("nan"), dtype=torch.float64)
        for row, line in enumerate(lines):
            for found in json.loads(line)["classes"]:
                ours[row, int(found["class"])] = np.log(found["probability"])
        return ours

    def network(self, network):
        import numpy as np
        import timm
        import torch
        from safetensors.torch import load_file, save_file

        side = SIDES[network[-2:]]
        files, pixels = self.cropped(side)
        scaled = (torch.from_numpy(pixels).double() / 255 - torch.tensor(MEAN).double()) / torch.tensor(DEVIATION).double()
        images = scaled.permute(0, 3, 1, 2).contiguous()
        name, model = model_of(network, images)
        with torch.no_grad():
            timms = model(images.float())
            exact = model.double()(images)
            model.float()
        own = distance(timms, exact)
        self.bound = max(BOUND, 2 * own)
        print(f"{network:6} {'timm in fp32':34} {own:.1e}   bound {self.bound:.1e}", flush=True)

        # The name says which padding: TensorFlow's weights have the same names of tensors.
        file = self.folder / f"{name}.safetensors"
        save_file(model.state_dict(), file)
        self.row(network, "timm -> effnet-eval", self.ours(file, files), exact)
        # Another network under other prefixes, which must not be taken.
        other = {f"module.{key}": torch.zeros_like(value) for key, value in model.state_dict().items()}
        saved = {"epoch": 3, "arch": name, "state_dict": other, "state_dict_ema": model.state_dict()}
        torch.save(saved, self.folder / f"{name}.pth")
        ours = self.ours(self.folder / f"{name}.pth", files, "--weights", "ema")
        self.row(network, "timm's .pth, average -> effnet-eval", ours, exact)

        def loaded(other, names):
            out = self.folder / f"{name}-{names}.safetensors"
            self.eval(file, "--export", out, "--names", names, "--force")
            other.load_state_dict(load_file(out), strict=True)
            with torch.no_grad():
                return other.eval()(images.float())

        self.row(network, "export -> timm, strict", loaded(timm.create_model(name, num_classes=CLASSES), "timm"), exact)
        if not network.startswith("tf_"):
            from torchvision.models import efficientnet

            other = getattr(efficientnet, f"efficientnet_{network}")(num_classes=CLASSES)
            for module in other.modules():
                # B5 to B7 have TensorFlow's there.
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.eps = 1e-5
            self.row(network, "export -> torchvision, strict", loaded(other, "torchvision"), exact)
        else:
            try:
                from efficientnet_pytorch import EfficientNet
            except ImportError:
                print(f"{network:6} export -> efficientnet-pytorch        not installed: not compared")
            else:
                other = EfficientNet.from_name(f"efficientnet-{network[3:]}", num_classes=CLASSES, image_size=side)
                self.row(network, "export -> lukemelas, strict", loaded(other, "lukemelas"), exact)
        self.onnx(network, file, images, pixels, exact)

    def onnx(self, network, file, images, pixels, exact):
        import onnx
        import onnxruntime
        import torch

        for what, flags, given in [("normalised", [], images.float().numpy()), ("bytes", ["--bytes-in"], pixels)]:
            out = self.folder / f"{network}-{what}.onnx"
            self.eval(file, "--export", out, "--force", *flags)
            onnx.checker.check_model(str(out), full_check=True)
            # The file is judged by its own graph. All of ONNX Runtime's rewrites change the order of sums, and so the rounding:
            # how far is said too.
            level = onnxruntime.SessionOptions()
            level.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            session = onnxruntime.InferenceSession(str(out), level, providers=["CPUExecutionProvider"])
            note = json.loads(session.get_modelmeta().custom_metadata_map["effnet-network"])
            assert (note["model"], len(note["classes"])) == (network[-2:], CLASSES), note
            [seven] = session.run(None, {"images": given})
            ones = [session.run(None, {"images": given[at : at + 1]})[0] for at in range(IMAGES)]
            self.row(network, f"onnxruntime, {what}, batch 7", torch.from_numpy(seven), exact)
            self.row(network, f"onnxruntime, {what}, batch 1", torch.cat([torch.from_numpy(one) for one in ones]), exact)
            [fast] = onnxruntime.InferenceSession(str(out)).run(None, {"images": given})
            print(f"{network:6} {'  with all its rewrites':34} {distance(torch.from_numpy(fast), exact):.1e}   not judged", flush=True)


    def keras(self):
        """Keras's weights by their paths, as somebody would save them."""
        import numpy as np
        import torch
        from safetensors.numpy import save_file

        os.environ["KERAS_BACKEND"] = "torch"
        import keras

        keras.config.set_floatx("float64")
        files, pixels = self.cropped(SIDES["b0"])
        self.bound = BOUND
        scaled = (pixels / 255 - np.array(MEAN)) / np.array(DEVIATION)
        model = keras.applications.EfficientNetB0(weights=None, classes=CLASSES, classifier_activation=None)
        random = np.random.default_rng(1)
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                gamma, beta, mean, variance = layer.get_weights()
                layer.set_weights([random.uniform(0.5, 1.5, gamma.shape), random.normal(0, 0.3, beta.shape), mean, variance])
                layer.momentum = 0.0
        # Its first layers divide by 255 and, without weights, normalise by nothing.
        model(255 * scaled, training=True)
        exact = torch.as_tensor(np.asarray(keras.ops.convert_to_numpy(model(255 * scaled, training=False))))
        tensors = {weight.path: weight.numpy().astype(np.float32) for weight in model.weights if weight.dtype == "float64"}
        file = self.folder / "keras.safetensors"
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, file)
        self.row("b0", "keras -> effnet-eval", self.ours(file, files), exact)


SIDES = {"b0": 224, "b1": 240, "b2": 260, "b3": 300, "b4": 380, "b5": 456, "b6": 528, "b7": 600}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", default="b0,b3,tf_b0,b7,keras")
    parser.add_argument("--effnet", default=str(ROOT / "target/release/effnet-eval"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        check = Check(args.effnet, folder)
        for network in args.networks.split(","):
            check.keras() if network == "keras" else check.network(network)
    if check.failed:
        sys.exit("some logits differ too much")


if __name__ == "__main__":
    main()
