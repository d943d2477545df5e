"""What does one more launch cost?

n kernels that do next to nothing, one after the other: launched by the host, whose time
until it has handed them over is taken too, and replayed as one CUDA graph. On a CPU
nothing is launched, and the chain costs what dispatching an operator costs.
"""

from ..measure import graphed, host
from ..recording import Race
from . import rungs

QUESTION = "What do n launches cost, and how much of it is the host's?"
ROUNDS = 100
CHAINS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def cases(device):
    return [{"n": n} for n in CHAINS]


def race(device, n):
    chain, result = rungs.chain("abs", n, device)
    arms = {
        "eager": lambda: chain,
        "host": lambda: rungs.on_cuda(device, lambda: chain),
        "graph": lambda: rungs.on_cuda(device, graphed, chain),
    }
    return Race(arms, (result,), 0, watches={"host": host})
