"""Compile the Triton kernels for a GPU that need not be there; one line about each of them."""

import re
import subprocess
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from gefen.updates.device_table import TILE_COLUMNS, TILE_ROWS
from gefen.updates.device_tiles import WIDTH
from gefen.updates.triton_kernels import update_kernel
from gefen.updates.triton_sums import sums_kernel

TARGET = GPUTarget("cuda", 90, 32)
WARPS = 8
POINTERS = {
    **dict.fromkeys(("tensors", "pointers", "matrices"), "*i64"),
    **dict.fromkeys(("starts", "guesses", "keys", "strip_of_program", "counters"), "*i32"),
    **dict.fromkeys(("numbers", "factors", "means", "levels"), "*fp32"),
    **dict.fromkeys(("scratch", "row_sums", "column_sums"), "*fp64"),
    "cell_levels": "*u8",
}


def compiled(kernel: triton.JITFunction, constants: dict[str, object]) -> CompiledKernel:
    names = kernel.arg_names
    types = {name: POINTERS.get(name, "i32") for name in names}
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    aligned = {
        (number,): [["tt.divisibility", 16]]
        for number, name in enumerate(names)
        if signature[name].startswith("*")
    }
    values = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
    return triton.compile(source, target=TARGET, options={"num_warps": WARPS})


def report(name: str, kernel: CompiledKernel) -> None:
    """Vector loads, and bytes of stack and local memory: what did not fit into registers."""
    vectors = len(re.findall(r"ld\.global\S*\.v4", kernel.asm["ptx"]))
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    spilled = sum(int(count) for count in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))
    registers = re.findall(r"REG:(\d+)", usage)
    loads = "vector loads" if vectors else "no vector load"
    print(f"{name}: {loads}, registers {' '.join(registers)}, spills {spilled}")


def main() -> None:
    update = {"FACTORED": True, "BITS": 8, "CELLS": 512, "CHUNKS": 64, "WIDTH": WIDTH}
    update |= {"SCALE_SEGMENTS": 4, "BLOCK_SEGMENTS": 0, "KINDS": 3}
    sums = {"TILE_ROWS": TILE_ROWS, "TILE_COLUMNS": TILE_COLUMNS, "ADVANCE": True, "KINDS": 1}
    report("update_kernel bf16", compiled(update_kernel, update | {"DTYPE": tl.bfloat16}))
    report("update_kernel fp32", compiled(update_kernel, update | {"DTYPE": tl.float32}))
    report("sums_kernel bf16", compiled(sums_kernel, sums | {"DTYPE": tl.bfloat16}))


if __name__ == "__main__":
    main()
