"""The Triton kernels on a machine without a GPU: in Triton's interpreter, and compiled for one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]


def run(*arguments: str, **environment: str) -> str:
    """In a process of its own: Triton decides when it is imported whether it interprets."""
    result = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    return result.stdout


@pytest.mark.parametrize("checks", ["triton_checks.py", "triton_optimizer_checks.py"])
@pytest.mark.timeout(600)
def test_kernels_in_the_interpreter(checks: str) -> None:
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", str(ROOT))
    printed = run("-m", "pytest", *options, str(HERE / checks), TRITON_INTERPRET="1")
    assert " passed" in printed
    assert "skipped" not in printed


@pytest.mark.timeout(600)
def test_kernels_compile_for_a_gpu() -> None:
    """The interpreter takes what a compiler refuses; no spill, and loads of whole vectors."""
    printed = run(str(HERE / "compile_triton.py"), TRITON_INTERPRET="0")
    kernels = printed.splitlines()
    assert len(kernels) == 3
    for line in kernels:
        assert line.endswith(" spills 0"), line
    assert "update_kernel bf16: vector loads" in printed
