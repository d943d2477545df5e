"""Two siblings, fused; what may happen between their calls; what may move their weights."""

import threading

import torch
from torch import nn

import hfusion
from hfusion.fusing import _members


class Net(nn.Module):
    """Two siblings; `between` happens between their calls, to a copy of x."""

    def __init__(self, make):
        super().__init__()
        self.a, self.b, self.between = make(), make(), None

    def forward(self, x):
        x = x * 1
        first = self.a(x)
        if self.between:
            self.between(self, x)
        return first, self.b(x)


def linear():
    return Net(lambda: nn.Linear(4, 4)), torch.randn(4, 4)


def conv(**settings):
    settings = {"padding": 1} | settings
    return Net(lambda: nn.Conv2d(3, 5, 3, **settings)), torch.randn(2, 3, 9, 9)


def pair(make=linear, learns=False):
    """(a model, it fused, an input)."""
    torch.manual_seed(0)
    model, x = make()
    model.eval().requires_grad_(learns)
    return model, hfusion.fuse(model, x), x


def group(fused):
    return _members.member_of(fused.a).group


def same(model, fused, *inputs, rounds=None, tolerance=1e-5):
    """Whether they give the same; rounds: how many were served together meanwhile."""
    before = rounds is not None and group(fused).rounds
    for x in inputs:
        want, got = answer(model, x), answer(fused, x)
        if isinstance(want, str):
            assert got == want
            continue
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
        assert [y.requires_grad for y in got] == [y.requires_grad for y in want]
    assert rounds is None or group(fused).rounds - before == rounds


def answer(model, x):
    """What a model gives; the name of the error if it gives none."""
    try:
        return model(x)
    except Exception as error:
        return type(error).__name__


def parameter(*shape):
    return nn.Parameter(torch.full(shape, 0.5), requires_grad=False)


def infer(do):
    with torch.inference_mode():
        do()


def set_data(tensor, change):
    tensor.data = change(tensor.data)


def own(layer, **attributes):
    vars(layer).update(attributes)


class Doubling(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def later(model, context):
    """Let the second sibling be called in a context."""
    forward = model.b.forward

    def in_context(x):
        with context:
            return forward(x)

    model.b.forward = in_context


BETWEEN = {
    "nothing": lambda m, x: None,
    "x": lambda m, x: x.add_(1),
    "x by a view": lambda m, x: x.view(-1)[3:].mul_(2),
    "x by out=": lambda m, x: torch.exp(x, out=x),
    "x at once": lambda m, x: torch._foreach_mul_([x], 2),
    "x in inference mode": lambda m, x: infer(lambda: x.add_(1)),
    "x transposed": lambda m, x: x.t_(),
    "x.data": lambda m, x: set_data(x, lambda t: t * 2),
    "x.data transposed": lambda m, x: set_data(x, lambda t: t.t()),
    "x learns": lambda m, x: x.requires_grad_(),
    "weight": lambda m, x: m.b.weight.mul_(2),
    "bias": lambda m, x: m.b.bias.add_(1),
    "weight in inference mode": lambda m, x: infer(lambda: m.b.weight.add_(1)),
    "weight by a view": lambda m, x: m.b.weight.view(-1)[:3].zero_(),
    "weight loaded": lambda m, x: m.b.load_state_dict(m.a.state_dict()),
    "weight.data": lambda m, x: set_data(m.b.weight, lambda t: t * 2),
    "weight.data transposed": lambda m, x: set_data(m.b.weight, lambda t: t.t()),
    "weight.data of another kind": lambda m, x: set_data(m.b.weight, lambda t: t.int()),
    "weight.data read as numbers of another kind": lambda m, x: set_data(
        m.b.weight, lambda t: t.view(torch.int32)
    ),
    "bias.data": lambda m, x: set_data(m.b.bias, lambda t: t * 2),
    "bias.data cut": lambda m, x: set_data(m.b.bias, lambda t: t[:1]),
    "bias.data of one number": lambda m, x: set_data(m.b.bias, lambda t: t[:1].expand(4)),
    "weight learns": lambda m, x: m.b.weight.requires_grad_(),
    "another weight": lambda m, x: setattr(m.b, "weight", parameter(4, 4)),
    "another bias": lambda m, x: setattr(m.b, "bias", parameter(4)),
    "no bias": lambda m, x: setattr(m.b, "bias", None),
    "a weight beside it": lambda m, x: own(m.b, weight=torch.ones(4, 4)),
    "a bias beside it": lambda m, x: own(m.b, bias=torch.ones(4)),
    "half": lambda m, x: m.b.half(),
    "another class": lambda m, x: setattr(m.b, "__class__", Doubling),
    "a forward": lambda m, x: own(m.b, forward=lambda x: x * 3),
    "a hook": lambda m, x: m.b.register_forward_hook(lambda m, x, y: y * 2),
    "a pre-hook": lambda m, x: m.b.register_forward_pre_hook(lambda m, x: (x[0] * 2,)),
    "autocast": lambda m, x: m.later(torch.autocast("cpu")),
    "grad mode": lambda m, x: m.later(torch.enable_grad()),
    "called twice": lambda m, x: m.b(x),
    "called with another": lambda m, x: m.b(x * 2),
    "the first called again": lambda m, x: m.a(x * 2),
    "a failure": lambda m, x: answer(m.b, torch.ones(5)),
}


MOVES = {
    "half": lambda m: m.half(),
    "double": lambda m: m.double(),
    "bfloat16": lambda m: m.bfloat16(),
    "complex": lambda m: m.to(torch.complex64),
    "there and back": lambda m: m.double().float(),
    "data": lambda m: set_data(m.b.weight, lambda t: t * 2),
    "assigned": lambda m: m.load_state_dict(
        {key: value * 2 for key, value in m.state_dict().items()}, assign=True
    ),
    "channels_last": lambda m: m.to(memory_format=torch.channels_last),
    "meta": lambda m: m.to_empty(device="meta").to_empty(device="cpu").apply(fill),
}


def fill(module):
    for value in module.parameters():
        nn.init.constant_(value, 0.25)


def in_threads(run, count=6):
    """Call run(0), run(1), … at once, each in a thread of its own."""
    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
