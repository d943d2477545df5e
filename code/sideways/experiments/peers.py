"""Compilers and other runtimes: a network as a function of no arguments."""

import io
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

from ..recorder import Unavailable, noting
from .guards import what_it_lacks


def _onnx(net, x):
    """The network in ONNX's format, as bytes."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise Unavailable(f"{error.name} is not installed") from error
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's, about itself
        program: Any = torch.onnx.export(net, (x,), dynamo=True, verbose=False)
        program.save(file)
    return file.getvalue()


def onnx_runtime(net, x):
    """Run by ONNX Runtime, all of its optimisations on, with torch's number of threads.

    The function's `convolutions` says how many it has left of the network's.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise Unavailable("onnxruntime is not installed") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Else its threads keep a processor busy for a while after each call, in others' turns.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # no warning that what it writes fits this machine only
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
        session = onnxruntime.InferenceSession(
            _onnx(net, x), options, providers=["CPUExecutionProvider"]
        )
        import onnx

        kinds = [
            node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node
        ]
    inputs = {session.get_inputs()[0].name: x.numpy()}

    def call():
        return [torch.from_numpy(y) for y in session.run(None, inputs)]

    count = sum(kind.endswith("Conv") for kind in kinds)  # Conv, FusedConv
    return noting(call, convolutions=count)


def openvino(net, x):
    """Run by OpenVINO, in float32 and with torch's number of threads.

    The function's `convolutions` says how many it has left of the network's.
    """
    try:
        import openvino
    except ImportError as error:
        raise Unavailable("openvino is not installed") from error
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Core().read_model(_onnx(net, x))
    compiled = openvino.compile_model(model, "CPU", settings)
    array = x.numpy()
    kinds = [
        node.get_rt_info()["layerType"] for node in compiled.get_runtime_model().get_ops()
    ]

    def call():
        return [torch.from_numpy(y) for y in compiled(array).values()]

    count = sum(kind.astype(str) == "Convolution" for kind in kinds)
    return noting(call, convolutions=count)


def inductor(net, x, **options):
    """Compiled by torch.compile with these options of Inductor's.

    The function's `convolutions` says how many calls of one are in the code it generated.
    """
    from torch._inductor.utils import run_and_get_code  # seconds, and only needed here

    torch._dynamo.reset()
    compiled = torch.compile(net, options=options)
    with torch.no_grad(), what_it_lacks():
        _, programs = run_and_get_code(compiled, x)
    calls = re.findall(r"(?:extern_kernels\.|\._)convolution\w*\(", "".join(programs))
    if not calls:
        raise Unavailable("the code it generated has no convolution that is known here")

    def call():
        return compiled(x)

    return noting(call, convolutions=len(calls))


RUNTIMES = {"ONNX Runtime": onnx_runtime, "OpenVINO": openvino}
