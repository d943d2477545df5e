"""What words on the command line stand for: a model by its name, an input by its shape."""

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from .errors import FusionError
from .finding._tracing import stopped_at


def load(name: str) -> nn.Module:
    """The model that a name stands for: "torchvision.models:resnet50", "my/file.py:Net".

    What stands after the colon is an nn.Module, or is called without arguments to make
    one. Raises FusionError.
    """
    module_name, _, attribute = name.rpartition(":")
    if not module_name or not attribute:
        raise FusionError(
            "model: expected package.module:factory or file.py:factory, got "
            f"{name!r}; for example {_completed(name.strip(':'))}"
        )
    module = _imported(module_name)
    found: Any = module
    for step in attribute.split("."):
        try:
            found = getattr(found, step)
        except AttributeError as error:
            lacks = f"{module_name} has no {attribute!r}{_has(module, step)}"
            raise FusionError(f"model: {lacks}") from error
    model = found if isinstance(found, nn.Module) else _called(found, name)
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise FusionError(f"model: expected an nn.Module; {name} returns type {kind}")
    return model


def example(text: str) -> torch.Tensor:
    """An input of this shape: "1,3,224,224" of float32, "2,7:int64" of another dtype.

    Random numbers, the same each time; integers are 0 or 1, so that they are tokens of
    nearly any vocabulary. Raises FusionError.

    >>> example("2,3:int64").shape, example("4").dtype
    (torch.Size([2, 3]), torch.float32)
    """
    sizes, colon, name = text.partition(":")
    given = sizes.split(",") if sizes else []  # ":int64" has no axis
    dtype: Any = getattr(torch, name if colon else "float32", None)
    real = isinstance(dtype, torch.dtype) and not dtype.is_complex
    if not text or not real or not all(size.isdecimal() for size in given):
        raise FusionError(
            "expected sizes and perhaps a dtype, like 1,3,224,224 or 2,7:int64, got "
            f"{text!r}"
        )
    chance, shape = torch.Generator().manual_seed(0), [int(size) for size in given]
    if dtype.is_floating_point:
        return torch.randn(shape, generator=chance).to(dtype)
    return torch.randint(2, shape, generator=chance).to(dtype)


def _completed(name: str) -> str:
    """What somebody may have meant who gave no factory."""
    module, dot, last = name.rpartition(".")
    if not name or not dot or last == "py":
        return f"{name or 'file.py'}:factory"
    return f"{module}:{last}"


def _has(module: ModuleType, name: str) -> str:
    """What a module has instead of this name."""
    made = {known: value for known, value in vars(module).items() if callable(value)}
    here = [n for n, v in made.items() if getattr(v, "__module__", "") == module.__name__]
    return near(name, made) or (f"; it has {', '.join(here[:8])}" if here else "")


def _imported(name: str) -> ModuleType:
    """The module of a dotted name or of a file."""
    path = Path(name).resolve() if name.endswith(".py") else None
    if path and not path.is_file():
        raise FusionError(f"model: there is no file {name} in {Path.cwd()}")
    dotted = _dotted(path) if path else name
    try:
        module = importlib.import_module(dotted)
    except Exception as error:  # whatever somebody else's code raises
        missing = isinstance(error, ModuleNotFoundError) and error.name
        if not missing or not f"{dotted}.".startswith(f"{missing}."):
            raise FusionError(_blamed(name, "imported", error)) from error
        raise FusionError(
            f"model: there is no module {missing!r} in {Path.cwd()} or among the packages "
            f"of {sys.executable}; for a file that is elsewhere: path/to/file.py:factory"
        ) from error
    if path and Path(getattr(module, "__file__", None) or "").resolve() != path:
        raise FusionError(f"model: Python has another module {dotted}; rename {name}")
    return module


def _dotted(path: Path) -> str:
    """The name under which a file is imported; its folder, or its package's, goes first."""
    names, folder = [path.stem], path.parent
    while (folder / "__init__.py").exists():
        names, folder = [folder.name, *names], folder.parent
    sys.path.insert(0, str(folder))
    return ".".join(names)


def _called(factory: object, name: str) -> object:
    """What a factory returns."""
    if not callable(factory):
        kind = type(factory).__name__
        raise FusionError(
            f"model: expected an nn.Module or a factory of one; {name} has type {kind}"
        )
    if wanted := _wanted(factory):
        raise FusionError(
            f"model: {name} needs {', '.join(wanted)}; expected a factory without "
            "arguments, such as a function of yours that calls it"
        )
    try:
        return factory()
    except BrokenPipeError:  # of what it prints
        raise
    except Exception as error:
        raise FusionError(_blamed(name, "made", error)) from error


def _wanted(factory: Callable) -> list[str]:
    """The arguments without which a factory cannot be called."""
    try:
        known = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # builtins tell nothing
        return []
    return [
        parameter.name
        for parameter in known
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]


def _blamed(name: str, done: str, error: Exception) -> str:
    """Somebody else's error, with its line."""
    other = "operator torchvision::" in str(error)
    hint = "; this torchvision was built for another torch" if other else ""
    where = stopped_at(error).strip()
    said = f"{type(error).__name__}: {error}" + (f" ({where})" if where else "")
    return f"{name} cannot be {done}: {said}{hint}"


def near(word: str, known: Iterable[str]) -> str:
    """A question, where one of the known words is close.

    >>> near("plna", ("plan", "record"))
    ' (did you mean plan?)'
    """
    close = difflib.get_close_matches(word, known, 1)
    return f" (did you mean {close[0]}?)" if close else ""
