"""What a call launches, reads and writes, and when."""

import contextlib
import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hfusion import models, timing
from hfusion.timing import _launches

# count_launches

A = torch.arange(16.0).reshape(4, 4)


def counted(fn):
    return timing.count_launches(fn).names


OPERATORS = {
    "none": (lambda: None, ()),
    "two": (lambda: (A + A).relu(), ("add", "relu")),
    "the same twice": (lambda: (A + A, A + A), ("add", "add")),
    "in place": (lambda: A.clone().add_(1).relu_(), ("clone", "add_", "relu_")),
    "into a given tensor": (lambda: torch.add(A, A, out=torch.empty(4, 4)), ("add",)),
    "a copy": (lambda: A.t().contiguous(), ("clone",)),
    "no copy needed": (lambda: A.contiguous(), ()),
    "a concatenation": (lambda: torch.cat([A, A]), ("cat",)),
    "a convolution": (lambda: F.conv1d(A, A[:, :, None]), ("convolution",)),
    "a Linear": (lambda: F.linear(A, A, A[0]), ("addmm",)),
    "a Linear on three axes": (lambda: F.linear(A[None], A), ("mm",)),
    "memory": (lambda: (torch.empty(3), torch.empty_like(A), A.new_empty(2)), ()),
    "memory with strides": (lambda: torch.empty_strided((2, 2), (1, 2)), ()),
    "a fill": (lambda: torch.zeros(3), ("zeros",)),
}


@pytest.mark.parametrize(("fn", "names"), OPERATORS.values(), ids=OPERATORS)
def test_operators_that_compute_are_counted_in_order(fn, names):
    assert counted(fn) == names


VIEWS = {
    "split": lambda: A.split([1, 3]),
    "chunk": lambda: A.chunk(2),
    "reshape": lambda: A.reshape(2, 8),
    "view": lambda: A.view(16),
    "transpose": lambda: A.transpose(0, 1),
    "permute": lambda: A.permute(1, 0),
    "index": lambda: A[1:, None],
    "narrow": lambda: A.narrow(0, 1, 2),
    "expand": lambda: A.unsqueeze(0).expand(3, 4, 4),
    "unbind": lambda: A.unbind(),
    "diagonal": lambda: A.diagonal(),
    "detach": lambda: A.detach(),
    "unfold": lambda: A.unfold(0, 2, 1),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_views_count_nothing(view):
    assert counted(view) == ()
    assert counted(lambda: (view(), A + 1)) == ("add",)


def test_an_inception_module_counts_twenty_operators():
    module = models.randomise(models.Inception.from_table("3a")).eval()
    x = torch.zeros(1, 192, 28, 28)
    names = counted(lambda: module(x))
    assert len(names) == 20
    expected = {"convolution": 6, "batch_norm": 6, "relu": 6, "max_pool2d": 1, "cat": 1}
    for part, count in expected.items():
        assert sum(part in name for name in names) == count, part


def test_launches_print_as_a_tally():
    launches = timing.count_launches(lambda: (A + A).relu() + A)
    assert launches.count == 3
    assert launches.kind == "operators"
    assert str(launches).split() == ["3", "operators:", "2", "add", "1", "relu"]


def test_counting_warms_up_once_and_records_no_gradients():
    recording = []
    layer = nn.Linear(4, 4)
    timing.count_launches(lambda: recording.append(layer(A).requires_grad))
    assert recording == [False, False]


def test_an_error_in_what_is_counted_comes_out():
    with pytest.raises(ZeroDivisionError):
        timing.count_launches(lambda: 1 / 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_kernels_are_counted_on_a_gpu():
    a = torch.ones(64, 64, device="cuda")
    launches = timing.count_launches(lambda: (a + a).relu().split([1, 63]), "cuda")
    assert launches.kind == "kernels"
    assert launches.count == 2
    assert timing.count_launches(lambda: a.view(-1), "cuda").count == 0
    assert timing.count_launches(lambda: a.clone(), "cuda").count == 1


# count_bytes


BYTES = {  # float32, and views that cost nothing
    "a copy": (lambda a: a.clone(), 2 * 4 * 64),
    "in place": (lambda a: a.add_(1), 2 * 4 * 64),
    "an operand twice": (lambda a: a + a, 3 * 4 * 64),
    "a product": (lambda a: a.view(8, 8) @ a.view(8, 8)[:, :2], 4 * (64 + 16 + 16)),
    "a list": (lambda a: torch.cat([a, a[:16]]), 2 * 4 * 80),
    "two outputs": (lambda a: a.view(8, 8).max(dim=1), 4 * (64 + 8) + 8 * 8),
    "half": (lambda a: a.half(), 4 * 64 + 2 * 64),
    "nothing": (lambda a: a.view(8, 8).T, 0),
}


@pytest.mark.parametrize("what", BYTES)
def test_bytes_are_those_of_inputs_and_outputs(what):
    fn, expected = BYTES[what]
    assert timing.count_bytes(lambda: fn(torch.empty(64))) == expected


# count_faults


@pytest.fixture
def faults(monkeypatch):
    """The only counter there is: {"soft": page faults, "hard": those with a disk}."""
    counters = {"soft": 1000, "hard": 50}

    def getrusage(who):
        assert who == "myself"
        return SimpleNamespace(ru_minflt=counters["soft"], ru_majflt=counters["hard"])

    fake = SimpleNamespace(RUSAGE_SELF="myself", getrusage=getrusage)
    monkeypatch.setattr(_launches, "resource", fake)
    return counters


def test_faults_of_the_second_call_are_counted(faults):
    costs, recording = iter([300, 7]), []

    def fn():
        faults["soft"] += next(costs)
        faults["hard"] += 2
        recording.append(torch.is_grad_enabled())

    assert timing.count_faults(fn) == 7
    assert recording == [False, False]
    assert torch.is_grad_enabled()


def test_without_faults_there_are_none_to_count(faults):
    assert timing.count_faults(lambda: None) == 0


def test_a_system_that_does_not_say_is_not_asked(monkeypatch):
    monkeypatch.setattr(_launches, "resource", None)
    assert timing.count_faults(lambda: 1 / 0) is None


@pytest.mark.skipif(_launches.resource is None, reason="this system does not say")
def test_the_system_is_asked_for_faults():
    assert timing.count_faults(lambda: A + A) >= 0


# timeline


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(self.norm(self.conv(x)).relu().mean((2, 3)))


def test_the_timeline_of_a_small_module():
    model, x = Small().eval(), torch.zeros(1, 3, 8, 8)
    events = timing.timeline(lambda: model(x))
    names = [name for _, name, _, _ in events]
    # and not `convolution`, `addmm`, … which those call
    assert names == ["conv2d", "batch_norm", "relu", "mean", "linear"]
    assert {lane for lane, *_ in events} == {"host"}
    assert events[0][2] == 0
    for _, _, begin, end in events:
        assert 0 <= begin <= end
    for (_, _, _, end), (_, _, begin, _) in itertools.pairwise(events):
        assert end <= begin


def test_a_timeline_is_of_one_call_without_gradients():
    recording = []

    def fn():
        recording.append(torch.is_grad_enabled())
        for _ in recording:  # the fourth call is the one that is looked at
            A.abs()

    assert [name for _, name, _, _ in timing.timeline(fn)] == ["abs"] * 4
    assert recording == [False] * 4
    assert torch.is_grad_enabled()


def profiled(name, begin, end, kind="CPU", parent=None):
    return SimpleNamespace(
        name=name,
        time_range=SimpleNamespace(start=begin, end=end),
        device_type=getattr(torch.autograd.DeviceType, kind),
        cpu_parent=parent,
    )


@pytest.fixture
def profiler(monkeypatch):
    """A profiler that saw these events, and the order in which it was used."""
    conv = profiled("aten::conv2d", 107.0, 112.25)
    seen = SimpleNamespace(order=[], activities=None)
    seen.found = [
        profiled("a_kernel", 115.5, 120.0, "CUDA"),
        conv,
        profiled("aten::convolution", 108.0, 111.0, parent=conv),
        profiled("cudaLaunchKernel", 106.0, 107.0),
        profiled("Memset (Device)", 113.00049, 114.00049, "CUDA", conv),
        profiled("a_long_kernel", 109.0, 121.0, "CUDA"),  # on another stream
        profiled("aten::relu", 112.5, 113.0),
    ]

    @contextlib.contextmanager
    def profile(activities):
        seen.activities = {activity.name for activity in activities}
        seen.order.append("begin")
        yield SimpleNamespace(events=lambda: seen.found)
        seen.order.append("end")

    monkeypatch.setattr(torch.profiler, "profile", profile)
    wait = lambda device: seen.order.append(f"wait for {device}")
    monkeypatch.setattr(_launches, "synchronise", wait)
    return seen


def test_lanes_start_at_zero_and_are_in_order(profiler):
    events = timing.timeline(lambda: profiler.order.append("call"), "cuda:1")
    assert events == [
        ("host", "conv2d", 0, 5.25),
        ("device", "a_long_kernel", 2, 14),
        ("host", "relu", 5.5, 6),
        ("device", "Memset (Device)", 6, 7),
        ("device", "a_kernel", 8.5, 13),
    ]
    wait = "wait for cuda:1"
    assert profiler.order == [*3 * ["call"], wait, "begin", "call", wait, "end"]
    assert profiler.activities == {"CPU", "CUDA"}


def test_where_nothing_was_launched_the_timeline_is_empty(profiler):
    profiler.found.clear()
    assert timing.timeline(lambda: None) == []


def test_on_a_cpu_only_the_host_is_looked_at(profiler):
    timing.timeline(lambda: None)
    assert profiler.activities == {"CPU"}
