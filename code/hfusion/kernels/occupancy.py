"""How many programs a multiprocessor holds at a time, and how many waves a grid takes.

A program (CUDA: a thread block) runs on one multiprocessor, and stays there until it ends.
How many fit side by side follows from what a compiled kernel needs and from what a
multiprocessor has. No device is asked. NVIDIA's occupancy calculator, the header
cuda_occupancy.h, computes the same, and a test compares the two.
"""

import dataclasses

from ..errors import FusionError, check_int

THREADS = 32  # of a warp


@dataclasses.dataclass(frozen=True)
class Device:
    """What a GPU has, and in which pieces it is handed out.

    Attributes
    ----------
    name : str
    multiprocessors : int
    registers : int
        How many one multiprocessor has, of 32 bits each; shared_bytes, warps and programs
        are those of one multiprocessor too.
    parts : int
        How many a multiprocessor has; a warp lives in one of them, with its registers.
    register_unit, shared_unit : int
        A warp gets a multiple of register_unit registers; a program gets a multiple of
        shared_unit bytes.
    shared_reserved : int
        What CUDA takes of each program, in bytes.
    shared_rate : int
        Bytes that a multiprocessor's shared memory delivers per cycle.
    """

    name: str
    multiprocessors: int
    registers: int = 65_536
    shared_bytes: int = 228 * 1024
    most_shared_bytes: int = 227 * 1024  # of one program, what CUDA takes not counted
    warps: int = 64
    most_warps: int = 32  # of one program
    programs: int = 32
    parts: int = 4
    register_unit: int = 256
    shared_unit: int = 128
    shared_reserved: int = 1024
    shared_rate: int = 128


# Compute capability 9.0. In cuda_occupancy.h: programs, shared memory, parts, and the units
# in which all is handed out. Registers and warps it asks of the device; they are as many as
# in its predecessors. An H100 SXM has as many multiprocessors as an H200. Shared memory has
# 32 banks of 4 bytes.
H200 = Device("H200", multiprocessors=132)


def fitting(
    registers: int, shared_bytes: int, warps: int, device: Device = H200
) -> dict[str, int]:
    """How many programs of a kernel fit on one multiprocessor, by each of its resources.

    Parameters
    ----------
    registers : int
        Of one thread, from 1 to 255.
    shared_bytes, warps : int
        Of one program.
    device : Device
        Where it runs.

    Returns
    -------
    dict
        {resource: programs}. The least of them is how many reside there.

    Raises
    ------
    FusionError
        For a number that no kernel can have.

    Examples
    --------
    80 registers, 32 KiB and 4 warps, by hand: a warp takes 32 · 80 = 2560 registers, a
    multiple of 256. Each of four parts has 16384, which is 6 warps, and 24 in all: 6
    programs. In shared memory a program takes 32 + 1 KiB, and 228 KiB hold 6.

    >>> fitting(80, 32 * 1024, 4)
    {'registers': 6, 'shared memory': 6, 'warps': 16, 'programs': 32}
    """
    for name, value, least, most in (
        ("registers", registers, 1, 255),
        ("shared_bytes", shared_bytes, 0, device.most_shared_bytes),
        ("warps", warps, 1, device.most_warps),
    ):
        if not isinstance(value, int) or not least <= value <= most:
            raise FusionError(
                f"{name}: expected an int from {least} to {most}, got {value!r}"
            )
    a_warp = _up(registers * THREADS, device.register_unit)
    in_a_part = device.registers // device.parts // a_warp
    a_program = _up(shared_bytes + device.shared_reserved, device.shared_unit)
    return {
        "registers": in_a_part * device.parts // warps,
        "shared memory": device.shared_bytes // a_program,
        "warps": device.warps // warps,
        "programs": device.programs,
    }


def resident(registers: int, shared_bytes: int, warps: int, device: Device = H200) -> int:
    """How many programs of a kernel reside on one multiprocessor: the least of `fitting`.

    Parameters
    ----------
    registers, shared_bytes, warps : int
        As for `fitting`, which also says what is refused.
    device : Device
        Where it runs.

    Returns
    -------
    int

    Examples
    --------
    >>> resident(80, 32 * 1024, 4)
    6
    """
    return min(fitting(registers, shared_bytes, warps, device).values())


@dataclasses.dataclass(frozen=True)
class Spread:
    """A grid on a device.

    Attributes
    ----------
    programs : int
        Of the whole grid.
    waves : int
        How often the device is filled, the last time perhaps not quite.
    busiest : int
        The most programs that one multiprocessor runs, if each gets the next where it has
        room and all take equally long.
    idle : int
        Multiprocessors that never get a program.
    share : float
        Of the device's time, until the busiest multiprocessor is done, the part that is
        spent on programs.
    """

    programs: int
    waves: int
    busiest: int
    idle: int
    share: float


def spread(programs: int, resident: int, device: Device = H200) -> Spread:
    """How a grid of so many programs spreads over a device.

    Parameters
    ----------
    programs : int
        Of the grid.
    resident : int
        How many of them a multiprocessor holds.
    device : Device
        Where it runs.

    Returns
    -------
    Spread

    Raises
    ------
    FusionError
        For a number that is no int above 0.

    Examples
    --------
    150 programs on 132 multiprocessors, six fitting on each: one wave, in which 18 have two
    and the others one. That is 150 of 2 · 132 places.

    >>> spread(150, 6)
    Spread(programs=150, waves=1, busiest=2, idle=0, share=0.5681818181818182)
    >>> spread(40, 6).idle
    92
    """
    for name, value in (("programs", programs), ("resident", resident)):
        check_int(name, value, least=1)
    each = device.multiprocessors
    waves, busiest = -(-programs // (each * resident)), -(-programs // each)
    idle, share = max(0, each - programs), programs / (busiest * each)
    return Spread(programs, waves, busiest, idle, share)


def _up(number: int, unit: int) -> int:
    """The next multiple of `unit`."""
    return -(-number // unit) * unit
