"""What operators cost before anybody runs them: launches, FLOPs, bytes. Pure functions.

A kernel cannot be faster than its arithmetic at the machine's rate, nor than its data at
the machine's bandwidth, nor than an empty kernel: the largest of the three is its time
(Williams, Waterman and Patterson 2009, the roofline). A program of several kernels cannot
be faster than the host launches them. No device is asked here; the machine's ceilings
come from a record.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One launch: how many FLOPs it computes, how many bytes it reads and writes."""

    flops: int
    bytes: int

    def intensity(self):
        """FLOPs for each byte."""
        return self.flops / self.bytes


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """What one machine can do at most, in one dtype: taken from a record."""

    flops_per_s: float
    bytes_per_s: float
    launch_s: float  # what the host needs to launch one operator
    kernel_s: float  # what the device needs for a kernel that does nothing
    overlaps: bool  # whether host and device work at the same time, as with a GPU


def product(c_out, c_in, positions, item_bytes, bias=True):
    """A 1×1 convolution: [c_out, c_in] times [c_in, positions], and a bias.

    positions: pixels of all images together. Each input is read once, the output
    written once.

    >>> product(64, 192, 28 * 28, 4)
    Kernel(flops=19317760, bytes=852224)
    """
    flops = 2 * c_out * c_in * positions + bias * c_out * positions
    numbers = c_out * c_in + bias * c_out + (c_in + c_out) * positions
    return Kernel(flops, numbers * item_bytes)


def copy(channels, positions, item_bytes):
    """A branch copied to a place of its own: each number read and written.

    >>> copy(64, 28 * 28, 4)
    Kernel(flops=0, bytes=401408)
    """
    return Kernel(0, 2 * channels * positions * item_bytes)


def separate(sizes, c_in, positions, item_bytes):
    """The kernels of siblings, one after the other: each reads the input anew."""
    return [product(size, c_in, positions, item_bytes) for size in sizes]


def stacked(sizes, c_in, positions, item_bytes, copies=False):
    """The kernel of the stacked layer, and with `copies` those of its consumers."""
    kernels = [product(sum(sizes), c_in, positions, item_bytes)]
    return kernels + [copy(size, positions, item_bytes) for size in sizes if copies]


def device_s(kernels, ceilings):
    """How long the device works at least, in seconds."""
    return sum(
        max(
            kernel.flops / ceilings.flops_per_s,
            kernel.bytes / ceilings.bytes_per_s,
            ceilings.kernel_s,
        )
        for kernel in kernels
    )


def seconds(kernels, ceilings, graph=False):
    """How long a program takes at least, called again and again.

    Eager on a GPU the host launches while the device works, and the slower of the two
    decides. In a CUDA graph the host launches once, so the device decides. On a CPU the
    host does both, one after the other.
    """
    device = device_s(kernels, ceilings)
    host = len(kernels) * ceilings.launch_s
    if graph:
        return device
    return max(host, device) if ceilings.overlaps else host + device


def gain(before, after, ceilings, graph=False):
    """How many times faster `after` is than `before`, by this model; above 1 it wins."""
    return seconds(before, ceilings, graph) / seconds(after, ceilings, graph)
