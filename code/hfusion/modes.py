"""Training flags: which of them a graph depends on, and who else switches them. torch.nn.

model.eval() sets a flag, `training`, in every module. A layer of torch's own looks at its
flag when it is called. A forward that looks at one itself is followed with the flag as it
is, and the graph does not know that there was one:

    F.dropout(x, 0.5, self.training)   ──trace──►   dropout(x, 0.5, True)

So it is noted which flags forward looks at. What else a train() of somebody's own does,
such as swapping modules, cannot be known, and is refused.
"""

import contextlib
import inspect

from torch import nn

from .layers import FusionError

# What decides what train() does: where a class has its own, or an instance.
_METHODS = ("train", "eval", "children", "named_children")
_OWN = (*_METHODS, "training", "__setattr__", "__getattribute__")


def word(flags):
    """The mode of a network with these flags.

    >>> word([True, True]), word([False]), word([True, False])
    ('training', 'eval', 'a mixed')
    """
    return {(True,): "training", (False,): "eval"}.get(tuple(set(flags)), "a mixed")


def refuse_own(modules, called):
    """Raise FusionError for modules that switch modes in a way of their own.

    modules: all of a model, by path. called: the paths of those that the graph calls
    whole; what their classes do is still done. A method that was put on an instance may
    be about any module, and a copy would have the same.
    """
    for path, module in modules.items():
        steps = path.split(".")
        whole = any(".".join(steps[: end + 1]) in called for end in range(len(steps)))
        put = {name: vars(module)[name] for name in _METHODS if name in vars(module)}
        own = [name for name, method in put.items() if not hasattr(method, "keeps")]
        own += [name for name in _OWN if not whole and _is_own(type(module), name)]
        if own:
            what = own[0] if own[0] == "training" else f"{own[0]}()"
            raise FusionError(
                f"{path or 'model'} has a {what} of its own, and a graph would not do what "
                "it does; nn.Module's fits. To stay in one mode: switch the model to it, "
                "and give torch.fx.symbolic_trace(model)"
            )


def _is_own(kind, name):
    found = inspect.getattr_static(kind, name, None)
    home = getattr(found, "__module__", None) or ""
    known = home.startswith(("torch.nn.modules.", f"{__package__}."))
    return not known and found is not inspect.getattr_static(nn.Module, name, None)


@contextlib.contextmanager
def noted():
    """Meanwhile it is noted at whose flags somebody looks: {id: module}. None may be set.

    >>> layer = nn.Linear(2, 2)
    >>> with noted() as looked_at:
    ...     layer.training, nn.ReLU().inplace
    (True, False)
    >>> list(looked_at.values()) == [layer]
    True
    """
    looked_at = {}

    def look(module):
        if "training" not in vars(module):
            raise AttributeError("training")
        looked_at[id(module)] = module
        return vars(module)["training"]

    def put(module, flag):
        if "training" in vars(module):  # else it is being made
            raise ValueError("forward sets a training flag")
        vars(module)["training"] = flag

    nn.Module.training = property(look, put)  # goes before what is in an instance
    try:
        yield looked_at
    finally:
        del nn.Module.training
