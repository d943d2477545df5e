"""Why a stacked Linear can be slower on a CPU: .venv/bin/python tools/benchmarks/passes.py

µs of CPU time, on one thread, of a product with one matrix [n, k] and with the same matrix
in three, six and twelve pieces, one after the other, for 1 to 24 rows of x. CPU time, since
what others do on the machine counts less in it; the lower quartile of many turns.

Intel's MKL computes few rows in passes of three: the time of one piece that does not fit
the second cache climbs a stair, at 4, 7, 10 and 13 rows, since each pass reads the whole
matrix from the third. Of a piece that fits, the second pass finds it in the second.
"""

import statistics
import sys
import time

import torch
import torch.nn.functional as F

PIECES = (1, 3, 6, 12)


def timed(variants, rounds=25, calls=5):
    """{name: lower quartile in µs of the thread's CPU time}, the variants taking turns."""
    found = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            variant()
            start = time.thread_time_ns()
            for _ in range(calls):
                variant()
            found[name].append((time.thread_time_ns() - start) / 1000 / calls)
    return {name: statistics.quantiles(us, n=4)[0] for name, us in found.items()}


def in_pieces(x, weight, pieces):
    parts = weight.chunk(pieces)
    return lambda: [F.linear(x, part) for part in parts]


def main(shapes=((2304, 768), (1536, 512), (768, 256)), dtype=torch.float32):
    torch.set_num_threads(1)
    for n, k in shapes:
        weight = torch.randn(n, k, dtype=dtype)
        size = weight.numel() * weight.itemsize / 2**20
        print(f"\n[{n}, {k}], {size:.2f} MiB, {dtype}: µs in 1, 3, 6, 12 pieces, 3 by 1")
        for rows in (*range(1, 18), 24):
            x = torch.randn(rows, k, dtype=dtype)
            us = timed({pieces: in_pieces(x, weight, pieces) for pieces in PIECES})
            print(f"{rows:4}", *(f"{us[p]:7.0f}" for p in PIECES), f"{us[3] / us[1]:7.2f}")


if __name__ == "__main__":
    with torch.no_grad():
        main(*(((tuple(map(int, sys.argv[1:3])),),) if sys.argv[1:] else ()))
