"""Both steps of an Inception module in one launch, with a barrier: only ever compiled.

All programs do tiles of the first step, wait until every program has, and do tiles of the
second. That is safe only if all of them run at the same time, which a cooperative launch
ensures or refuses. It is here so that `compiled` can say what it would need. Nothing
launches it, and it has computed nothing.
"""

from .programs import _first, _jit, _second, constexpr, tl


@_jit
def both(
    x, weight, bias, y, r3, r5, pooled, w3, b3, w5, b5, wp, bp, reached,
    c_in, k1, k3, k5, c3, c5, kp, y_stride, height, wide, positions,
    BM: constexpr, BN: constexpr, BK: constexpr,
    WIDEN: constexpr, UNIT: constexpr, SPLITS: constexpr, DEPENDENT: constexpr,
):  # fmt: skip
    """`kernels._first`, a barrier, and `kernels._second`, on the grid of the larger."""
    _first(
        x, weight, bias, y, r3, r5, pooled, c_in, k1, c3, c5, y_stride,
        height, wide, positions, BM, BN, BK, WIDEN, UNIT, DEPENDENT,
    )  # fmt: skip
    tl.debug_barrier()  # all threads have written before one of them says so
    programs = tl.num_programs(0) * tl.num_programs(1)
    tl.atomic_add(reached, 1, sem="acq_rel")
    while tl.atomic_add(reached, 0, sem="acquire") < programs:
        pass
    tl.debug_barrier()
    _second(
        r3, w3, b3, r5, w5, b5, pooled, wp, bp, y,
        c3, k3, c5, k5, c_in, kp, k1, y_stride, height, wide, positions, None, None,
        BM, BN, BK, WIDEN, UNIT, SPLITS, DEPENDENT,
    )  # fmt: skip
