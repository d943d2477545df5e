"""Compile the kernels for a GPU that is not there, and print how its code loads numbers.

A program of its own: Triton's interpreter, in which the tests run, has to be off.
"""

import collections
import json
import re

from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hfusion import kernels

TARGET = GPUTarget("cuda", 90, 32)


def loads(kernel, tile, dtype):
    """How a kernel loads: {bytes that a copy to shared memory carries: instructions},
    how many steps its buffers there hold, and which instruction multiplies.
    """
    rows, columns, depth, warps, stages = tile
    fixed = {"BM": rows, "BN": columns, "BK": depth, "WIDEN": False, "UNIT": 8}
    signature, constants, aligned = {}, {}, {}
    for place, name in enumerate(kernel.arg_names):
        if name in fixed:
            signature[name], constants[(place,)] = "constexpr", fixed[name]
        elif name in kernel.do_not_specialize:
            signature[name] = "i32"
        else:
            signature[name] = f"*{dtype}"
            aligned[(place,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    options = {"num_warps": warps, "num_stages": stages}
    asm = compile(source, target=TARGET, options=options).asm
    code = asm["ptx"]
    buffers = set(re.findall(r"local_alloc.*?memdesc<(\d+)x\d+x\d+x", asm["ttgir"]))
    multiplies = "wgmma" if "wgmma" in code else "mma.sync" if "mma.sync" in code else "fma"
    sizes = re.findall(
        r"cp\.async\.c[ag]\.shared\.global \[[^]]*\], \[[^]]*\], (\w+)", code
    )
    copies = collections.Counter(int(size, 0) for size in sizes)
    return dict(copies), sorted(map(int, buffers)), multiplies


def main():
    found = []
    for kernel in (kernels._first, kernels._second):
        name = kernel.__name__
        for tile in kernels.TILES:
            found.append((name, *tile, "fp16", *loads(kernel, tile, "fp16")))
        for dtype in ("fp32", "bf16"):
            tile = kernels.TILES[0]
            found.append((name, *tile, dtype, *loads(kernel, tile, dtype)))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
