"""The reverse of stacking: one matrix cut across processes. torch.distributed, gloo.

    by rows, the outputs             by columns, the inputs

    [W_0]     [W_0 x]  process 0               [x_0]   W_0 x_0  process 0
    [W_1] x = [W_1 x]  process 1     [W_0 W_1] [x_1] =    +
                                                       W_1 x_1  process 1

    all of x in, part of y out       part of x in, a summand of y out

What is cut by rows and then by columns fits together, with one sum at the end. Shoeybi et
al. 2019 (Megatron-LM) call the first column-parallel, since their matrix is the transpose.
`run` starts the processes, and ends them whatever happens.

`_cuts` has the rows and columns of a process and the layers made of them, `_processes`
what starts and ends processes.
"""

from ..errors import WorkerError
from ._cuts import (
    columns,
    gated_mlp,
    gated_mlp_by_dtensor,
    gated_mlp_by_rows,
    projection,
    rows,
)
from ._processes import leaves, run

__all__ = ["WorkerError", "columns", "gated_mlp", "gated_mlp_by_dtensor"]
__all__ += ["gated_mlp_by_rows", "leaves", "projection", "rows", "run"]
