"""The GPU check: `python3 -m harness.gpu_check --part kernels|memory|speed|...|all`.

Each part takes under eight minutes on a CUDA machine. Everything ends in one small archive,
`gefen_gpu_check_<part>.tar.gz`. Needs torch, transformers, accelerate, numpy, pandas, pyarrow,
PyYAML and pytest; neither hydra, datasets, wandb nor bitsandbytes.

Exit codes: 0 all well, 1 a part failed, 2 a mistake in the call, 3 no CUDA device.
"""

import argparse
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from harness.cells import provenance
from harness.errors import UserError, exit_code
from harness.gpu_check.common import Deadline, PartResult, write_archive

PARTS = ("kernels", "memory", "speed", "convergence")
NO_DEVICE = 3


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    default = os.environ.get("OUT") or str(provenance.project_root() / "runs" / "gpu_check")
    parser = argparse.ArgumentParser(prog="gpu_check", description="Check what needs a GPU.")
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    parser.add_argument("--output", type=Path, default=Path(default), help="folder of the archive")
    parser.add_argument(
        "--data",
        type=Path,
        help="text files or a prepared corpus (default: Python's standard library)",
    )
    return parser.parse_args(arguments)


def cuda_problem() -> str | None:
    """Why nothing can be measured here, in one sentence, or None."""
    try:
        import torch
    except ImportError:
        return "torch is not installed, so no CUDA device can be used and nothing was measured."
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device here, so nothing was measured."
    return None


def run_part(part: str, work: Path, data_path: Path | None) -> PartResult:
    """Run one part in its own, emptied folder; an unexpected error is a failed part."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    deadline = Deadline()
    try:
        return _runner(part, work, data_path, deadline)()
    except UserError:
        raise
    except Exception as error:
        (work / "error.txt").write_text(traceback.format_exc())
        message = f"{type(error).__name__}: {error}"
        return PartResult(part, False, {"error": message}, f"# {part} failed\n\n{message}\n")


def _runner(
    part: str, work: Path, data_path: Path | None, deadline: Deadline
) -> Callable[[], PartResult]:
    from harness.gpu_check import cells
    from harness.gpu_check.kernels import run_kernels
    from harness.gpu_check.speed import run_speed

    if part == "kernels":
        return lambda: run_kernels(work, deadline)
    if part == "speed":
        return lambda: run_speed(work, deadline, say)
    text = data_path or cells.standard_library_text(work / "text")
    study = cells.run_memory if part == "memory" else cells.run_convergence
    return lambda: study(work, text, deadline, say)


def check(parts: tuple[str, ...], name: str, output: Path, data_path: Path | None) -> bool:
    """Run `parts`; the archive is rewritten after each, so a cut leaves what was finished."""
    base = provenance.project_root() / "runs" / "gpu_check"
    archive = output / f"gefen_gpu_check_{name}.tar.gz"
    folders: list[Path] = []
    all_ok = True
    for part in parts:
        say(f"{part} ...")
        start, work = time.monotonic(), base / part
        result = run_part(part, work, data_path)
        seconds = time.monotonic() - start
        facts = provenance.collect(" ".join(sys.argv), "cuda", "", provenance.code_hash())
        result.facts |= {"seconds": seconds, "provenance": facts}
        result.write(work)
        folders.append(work)
        write_archive(archive, folders)
        say(result.markdown)
        say(f"{part}: {'ok' if result.ok else 'FAILED'} in {seconds:.0f} s")
        all_ok = all_ok and result.ok
    say(f"archive: {archive} ({archive.stat().st_size / 1e6:.2f} MB)")
    return all_ok


def main(arguments: list[str] | None = None) -> int:
    """Parse, refuse to run without a device, run, and return the exit code."""
    options = parse(arguments)
    problem = cuda_problem()
    if problem is not None:
        print(f"gpu_check: {problem}", file=sys.stderr)
        return NO_DEVICE
    parts = PARTS if options.part == "all" else (options.part,)

    def answer() -> int:
        if options.data is not None and not options.data.exists():
            raise UserError(f"--data {options.data} does not exist.")
        return 0 if check(parts, options.part, options.output, options.data) else 1

    return exit_code("gpu_check", answer)


if __name__ == "__main__":
    sys.exit(main())
