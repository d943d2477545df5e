"""Other runtimes, where they are installed: a network as a function of no arguments."""

import io
import warnings

import torch

from ..recording import Unavailable


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
        torch.onnx.export(net, (x,), dynamo=True, verbose=False).save(file)
    return file.getvalue()


def onnx_runtime(net, x):
    """Run by ONNX Runtime, all of its optimisations on, with torch's number of threads."""
    try:
        import onnxruntime
    except ImportError as error:
        raise Unavailable("onnxruntime is not installed") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Else its threads keep a processor busy for a while after each call, in others' turns.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        _onnx(net, x), options, providers=["CPUExecutionProvider"]
    )
    inputs = {session.get_inputs()[0].name: x.numpy()}
    return lambda: [torch.from_numpy(y) for y in session.run(None, inputs)]


def openvino(net, x):
    """Run by OpenVINO, in float32 and with torch's number of threads."""
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
    return lambda: [torch.from_numpy(y) for y in compiled(array).values()]


RUNTIMES = {"ONNX Runtime": onnx_runtime, "OpenVINO": openvino}
