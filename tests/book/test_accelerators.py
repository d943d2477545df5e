"""A Mac's GPU and Intel's, made up: what is measured there, and what is said to lack.

No such device has run these tests. In its place tensors on a CPU say that they lie on
"mps", and have no float64, as a Mac's have none.
"""

import importlib
import subprocess
import sys
import types

import pytest
import torch
from torch.overrides import TorchFunctionMode

from hfusion import models, timing
from hfusion.stacking import rules
from hfusion.timing import _devices, cost
from sideways import estimates, experiments, recorder, records
from sideways.experiments import ceilings, chains, launch_overhead, variants
from sideways.recorder import machines, measuring

NO_FLOAT64 = "Cannot convert a MPS Tensor to float64 dtype"
GPUS = ("mps", "xpu")


class There(torch.Tensor):
    """A tensor that lies on the made-up device."""

    def __deepcopy__(self, memo):
        twin = self.detach().clone()
        return torch.nn.Parameter(twin) if isinstance(self, torch.nn.Parameter) else twin


class Made(TorchFunctionMode):
    """The device `kind`: what is sent there becomes There, and float64 is refused."""

    def __init__(self, kind, lacks=(torch.float64,)):
        super().__init__()
        self.kind, self.lacks = kind, lacks

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function == torch.Tensor.device.__get__ and isinstance(args[0], There):
            return torch.device(self.kind)
        if function in (torch.device, torch._C._nn._parse_to):
            return function(*args, **kwargs)
        sent = [self.here(value) for value in (*args, *kwargs.values())]
        there = any(isinstance(value, There) for value in args) or any(sent)
        dtypes = {*args, *kwargs.values()} if function is torch.Tensor.to else set()
        dtypes |= {torch.float64} if function is torch.Tensor.double else set()
        home = function is torch.Tensor.cpu or torch.device("cpu") in args
        if there and not home and dtypes & set(self.lacks):
            raise TypeError(NO_FLOAT64)
        args = ["cpu" if self.here(value) else value for value in args]
        kwargs = {n: "cpu" if self.here(v) else v for n, v in kwargs.items()}
        made = function(*args, **kwargs)
        if isinstance(made, torch.Tensor) and home:
            return made.as_subclass(torch.Tensor)
        return made.as_subclass(There) if any(sent) else made

    def here(self, value):
        return isinstance(value, str | torch.device) and str(value) == self.kind


@pytest.fixture(params=GPUS)
def gpu(request, monkeypatch):
    """The name of a made-up device, there while a test runs; it counts who waits."""
    kind, waits = request.param, []
    plain = {name: (*kinds, There) for name, kinds in rules._PLAIN.items()}
    monkeypatch.setattr(rules, "_PLAIN", plain)  # a real GPU's parameters are no subclass
    modules = {kind: types.SimpleNamespace(synchronize=lambda: waits.append(kind))}
    known = torch.get_device_module
    monkeypatch.setattr(
        torch, "get_device_module", lambda name=None: modules.get(name) or known(name)
    )
    monkeypatch.setattr(timing, "device_name", lambda device: f"A GPU by {device}")
    monkeypatch.setattr(measuring, "ROUNDS", 2)
    monkeypatch.setattr(measuring, "LEAST_ROUNDS", 1)
    overwrite = torch.__future__.set_overwrite_module_params_on_conversion
    overwrite(True)  # else parameters stay plain tensors
    with Made(kind):
        yield types.SimpleNamespace(kind=kind, waits=waits)
    overwrite(False)


SMALL = (12, 4, 5, 4, 6, 2, 4, 3)  # like a row of the paper's table
CASES = {
    "ceilings": [
        {"what": "copy", "bytes": 2**16},
        {"what": "matmul", "dtype": "float32", "side": 8},
        {"what": "empty", "operator": "conv", "way": "eager"},
        {"what": "empty", "operator": "conv", "way": "graph"},
    ],
    "launch_overhead": [{"operator": "abs", "way": way} for way in chains.WAYS],
    "stage": [{"module": "small", "batch": 2, "dtype": "float32", "layout": "NHWC"}],
    "embedding": [
        {"windows": "1×1, 3×3", "channels": 4, "side": 7, "batch": 1, "dtype": "float32"}
    ],
    "projections": [{"projections": "q, k, v", "tokens": 1, "dtype": "float32"}],
    "module_ladder": [
        {"module": "small", "batch": 1, "dtype": "float32", "layout": "NCHW"}
    ],
    "checks": [{"network": "three 1×1", "groups": 1}],
    "timeline": [{"module": "small", "rung": variants.WRITTEN}],
    "stopwatches": [{"module": "small", "batch": 1, "calls": 3}],
    "memory": [{"memory": "as it comes", "module": "small", "batch": 1, "layout": "NCHW"}],
}


def no_compiler(*_):
    raise recorder.Unavailable("no compiler")


def measured(name, kind, monkeypatch):
    """The Record of an experiment's CASES, on a made-up device."""
    module = importlib.import_module(f"sideways.experiments.{name}")
    monkeypatch.setitem(models.TABLE, "small", SMALL)
    monkeypatch.setattr(module, "cases", lambda device: CASES[name])
    monkeypatch.setattr(module, "ROUNDS", 2, raising=False)
    monkeypatch.setattr(launch_overhead, "CHAINS", (1, 10))
    monkeypatch.setattr(variants, "compiled", no_compiler)
    return experiments.run(name, kind)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"memory"}))
def test_an_experiment_is_measured_there(name, gpu, monkeypatch, tmp_path):
    """What is measured agreed with float64 before; the rest says why it was not."""
    made = measured(name, gpu.kind, monkeypatch)
    reasons = {why for case in made.cases for why in case.skipped.values()}
    assert not [why for why in reasons if why.startswith((records.FAILED, records.WRONG))]
    assert reasons <= {
        "needs a CUDA device", "oneDNN is for CPUs", "no compiler",
    } | {why for why in reasons if "mkldnn" in why}  # fmt: skip
    assert any(case.samples for case in made.cases)
    assert (made.counted, made.machine.kind) == ("operators", gpu.kind)
    assert made.machine.name == f"a-gpu-by-{gpu.kind}"
    assert gpu.waits
    assert records.load(records.save(made, tmp_path)).machine == made.machine


def test_what_needs_float64_there_is_refused_as_on_a_mac(gpu):
    x = torch.ones(2).to(gpu.kind)
    assert x.device.type == gpu.kind
    with pytest.raises(TypeError, match=NO_FLOAT64):
        x.double()
    assert variants.doubled(x).device.type == "cpu"
    timing.near(x, variants.doubled(x), 0)


def test_a_wrong_result_is_found_there(gpu):
    with pytest.raises(timing.Disagreement):
        timing.near(torch.ones(2).to(gpu.kind), torch.zeros(2).double(), 0)


def test_numbers_that_it_has_not_are_a_reason(monkeypatch, gpu):
    monkeypatch.setitem(CASES, "stage", [CASES["stage"][0] | {"dtype": "bfloat16"}])
    with Made(gpu.kind, (torch.float64, torch.bfloat16)):
        (found,) = measured("stage", gpu.kind, monkeypatch).cases
    assert found.skipped == {"every arm": f"{gpu.kind} has no bfloat16"}


def test_its_cases_are_those_of_gpus():
    for name in ("stage", "network", "embedding", "projections", "ceilings"):
        module = importlib.import_module(f"sideways.experiments.{name}")
        assert module.cases("mps") == module.cases("xpu") == module.cases("cuda")


@pytest.mark.parametrize("kind", experiments.ACCELERATORS)
def test_there_is_a_rule_for_its_estimates(kind):
    assert isinstance(estimates.RULES[kind], estimates.Rule)
    assert importlib.import_module("sideways.show.case").RULES_SAID[kind]


def test_its_ceilings_have_no_kernel_in_a_graph(gpu, monkeypatch):
    made = measured("ceilings", gpu.kind, monkeypatch)
    found = ceilings.limits(made, "float32")
    assert (found.kernel_s, found.overlaps) == (0, True)
    assert isinstance(found, cost.Ceilings)


@pytest.mark.parametrize(
    "text",
    [
        "MPS backend out of memory (MPS allocated: 3 GiB)",
        "level_zero backend failed with error: UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",
    ],
)
def test_its_words_for_no_memory_are_known(text):
    assert measuring._reason(RuntimeError(text)) == "out of memory"


def test_what_is_not_implemented_there_is_no_failure():
    error = NotImplementedError("The operator 'aten::x' is not implemented for MPS")
    assert measuring._reason(error) == str(error)


@pytest.mark.parametrize(("kind", "name"), [("xpu", "Intel Arc"), ("mps", "Apple M2 GPU")])
def test_it_has_a_name(kind, name, monkeypatch):
    modules = {"xpu": types.SimpleNamespace(get_device_name=lambda device: "Intel Arc")}
    known = torch.get_device_module
    monkeypatch.setattr(
        torch, "get_device_module", lambda name=None: modules.get(name) or known(name)
    )
    monkeypatch.setattr(_devices, "processor_name", lambda: "Apple M2")
    assert timing.device_name(kind) == name
    assert machines.machine(kind).kind == kind


def test_a_mac_names_its_processor(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    answer = types.SimpleNamespace(stdout="Apple M2\n")
    monkeypatch.setattr(subprocess, "run", lambda *asked, **how: answer)
    assert timing.processor_name() == "Apple M2"
