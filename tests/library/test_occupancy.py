"""occupancy.py against NVIDIA's own calculator, and against what NVIDIA has published."""

import random
import shutil
import subprocess
import sys

import pytest

from hfusion.kernels import occupancy
from hfusion.kernels.occupancy import H200, fitting, resident, spread

# NVIDIA's CUDA C++ Best Practices Guide, "Calculating Occupancy": at 37 registers, 12
# blocks of 128 threads reside, 75% of a multiprocessor's warps, and four of 320 threads,
# 63%. Its compute capability 7.0 has the registers and warps of 9.0.
PUBLISHED = [(37, 4, 12, 0.75), (37, 10, 4, 0.63)]


@pytest.mark.parametrize(("registers", "warps", "programs", "share"), PUBLISHED)
def test_what_nvidia_has_published(registers, warps, programs, share):
    assert resident(registers, 0, warps) == programs
    assert programs * warps / H200.warps == pytest.approx(share, abs=0.006)


# The header that Triton's wheel brings along is NVIDIA's occupancy calculator.
PROGRAM = r"""
#include <stdio.h>
#include <cuda_occupancy.h>
int main(void) {
    cudaOccDeviceProp device = {0};
    device.computeMajor = 9;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = 2048;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.sharedMemPerBlock = 48 << 10;
    device.sharedMemPerMultiprocessor = 228 << 10;
    device.sharedMemPerBlockOptin = 227 << 10;
    device.reservedSharedMemPerBlock = 1 << 10;
    device.numSms = 132;
    cudaOccDeviceState state = {0};
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    int registers, shared, warps;
    while (scanf("%d %d %d", &registers, &shared, &warps) == 3) {
        cudaOccFuncAttributes kernel = {0};
        kernel.maxThreadsPerBlock = 1024;
        kernel.numRegs = registers;
        kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        kernel.maxDynamicSharedSizeBytes = 227 << 10;
        kernel.numBlockBarriers = 1;
        cudaOccResult found = {0};
        int error = cudaOccMaxActiveBlocksPerMultiprocessor(
            &found, &device, &kernel, &state, 32 * warps, shared);
        printf("%d %d %d %d %d %d\n", error, found.activeBlocksPerMultiprocessor,
               found.blockLimitRegs, found.blockLimitSharedMem, found.blockLimitWarps,
               found.blockLimitBlocks);
    }
}
"""


@pytest.fixture(scope="module")
def calculator(tmp_path_factory):
    """NVIDIA's calculator: [(registers, shared bytes, warps)] -> its answers."""
    triton = pytest.importorskip("triton.backends.nvidia")
    if not (compiler := shutil.which("cc")):
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("calculator")
    (folder / "main.c").write_text(PROGRAM)
    headers = f"-I{triton.__path__[0]}/include"
    built = [compiler, "-w", headers, str(folder / "main.c"), "-o", str(folder / "main")]
    subprocess.run(built, check=True)

    def answers(kernels):
        asked = "\n".join(" ".join(map(str, kernel)) for kernel in kernels)
        done = subprocess.run([folder / "main"], input=asked, text=True,
                              capture_output=True, check=True)  # fmt: skip
        return [tuple(map(int, line.split())) for line in done.stdout.splitlines()]

    return answers


def test_nvidias_own_calculator_agrees(calculator):
    """Every number of registers and warps, and shared memory at random and at its ends."""
    draw = random.Random(9)
    kernels = [
        (registers, shared, warps)
        for registers in range(1, 256)
        for warps in range(1, 33)
        for shared in (0, 227 << 10, draw.randrange(227 << 10))
    ]
    for kernel, (error, programs, *limits) in zip(
        kernels, calculator(kernels), strict=True
    ):
        found = fitting(*kernel)
        assert error == 0
        assert [
            found[name] for name in ("registers", "shared memory", "warps", "programs")
        ] == (limits), kernel
        assert resident(*kernel) == programs


REFUSED = {
    "registers: expected an int from 1 to 255, got 256": (256, 0, 4),
    "registers: expected an int from 1 to 255, got 0": (0, 0, 4),
    "registers: expected an int from 1 to 255, got 64.0": (64.0, 0, 4),
    "shared_bytes: expected an int from 0 to 232448, got 232449": (64, 232449, 4),
    "warps: expected an int from 1 to 32, got 33": (64, 0, 33),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_no_kernel_can_need_is_refused(message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        fitting(*REFUSED[message])


def simulated(programs, resident):
    """The waves and what each multiprocessor ran: programs handed out one by one."""
    ran, waves = [0] * H200.multiprocessors, 0
    while programs:
        waves += 1
        for _ in range(resident):
            for each in range(len(ran)):
                if programs:
                    ran[each] += 1
                    programs -= 1
    return waves, ran


@pytest.mark.parametrize("held", [1, 2, 3, 6, 32])
def test_a_grid_spreads_as_programs_handed_out_one_by_one(held):
    for programs in (1, 40, 131, 132, 133, 150, 264, 265, 792, 793, 5000):
        waves, ran = simulated(programs, held)
        found = spread(programs, held)
        assert (found.programs, found.waves) == (programs, waves)
        assert (found.busiest, found.idle) == (max(ran), ran.count(0))
        assert found.share == sum(ran) / (max(ran) * len(ran))


@pytest.mark.parametrize(("programs", "held"), [(0, 1), (1, 0), (1.0, 1)])
def test_a_grid_of_nothing_is_refused(programs, held):
    with pytest.raises(ValueError, match="expected an int of at least 1, got"):
        spread(programs, held)


def test_the_limits_are_those_of_compute_capability_nine():
    """A typing error here moves every wave."""
    assert (H200.multiprocessors, H200.registers, H200.warps) == (132, 65_536, 64)
    assert (H200.shared_bytes, H200.most_shared_bytes) == (233_472, 232_448)
    assert (H200.programs, occupancy.THREADS) == (32, 32)
    # 32 banks of 4 bytes; a published 32,348 GB/s at 1.755 GHz of 144 multiprocessors
    assert H200.shared_rate == 32 * 4 == round(32_348 / 144 / 1.755)


def test_neither_occupancy_nor_the_table_imports_triton():
    says = "import sys; from hfusion import kernels; print('triton' in sys.modules, "
    says += "kernels.compiled.read()[0]['target'], kernels.occupancy.H200.name)"
    done = subprocess.run([sys.executable, "-c", says], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False sm_90 H200\n"
