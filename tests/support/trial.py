"""A random network, fused, against the same network as it was.

A case is one integer seed, from which `drawn` draws a network. Its siblings are found in
both ways, by reading it and by running it, and each plan is applied. Then something changes
in all three: numbers, batch, modes, the way that forward goes, weights written to, loaded,
replaced or cast, gradients recorded or not. After each change the fused networks are called
twice, and must agree with the original in their outputs and in what the calls leave in
inputs and state. States have the same keys and bits. Gradients, and what unfuse gives, are
the same but for where memory begins. In eval mode each network is lowered too, into one
graph with stacked layers. The original computes in float64, one layer after the other.

    python tests/support/trial.py 0 10000     tries the seeds 0 to 9999
"""

import collections
import contextlib
import copy
import dataclasses
import random
import sys
from unittest import mock

import torch
from drawn import FAILS, Draw, network_of
from torch import nn
from torch.nn import functional as F

import hfusion
from hfusion import stacking
from hfusion.fusing import _members, lowering, siblings
from hfusion.stacking import _memory, _state


def with_one_thread():
    """Tensors this small are not worth a second one; activations are called once for all,
    as on a GPU."""
    torch.set_num_threads(1)
    siblings._pays = lambda device: True


class Mismatch(AssertionError):
    """The fused network is not the original."""


# Comparing.


def close(what, actual, expected, bound):
    """Hold tensors to tensors, within a bound relative to the largest of each."""
    for index, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if (a.shape, a.dtype) != (e.shape, e.dtype):
            was, wanted = (tuple(a.shape), a.dtype), (tuple(e.shape), e.dtype)
            raise Mismatch(f"{what} {index} was {was}, not {wanted}")
        a, e = a.detach().double(), e.detach().double()
        limit = bound * (1 + (e.abs().max().item() if e.numel() else 0))
        if not torch.allclose(a, e, rtol=0, atol=limit, equal_nan=True):
            raise Mismatch(f"{what} {index} differs by {(a - e).abs().max():.2e}")


def same_state(what, a, b):
    """Two state dicts have the same keys in the same order and the same bits."""
    if list(a) != list(b):
        raise Mismatch(f"{what} has the keys {list(a)}, not {list(b)}")
    for key in a:
        if a[key].dtype != b[key].dtype or not torch.equal(a[key], b[key]):
            raise Mismatch(f"{key} of {what} is not what it was")


def attempt(what, call, *args, **kwargs):
    """What a call returns; where it fails, the fused network alone does so."""
    try:
        return call(*args, **kwargs)
    except Exception as error:
        raise Mismatch(f"{what} raises {type(error).__name__}: {error}") from error


@contextlib.contextmanager
def with_axes_in_order():
    """Convolutions that read a part lay out their outputs as if it had no gaps.

    Else the order of axes may be another, as `_group` says: `as_strided` sees it, and
    `view` stops at a tensor that has no gaps; here it copies that.
    """
    view = torch.Tensor.view

    def as_alone(convolve):
        def called(x, *given):
            alone = convolve(_memory.dense(x, x), *given)
            return torch.empty_like(alone).copy_(convolve(x, *given))

        return called

    def view_or_copy(x, *given, **named):
        try:
            return view(x, *given, **named)
        except RuntimeError:
            if not _memory.is_dense(x):
                raise
            return x.reshape(*given, *named.values())

    names = ("conv1d", "conv2d", "conv3d")
    convs = {name: as_alone(getattr(F, name)) for name in names}
    with (
        mock.patch.multiple(F, **convs),
        mock.patch.object(torch.Tensor, "view", view_or_copy),
    ):
        yield


def only_reordered(agree):
    """Whether a check fails, and does not with all axes in order."""
    try:
        with with_axes_in_order():
            agree()
    except Mismatch:
        return False
    try:
        agree()
    except Mismatch:
        return True
    return False


class Trial:
    """A network and its fused ones, and how all of them are called."""

    def __init__(self, seed):
        self.draw, self.rng = Draw(seed), random.Random(seed)
        self.model, self.fused = network_of(self.draw), {}
        self.base, self.autograd = self.draw.base, torch.no_grad
        # Forward may go a way that no plan has seen, and there strided parts may not do:
        # `view` stops, and a copy of `reshape` misses what is written later.
        self.elsewhere, self.stopped = False, {}
        # What a convolution makes of a part may lie otherwise, and some can tell.
        targets = {step.target for step in self.draw.root.steps}
        self.by_strides, self.reordered = bool({"as_strided", "view"} & targets), set()
        tensors = [*self.draw.values, *self.draw.root.parameters()]
        kinds = {getattr(tensor, "dtype", None) for tensor in tensors}
        self.bound = 1e-3 if torch.float32 in kinds else 1e-9

    def __iter__(self):
        """All of them."""
        return iter([self.model, *self.fused.values()])

    def call(self, network, base=None):
        """What two calls return, and what they leave in their inputs."""
        base = self.base if base is None else base
        inputs = [*self.draw.inputs(base), *self.draw.inputs(base)]
        torch.default_generator.manual_seed(0)
        with self.autograd():
            outputs = [*network(*inputs[:2]), *network(*inputs[2:])]
        return [*outputs, *inputs]

    def run(self, network):
        """The same, and what they leave in the state, which is put back."""
        before = copy.deepcopy(network.state_dict())
        try:
            found, state = self.call(network), network.state_dict()
            return [*found, *(state[key].clone() for key in sorted(state))]
        finally:
            network.load_state_dict(before)

    def runs(self):
        """What the original does; None if it raises an error."""
        with contextlib.suppress(*FAILS):
            return self.run(self.model)
        return None

    def agree(self, change):
        """Whether the original runs; raises where a fused network does something else.

        Those are called themselves, not copies: their groups remember what they saw.
        """
        expected = self.runs()
        if expected is None:
            return False
        for way in [*self.fused]:
            self.compare(f"found by {way}, {change}", way, self.run, expected, self.bound)
        return True

    def compare(self, what, way, call, expected, bound):
        """Hold a call of a fused network to what is expected."""
        fused = self.fused[way]

        def agree():
            close(f"{what}: tensor", attempt(what, call, fused), expected, bound)

        try:
            agree()
        except Mismatch:
            if self.by_strides and only_reordered(agree):
                self.reordered.add(way)
                return
            if not self.elsewhere:
                raise
            self.stopped[way] = self.fused.pop(way)
            for group in groups_of(fused):
                group.dense = frozenset(range(len(group.sizes)))
            agree()

    def path(self, of=lambda module: True):
        paths = [path for path, module in self.model.named_modules() if of(module)]
        return self.rng.choice(paths) if paths else None

    def numbers(self, *shape):
        torch.default_generator.manual_seed(self.rng.getrandbits(30))
        return torch.randn(shape, dtype=torch.float64)


# What changes between two comparisons, in all of the networks.


def other_numbers(trial):
    trial.base = trial.numbers(*trial.base.shape)


def other_batch(trial):
    trial.base = trial.numbers(2, trial.rng.randint(1, 4), *trial.base.shape[2:])


def other_mode(trial):
    path, mode = trial.rng.choice(["", trial.path()]), trial.rng.random() < 0.5
    how = trial.rng.choice(["train", "flag", "all"])
    for module in (network.get_submodule(path) for network in trial):
        if how == "train":
            module.train(mode)
        for one in {"train": (), "flag": (module,), "all": module.modules()}[how]:
            one.training = mode


def other_way(trial):
    turned = not trial.draw.root.turned
    for network in (trial.draw.root, *trial):
        network.turned = turned


def weights_written_to(trial):
    memory = {path: _memory.storage(p) for path, p in trial.model.named_parameters()}
    owners = collections.Counter(memory.values())  # no copy of a network keeps shared ones
    named = [path for path in memory if owners[memory[path]] == 1]
    path = trial.rng.choice(named) if named else None
    for network in trial if named else ():
        with torch.no_grad():
            network.get_parameter(path).mul_(0.9)


def weights_loaded(trial):
    assign = trial.rng.random() < 0.5
    state = {key: t * 0.5 + 0.1 if t.is_floating_point() else t
             for key, t in trial.model.state_dict().items()}  # fmt: skip
    for network in trial:
        network.load_state_dict(copy.deepcopy(state), assign=assign)


def weight_replaced(trial):
    path = trial.path(lambda module: isinstance(module, stacking.KINDS))
    for layer in (network.get_submodule(path) for network in trial if path):
        own = torch.flip(layer.weight.detach(), [0]) * 0.5
        layer.weight = nn.Parameter(own, layer.weight.requires_grad)


def weights_moved(trial):
    for parameter in (p for network in trial for p in network.parameters()):
        parameter.data = parameter.data.clone()


def frozen(trial):
    learns = trial.rng.random() < 0.3
    for network in trial:
        network.requires_grad_(learns)


def other_autograd(trial):
    kinds = [torch.no_grad, torch.enable_grad, torch.enable_grad, torch.inference_mode]
    trial.autograd = trial.rng.choice(kinds)


def copied(trial):
    trial.fused = {way: copy.deepcopy(fused) for way, fused in trial.fused.items()}


CHANGES = [other_numbers, other_batch, other_mode, other_way, weights_written_to]
CHANGES += [weights_loaded, weight_replaced, weights_moved, frozen, other_autograd, copied]
ELSEWHERE = other_numbers, other_batch, other_mode, other_way
BEFORE = [other_mode, other_way, weights_written_to, weights_loaded, frozen, other_numbers]


# What is compared.


@dataclasses.dataclass
class Outcome:
    """What became of one case."""

    status: str = "compared"  # or "raised", the original; or "uncopied"
    plans: dict = dataclasses.field(default_factory=dict)  # by how they were found
    rounds: dict = dataclasses.field(default_factory=dict)  # products that served a group
    compared: int = 0
    learned: bool = False  # whether gradients were compared
    cast: bool = False  # whether it was compared with float32
    stopped: list = dataclasses.field(default_factory=list)  # only dense parts would do
    reordered: set = dataclasses.field(default_factory=set)  # but for the order of axes
    lowered: str = ""  # "compared", or why it was refused
    stacked: int = 0


def check(seed):
    """Draw a network, fuse it, change it, compare: an Outcome. Raises Mismatch."""
    trial = Trial(seed)
    if trial.runs() is None:
        return Outcome("raised")
    if not can_be_copied(trial):
        return Outcome("uncopied")
    outcome = Outcome(plans=plans_of(trial, embed=seed % 3 == 0))
    check_lowered(trial, outcome, embed=seed % 3 == 0)
    if trial.rng.random() < 0.5:
        change = trial.rng.choice(BEFORE)
        change(trial)
        trial.elsewhere = change in ELSEWHERE
    for way, plan in outcome.plans.items():
        trial.fused[way] = attempt(f"apply, found by {way}", plan.apply)
        check_kept(trial.model, trial.fused[way])
    outcome.compared += trial.agree("as planned")
    if seed % 2:
        outcome.learned = check_gradients(trial)
    for _ in range(4):
        change = trial.rng.choice(CHANGES)
        change(trial)
        trial.elsewhere |= change in ELSEWHERE
        outcome.compared += trial.agree(change.__name__)
    outcome.stopped, outcome.reordered = [*trial.stopped], trial.reordered
    networks = {**trial.fused, **trial.stopped}
    outcome.rounds = {way: rounds_of(fused) for way, fused in networks.items()}
    if seed % 2 == 0:
        outcome.learned = check_gradients(trial)
    check_unfused(trial)
    if seed % 4 == 1:
        outcome.cast = check_cast(trial)
    return outcome


def can_be_copied(trial):
    """Whether a copy of the original does the same; no copy keeps memory that is shared."""
    copied = copy.deepcopy(trial.model)
    try:
        close("copied: tensor", attempt("copied", trial.run, copied), trial.runs(), 1e-12)
    except Mismatch:
        return False
    return True


def plans_of(trial, embed):
    """{"reading" and "running": a plan}.

    Without the first where torch.fx stops, without the second where a write through .data
    may come between siblings: no run sees it, nor does any call.
    """
    before, found = copy.deepcopy(trial.model.state_dict()), {}
    try:
        found["reading"] = hfusion.plan(trial.model, embed=embed)
    except Exception as error:
        told = isinstance(error, hfusion.FusionError)
        if not told or "cannot be traced" not in str(error):
            raise Mismatch(f"plan raises {type(error).__name__}: {error}") from error
    inputs = tuple(trial.draw.inputs(trial.base))
    if not trial.draw.hides_writes():
        found["running"] = attempt("plan", hfusion.plan, trial.model, inputs, embed=embed)
    same_state("planned", trial.model.state_dict(), before)
    return found


def check_kept(model, fused):
    """A fused network is what the network was: its class, its keys, its bits."""
    if type(fused).__name__ != type(model).__name__:
        raise Mismatch(f"a {type(model).__name__} became a {type(fused).__name__}")
    states = fused.state_dict(), model.state_dict()
    if hasattr(model, "graph"):  # a copied GraphModule has another order
        states = (dict(sorted(state.items())) for state in states)
    same_state("fused", *states)


def groups_of(network):
    members = [_members.member_of(module) for module in network.modules()]
    return {member.group for member in members if member}


def rounds_of(network):
    return sum(group.rounds for group in groups_of(network))


def gradients(network, trial):
    """Gradients by name, "" for the input; and which outputs require one."""
    base = trial.base.clone().requires_grad_()
    torch.default_generator.manual_seed(0)
    with torch.enable_grad():
        outputs = network(*trial.draw.inputs(base))
        require = [y.requires_grad for y in outputs]
        learned = [y for y in outputs if y.requires_grad]
        weights = [torch.arange(1, y.numel() + 1).reshape(y.shape) for y in learned]
        terms = [(y * w).sum() for y, w in zip(learned, weights, strict=True)]
        sum(terms, base.sum()).backward()
    named = {"": base, **dict(network.named_parameters(remove_duplicate=False))}
    found = {n: t.grad for n, t in named.items() if t.grad is not None}
    network.zero_grad()
    return found, require


def check_gradients(trial):
    """Whether the original has gradients; those of the fused come from the same layers."""
    before = copy.deepcopy(trial.model.state_dict())
    try:
        expected, require = gradients(trial.model, trial)
    except FAILS:
        return False
    finally:
        trial.model.zero_grad()
        trial.model.load_state_dict(before)
    for way, fused in trial.fused.items():
        what = f"gradient, found by {way}"
        actual, requires = attempt(what, gradients, fused, trial)
        fused.load_state_dict(before)
        if requires != require or actual.keys() != expected.keys():
            raise Mismatch(f"{what}: outputs require gradients: {requires}, not {require}")
        for name, grad in expected.items():
            close(
                f"{what} of {name or 'the input'}",
                [actual[name]],
                [grad],
                trial.bound / 1e4,
            )
    return True


def check_unfused(trial):
    """Separate layers compute what they did, but for where memory begins."""
    expected = trial.runs()
    for fused in trial.fused.values() if expected else ():
        if groups_of(fused):
            separate = attempt("unfuse", hfusion.unfuse, fused)
            if groups_of(separate):
                raise Mismatch("unfused layers are still in groups")
            actual = attempt("unfused", trial.run, separate)
            close("unfused: tensor", actual, expected, trial.bound / 100)


def check_cast(trial):
    """In float32 they are as near to the original in float64 as float32 can be."""
    exact, trial.autograd = trial.runs(), torch.no_grad
    single, base = copy.deepcopy(trial.model).float(), trial.base.float()
    with contextlib.suppress(*FAILS):
        expected, error = trial.call(single, base), 0
        for e, double in zip(expected, exact or (), strict=False):
            error = max(error, (e.double() - double.double()).abs().max())
        # Else a choice went another way, or a number was too large.
        if not exact or not error < 1e-4:
            return False
        like = [d.to(e.dtype) for d, e in zip(exact, expected, strict=False)]

        def call(fused):  # a copy, since a call may write to weights
            return trial.call(copy.deepcopy(fused), base)

        for way in [*trial.fused]:
            trial.fused[way].float()
            for wanted in (expected, like):
                if way in trial.fused:
                    trial.compare("cast", way, call, wanted, 1e-3)
        return True
    return False


# Lowered: one graph, whose stacked layers are relied on.


def check_lowered(trial, outcome, embed):
    """In eval mode: what the graph with stacked layers computes, and its gradients."""
    model = copy.deepcopy(trial.model).eval()
    once = trial.rng.choice([None, True, False])
    if "reading" not in outcome.plans:
        return
    plan = attempt("plan in eval mode", hfusion.plan, model, embed=embed)
    try:
        network = lowering.lower(plan, once)
    except hfusion.FusionError as error:
        outcome.lowered = str(error)
        return
    except Exception as error:
        raise Mismatch(f"lower raises {type(error).__name__}: {error}") from error
    outcome.lowered, outcome.stacked = "compared", len(stacked_of(network))
    other = trial.numbers(2, trial.rng.randint(1, 4), *trial.base.shape[2:])
    for base in (trial.base, other):
        try:
            expected = trial.call(copy.deepcopy(model), base)
        except FAILS:
            continue
        actual = attempt("lowered", trial.call, copy.deepcopy(network), base)
        close("lowered: tensor", actual, expected, trial.bound)
    check_lowered_gradients(trial, model, network)


def stacked_of(network):
    return {n: m for n, m in network.named_children() if isinstance(m, stacking.Stacked)}


def check_lowered_gradients(trial, model, network):
    names = collections.Counter(
        map(id, dict(model.named_parameters(remove_duplicate=False)).values())
    )
    try:
        expected, require = gradients(model, trial)
    except FAILS:
        return
    actual, requires = attempt("gradient, lowered", gradients, network, trial)
    if requires != require:
        raise Mismatch(f"lowered outputs require gradients: {requires}, not {require}")
    for path, stacked in stacked_of(network).items():
        own = {f"{path}.layer.{n}": p for n, p in stacked.layer.named_parameters()}
        parts = {key: actual.pop(key, torch.zeros_like(p)) for key, p in own.items()}
        _state.split_state(stacked, parts, f"{path}.")
        for key, grad in parts.items():
            name = key.removeprefix(f"{path}.")
            actual[name] = actual.get(name, 0) + grad
    for name, grad in expected.items():
        if not name or names[id(model.get_parameter(name))] == 1:
            what = f"gradient of {name or 'the input'}, lowered"
            close(
                what, [actual.get(name, torch.zeros_like(grad))], [grad], 10 * trial.bound
            )


# Many cases.


def failure(seed):
    """What is wrong with a case, in words, and the network; "" if nothing is."""
    try:
        check(seed)
    except Mismatch as error:
        return f"seed {seed}: {error}\n{Draw(seed).root}"
    return ""


class Tally:
    """Counts of what became of many cases."""

    def __init__(self):
        self.count, self.wrong = collections.Counter(), []

    def add(self, seed):
        try:
            outcome = check(seed)
        except Mismatch:
            self.wrong.append(seed)
            return
        count = self.count
        count["cases"] += 1
        count[outcome.status] += 1
        count["comparisons"] += outcome.compared
        count["gradients"] += outcome.learned
        count["cast"] += outcome.cast
        count["lowered"] += outcome.lowered == "compared"
        count["lowered with stacked layers"] += outcome.stacked > 0
        for way, plan in outcome.plans.items():
            count[f"planned by {way}"] += 1
            fused = [group for group in plan.groups if group.fused]
            count[f"{way}: groups"] += len(plan.groups)
            count[f"{way}: groups fused"] += len(fused)
            count[f"{way}: followed"] += sum(bool(g.followers) for g in fused)
            count[f"{way}: windows of several sizes"] += sum(
                g.window is not None for g in fused
            )
            count[f"{way}: networks fused"] += bool(fused)
            count[f"{way}: networks computed together"] += outcome.rounds.get(way, 0) > 0
            count[f"{way}: layout matters elsewhere"] += way in outcome.stopped
            count[f"{way}: order of axes seen"] += way in outcome.reordered
            count[f"{way}: rounds"] += outcome.rounds.get(way, 0)

    def __str__(self):
        return "\n".join(f"{count:8,} {name}" for name, count in self.count.items())


if __name__ == "__main__":
    with_one_thread()
    tally, (first, last) = Tally(), map(int, sys.argv[1:])
    for seed in range(first, last):
        known = len(tally.wrong)
        tally.add(seed)
        if len(tally.wrong) > known:
            print(failure(seed), end="\n\n", flush=True)
        if (seed - first) % 500 == 499 or seed == last - 1:
            print(f"seeds {first} to {seed}: {len(tally.wrong)} wrong, {tally.wrong[:20]}")
            print(tally, end="\n\n", flush=True)
