"""What is fusion worth in a whole network?

GoogLeNet of this book, and that of torchvision where it is installed: step by step, as a
CUDA graph, under torch.compile, and on a CPU under ONNX Runtime and OpenVINO where they
are installed.
"""

import torch

from hfusion import models

from ..recorder import Benchmark, Unavailable
from . import peers, variants

QUESTION = "What is horizontal fusion worth in a whole network?"


def ours():
    return models.GoogLeNet()


def torchvisions():
    try:
        from torchvision.models import googlenet
    except (ImportError, RuntimeError) as error:  # a build for another torch, for one
        raise Unavailable(f"torchvision cannot be imported: {error}") from error
    return googlenet(weights=None, init_weights=False, aux_logits=False)


NETWORKS = {"GoogLeNet": ours, "torchvision": torchvisions}


def cases(device):
    gpu = device != "cpu"
    return [
        {
            "network": network,
            "batch": batch,
            "dtype": dtype,
            "layout": variants.USUAL[dtype],
        }
        for network in NETWORKS
        for batch in ((1, 8, 64) if gpu else (1, 4))
        for dtype in (("float32", "float16") if gpu else ("float32",))
    ]


def again(device):
    """What is compiled, if there is time: one image first."""
    every = [] if device == "cpu" else cases(device)
    return sorted(every, key=lambda case: (case["batch"], case["dtype"] != "float16"))


def benchmark(device, network, batch, dtype, layout):
    model = models.randomise(NETWORKS[network]()).eval()
    x = torch.randn(batch, 3, 224, 224)
    model, x = variants.placed(model, x, dtype, device, layout)
    nets = variants.eager(model)
    thorough = batch == 1 and (device == "cpu" or dtype == "float16")
    modes = variants.MODES if thorough else ["default"]
    makers = variants.every(nets, x, device, modes)
    for name, runtime in peers.RUNTIMES.items():
        for variant in (variants.WRITTEN, variants.HOISTED):
            makers[f"{name}, {variant}"] = lambda runtime=runtime, variant=variant: on_cpu(
                device, runtime, nets[variant], x
            )
    return Benchmark(
        makers,
        variants.exact(model, x),
        20 * variants.TOLERANCE[dtype],
        opaque=variants.opaque(makers),
        slow=variants.slow(makers),
    )


def on_cpu(device, runtime, net, x):
    """A variant of another runtime, which is compared on CPUs only."""
    if device != "cpu":
        raise Unavailable("compared on CPUs only")
    return runtime(net, x)
