"""A whole network: plan which siblings to fuse, fuse them, undo it.

`planning`    plan, print, apply and undo: `plan`, `FusionPlan`, `fuse`, `unfuse`
`siblings`    which layers are siblings, and the rules that refuse some
`judging`     whether fusing is faster on this device: `faster`
`lowering`    a plan as one graph, for exporters and compilers: `lower`
`_table`      a plan as a printed table
`_variants`   what `judging` times: a group's layers, separate and fused

What a fused model does at a call:

`_members`    each layer asks its group first
`_group`      the first call computes for all, the others take their parts
`_checks`     what must still be as it was, asked at every call
`_packing`    the weights, side by side in one memory
`_gate`       weights do not move while another thread computes with them
`_followers`  one activation for all members
`_operators`  the same for torch.compile
"""

from .judging import Judge, faster
from .lowering import lower
from .planning import FusionPlan, fuse, plan, unfuse
from .siblings import Group

__all__ = ["FusionPlan", "Group", "Judge", "faster", "fuse", "lower", "plan", "unfuse"]
