"""What does one more launch cost?

Chains of n kernels that do next to nothing: launched by the host; its time until it has
handed them over; and replayed as one CUDA graph. Chains of all lengths take turns in one
benchmark, so that a disturbance does not look like a length. On a CPU nothing is
launched, and a chain costs what dispatching its operators costs.
"""

from ..recorder import Benchmark
from . import chains

QUESTION = "What do n launches cost, and how much of it is the host's?"
ROUNDS = 40
CHAINS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def cases(device):
    return [{"operator": "abs", "way": way} for way in chains.WAYS]


def benchmark(device, operator, way):
    return Benchmark(**chains.chains(operator, way, CHAINS, device), calls=10)
