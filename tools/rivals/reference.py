"""The network that all engines run: weights, images and logits in a folder, and an ONNX file.

Weights as they are initialised are a poor test. On noise all images give nearly the same logits, so the images are
smooth fields of different colours, and the running statistics are those of these images. Layer by layer such a network
also amplifies the differences that rounding makes: with shifts of 0, bf16 changes B0's logits at 32 by more than half
of their deviation. With shifts of 1 before an activation, SiLU is nearly linear there, and bf16 changes them by a
tenth. Last, the classifier is scaled until logits have a deviation of SPREAD around their mean over the images: the
loss of a training step then differs from that of a network that says nothing, the logarithm of the number of classes.
"""

import warnings
from pathlib import Path

LEAST_IMAGES = 8
SHIFT, SPREAD = 1.0, 2.0
SMOOTHING = 0.1


def create(torch, model, classes, drop=0.0):
    """timm's network in channels-last order; `drop` is the rate of dropout and of stochastic depth."""
    import timm

    network = timm.create_model(f"efficientnet_{model}", num_classes=classes, drop_rate=drop, drop_path_rate=drop)
    return network.to(memory_format=torch.channels_last)


def make_images(torch, count, side):
    """`count` images of `side` pixels, NCHW."""
    smooth = torch.nn.functional.interpolate(torch.randn(count, 3, 4, 4), size=(side, side), mode="bicubic")
    images = smooth + 0.3 * torch.randn(count, 3, side, side)
    return images.to(memory_format=torch.channels_last)


def settle(torch, network, images):
    """Gives the network the weights that the module describes, and leaves it in inference."""
    norms = [part for part in network.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = 1.0
            if not isinstance(norm.act, torch.nn.Identity):
                norm.bias.fill_(SHIFT)
        network.train()(images)
        network.eval()
        logits = network(images)
        mean = logits.mean(0)
        factor = SPREAD / (logits - mean).square().mean().sqrt()
        network.classifier.weight.mul_(factor)
        network.classifier.bias.sub_(mean).mul_(factor)


def export(torch, network, images, path):
    """The network as ONNX, in fp32, for any number of images: each engine then fixes the number that it runs."""
    batch = torch.export.Dim("batch", min=1, max=65536)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (images[:2].contiguous(),),
            path,
            dynamo=True,
            dynamic_shapes=({0: batch},),
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        )


def make(job):
    """Writes `network.pt` and `network.onnx` into the folder of the job. Returns what went wrong with the latter."""
    import torch

    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    batch = job["batch"]
    images = make_images(torch, max(batch, LEAST_IMAGES), job["side"])
    labels = torch.randint(0, job["classes"], (batch,))
    network = create(torch, job["model"], job["classes"])
    settle(torch, network, images)
    loss_of = torch.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    dropping = create(torch, job["model"], job["classes"], drop=0.2)
    dropping.load_state_dict(weights)
    with torch.no_grad():
        logits = network(images)
        loss = loss_of(dropping.train()(images[:batch]), labels).item()
    folder = Path(job["folder"])
    made = {"weights": weights, "images": images, "labels": labels, "logits": logits, "loss": loss}
    torch.save(made, folder / "network.pt")
    try:
        export(torch, network, images, str(folder / "network.onnx"))
    except Exception as error:  # whatever the exporter lacks here, the other engines need no ONNX
        return {"onnx": f"torch.onnx.export: {type(error).__name__}: {str(error).splitlines()[0]}"}
    return {"onnx": None}
