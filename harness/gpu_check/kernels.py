"""Part kernels: the tests marked `gpu`, with their log and JUnit report kept."""

import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from harness import child
from harness.cells.provenance import project_root
from harness.gpu_check.common import Deadline, PartResult

MARK = "mark.gpu"


def gpu_test_files(root: Path) -> list[Path]:
    """Test files that hold a test marked `gpu`.

    Only these are collected: others may import packages that this machine lacks.
    """
    files = sorted((root / "tests").rglob("test_*.py"))
    return [file for file in files if MARK in file.read_text(encoding="utf-8")]


def pytest_command(files: list[Path], junit: Path) -> list[str]:
    """The command; options of pyproject.toml are replaced, as its plugins may be absent."""
    return [
        *(*child.command("pytest"), "-m", "gpu", "-v", "-rs", "--tb=short"),
        *("-p", "no:cacheprovider", "--import-mode=importlib", f"--junitxml={junit}"),
        *("-o", "addopts=", "-o", "markers=gpu: needs a CUDA device"),
        *(str(file) for file in files),
    ]


def read_junit(path: Path) -> dict[str, Any]:
    """Counts of a JUnit report: tests, failures, errors, skipped, seconds; zeros when absent."""
    counts: dict[str, Any] = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    counts["seconds"] = 0.0
    if not path.is_file():
        return counts
    for suite in ElementTree.parse(path).getroot().iter("testsuite"):
        for name in ("tests", "failures", "errors", "skipped"):
            counts[name] += int(suite.get(name, 0))
        counts["seconds"] += float(suite.get("time", 0))
    return counts


def run_kernels(work: Path, deadline: Deadline) -> PartResult:
    """Run the tests; ok when at least one ran and none failed or was skipped for lack of CUDA."""
    root = project_root()
    junit, log = work / "junit.xml", work / "pytest.log"
    files = gpu_test_files(root)
    if not files:
        return PartResult("kernels", False, {"error": "no test is marked gpu"}, "No gpu tests.\n")
    with log.open("w") as stream:
        try:
            code: int | None = subprocess.run(
                pytest_command(files, junit),
                cwd=root,
                env={**child.environment(), "HF_HUB_OFFLINE": "1"},
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=deadline.remaining(),
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    counts = read_junit(junit)
    ran = counts["tests"] - counts["skipped"]
    ok = code == 0 and ran > 0
    lines = [
        "# Tests on the CUDA device\n",
        f"{ran} ran, {counts['failures']} failed, {counts['errors']} errors, "
        f"{counts['skipped']} skipped in {counts['seconds']:.0f} s"
        f"{' (stopped: out of time)' if code is None else ''}.\n",
    ]
    return PartResult("kernels", ok, {"exit_code": code, **counts}, "\n".join(lines))
