"""A module's branches on CUDA streams of their own."""

from functools import partial

import torch

from .guards import on_cuda
from .variants import TIMES, in_graph


def on_streams(folded, x):
    """A folded Inception module with each branch on a CUDA stream of its own."""
    streams = [torch.cuda.Stream() for _ in range(4)]

    def forward():
        main = torch.cuda.current_stream()
        parts = []
        for stream, branch in zip(streams, branches(folded), strict=True):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                parts.append(branch(x))
        for stream in streams:
            main.wait_stream(stream)
        return torch.cat(parts, dim=1)

    return forward


def in_parallel(folded, x, device, times=TIMES):
    """A variant: the branches on streams of their own, side by side in a CUDA graph."""
    return on_cuda(device, in_graph, partial(on_streams, folded, x), times)


def branches(folded):
    """The four branches of an Inception module whose norms are gone: functions of x."""

    def unit(module, x):
        return module.relu(module.conv(x))

    return (
        lambda x: unit(folded.b1, x),
        lambda x: unit(folded.b3, unit(folded.b3_reduce, x)),
        lambda x: unit(folded.b5, unit(folded.b5_reduce, x)),
        lambda x: unit(folded.pool_proj, folded.pool(x)),
    )
