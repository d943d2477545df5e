"""One layer made of several: `stack` makes it, `unstack` takes it apart.

`rules`     who may be stacked: tables, and the reason where a rule is broken
`stacked`   the stacked layer: `stack`, `unstack`, `split`
`windows`   a small window inside a larger one, so that unlike windows stack
`_state`    its state_dict, in the keys of the separate layers
`_memory`   weights side by side in one memory, for layers that stay separate
"""

from .rules import KINDS, POINTWISE, unstackable
from .stacked import Stacked, split, stack, stack_parameters, unstack
from .windows import Window

__all__ = ["KINDS", "POINTWISE", "Stacked", "Window", "split", "stack"]
__all__ += ["stack_parameters", "unstack", "unstackable"]
