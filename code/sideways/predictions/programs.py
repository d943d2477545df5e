"""A program as numbers: how many kernels it has, and what they multiply and move.

A program is a dict, so that it can go into the file.
"""

import torch

from hfusion.timing import eager

from ..arithmetic import Work
from ..experiments import variants

COUNTS = ["kernels", "convolutions", "norms", "others", "more", "small", "pools", "moved"]
INDEX = 8  # bytes of a pooling's index, of which it writes one for each number


def work(operators: list[eager.Operator], item_bytes: int, turned: bool = False) -> Work:
    """Operators of `eager.operators` as numbers: a dict.

    kernels: how many. convolutions, norms, others: operators of each kind; more: further
    kernels in them. small: kernels without a product; pools: how many of these pool; moved:
    their bytes. products: (positions, c_out, depth, bytes) of each convolution. turned:
    whether cuDNN turns input and output round inside, as in NCHW where the tensor cores
    want NHWC.

    >>> conv = torch.nn.Conv2d(3, 4, 1)
    >>> conv = eager.operators(conv, "float32", "NCHW", 1)
    >>> found = work(conv, item_bytes=4)
    >>> found["kernels"], found["more"], found["small"], found["products"]
    (2, 1, 1, [[784, 4, 3, 22016]])
    """
    found: Work = dict.fromkeys(COUNTS, 0) | {"products": []}
    for each in operators:
        found["kernels"] += len(each.kernels)
        found["more"] += len(each.kernels) - 1
        found[_what(each)] += 1
        through = (each.read + each.written) * item_bytes
        if not each.product:
            pools = "pool" in each.kernels
            found["small"] += len(each.kernels)
            found["pools"] += pools
            found["moved"] += through + pools * each.written * INDEX
            continue
        found["products"].append([*each.product, through])
        copies = each.kernels.count("copy")
        biases = len(each.kernels) - 1 - copies
        found["small"] += copies + biases + 2 * turned
        numbers = 2 * each.written * biases + 2 * each.read * copies
        found["moved"] += numbers * item_bytes + 2 * through * turned
    return found


def _what(operator):
    """Which of COUNTS an operator is one of."""
    if operator.product:
        return "convolutions"
    return "norms" if operator.name == "native_batch_norm" else "others"


def of(nets, parameters, image, splits=0):
    """{name: work} of networks; those that stack have so many splits, for the host."""
    dtype, layout, batch = (parameters[name] for name in ("dtype", "layout", "batch"))
    turned = layout == "NCHW" and dtype != "float32"
    found = {}
    for name, net in nets.items():
        operators = eager.operators(net, dtype, layout, batch, image)
        found[name] = work(operators, item_bytes(dtype), turned)
        if name in (variants.STACKED, variants.HOISTED, variants.ONE_CALL):
            found[name]["others"] += splits
    return found


def item_bytes(dtype):
    """How many bytes a number has."""
    return getattr(torch, dtype).itemsize


def more(program, **numbers):
    """A program with more of some things in it."""
    return program | {name: program[name] + number for name, number in numbers.items()}


def total(programs):
    """Several programs, one after the other."""
    first, *others = programs
    for program in others:
        first = more(first, **program)
    return first


def without(whole, parts):
    """A program less some that are in it."""
    rest = {k: v - sum(p[k] for p in parts) for k, v in whole.items() if k != "products"}
    rest["products"] = list(whole["products"])
    for part in parts:
        for product in part["products"]:
            rest["products"].remove(product)
    return rest
