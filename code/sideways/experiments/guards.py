"""Unavailable, in place of what is raised for want of a device, a library or memory."""

import contextlib

import torch

from ..recorder import Unavailable


def need_cuda(device):
    """Unavailable anywhere else than on a CUDA device."""
    if device != "cuda":
        raise Unavailable("needs a CUDA device")


def on_cuda(device, make, *args):
    """`make(*args)` on a CUDA device, else Unavailable."""
    need_cuda(device)
    return make(*args)


def tried(call):
    """A call that went well once; if this build of torch cannot do it, Unavailable."""
    try:
        call()
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, RuntimeError) as error:
        raise Unavailable(str(error).partition("\n")[0]) from error
    return call


@contextlib.contextmanager
def what_it_lacks():
    """Whatever a compiler raises, as Unavailable: no C++, no memory on the chip, …"""
    try:
        yield
    except (torch.OutOfMemoryError, Unavailable):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise Unavailable(reason) from error
