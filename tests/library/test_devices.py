"""Names of devices, waiting for them, and how they round."""

import io
from types import SimpleNamespace

import pytest
import torch

from hfusion import timing
from hfusion.timing import _devices


@pytest.mark.parametrize("convolutions", [False, True])
@pytest.mark.parametrize("products", [False, True])
def test_float32_may_round_as_tf32_does_on_a_gpu(monkeypatch, convolutions, products):
    backends = torch.backends
    monkeypatch.setattr(backends, "cudnn", SimpleNamespace(allow_tf32=convolutions))
    matmul = SimpleNamespace(allow_tf32=products)
    monkeypatch.setattr(backends, "cuda", SimpleNamespace(matmul=matmul))
    # IEEE's float32 and float64 keep 23 and 52 bits after the point, TF32 keeps 10.
    x = SimpleNamespace(is_cuda=True, dtype=torch.float32)
    assert timing.unit(x) == 2.0 ** (-10 if convolutions or products else -23)
    x.dtype = torch.float64
    assert timing.unit(x) == 2.0**-52
    assert timing.unit(torch.ones(1)) == 2.0**-23


def test_settings_that_cannot_be_read_may_be_tf32():
    class Mixed:
        @property
        def allow_tf32(self):
            raise RuntimeError("mixed")

    assert timing.tf32(Mixed())
    assert not timing.tf32(SimpleNamespace(allow_tf32=False))


# The device.


def test_synchronise_waits_for_a_gpu_only(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    timing.synchronise("cpu")
    timing.synchronise(torch.device("cpu"))
    assert waited == []
    timing.synchronise("cuda:1")
    assert waited == ["cuda:1"]


CPUINFO = "processor : 0\nmodel name : Some CPU\nprocessor : 1\nmodel name : Some CPU\n"


def test_device_name_of_a_cpu_is_its_model_and_threads(monkeypatch):
    monkeypatch.setattr("builtins.open", lambda path: io.StringIO(CPUINFO))
    assert timing.device_name() == f"Some CPU, {torch.get_num_threads()} threads"


@pytest.mark.parametrize("cpuinfo", ["processor : 0\n", None])
def test_device_name_falls_back_to_the_architecture(monkeypatch, cpuinfo):
    def open_cpuinfo(path):
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return io.StringIO(cpuinfo)

    monkeypatch.setattr("builtins.open", open_cpuinfo)
    monkeypatch.setattr(_devices.platform, "machine", lambda: "riscv64")
    assert timing.device_name().startswith("riscv64, ")


def test_device_name_of_a_gpu_is_torchs(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU at {device}")
    assert timing.device_name("cuda:1") == "GPU at cuda:1"
