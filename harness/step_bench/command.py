"""gefen-step: how long an optimizer step takes, beside the time that its bytes allow.

Times Gefen and other optimizers on synthetic gradients with the exact tensor shapes of a model.
Each of several fresh processes lets all of them take turns, step by step, and measures the copy
bandwidth of the same machine at the same time. What has to be compiled is compiled before.
"""

import argparse
import shlex
import subprocess
import sys
import textwrap
import threading
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from harness import child
from harness.cells import provenance
from harness.errors import UserError, exit_code
from harness.step_bench import plan
from harness.step_bench.document import Document

PRECISION_NAMES = {"fp32": "fp32", "bf16": "bf16_pure"}
PROCESSES = 5
STEPS = 20
EPILOG = """\
examples:
  gefen-step                                           everything, on the GPU if there is one
  gefen-step --model gpt2_3m --optimizer gefen,adamw_fused --processes 2     a first look
  gefen-step --model llama3_8b --dtype bf16 --optimizer gefen,adamw_fused
  gefen-step --device cpu --threads 4 --output runs/step_bench_4_threads

{optimizers}
  Each is an optimizer of configs/optimizer with options of its own, see
  configs/step_bench/default.yaml. "all" leaves out {apart}.
{models}
  Those that fit the free memory whole, and the largest cut to as many whole layers as fit with
  all its optimizers, which the output says. A model that is named is cut in the same way.

Columns: time of a step (median over processes, p10 and p90 over all steps); its ratio to
{reference} with the 95 % interval over processes; bytes that a step must move for each parameter
(counted); the time these bytes take at the measured copy bandwidth as a share of the step's time;
the first step, which creates the state; building (compilation), in the process that built most;
memory beyond what the step leaves allocated, later steps and the first.

Written below --output: step_bench.json, rewritten after every process, with all raw times and
where they come from; processes/, a log for each; and, by reports.figures.steps, roofline.png, .svg,
step_bench.csv and step_bench.md. Exit codes: 0 done, 1 a process failed, 2 a mistake, 130 Ctrl-C.
"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    chosen = plan.defaults()
    models = "; ".join(f"on {d} {', '.join(names)}" for d, names in chosen["models"].items())
    epilog = EPILOG.format(
        optimizers=folded(f"optimizers: {', '.join((plan.ALL, *plan.known()))}"),
        apart=", ".join(chosen["only_when_named"]),
        models=folded(f"models: files of configs/model; unless named, {models}"),
        reference=chosen["reference"],
    )
    parser = argparse.ArgumentParser(
        prog="gefen-step",
        description=__doc__,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", nargs="+", metavar="NAME", help="models of configs/model")
    add("--optimizer", nargs="+", metavar="NAME", default=[plan.ALL], help="default: all")
    add("--dtype", nargs="+", metavar="TYPE", help="of parameters and gradients: fp32, bf16")
    add("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    add("--steps", type=int, default=STEPS, help="timed steps a process (%(default)s)")
    add("--warmup", type=int, default=10, help="steps before them (%(default)s)")
    add("--processes", type=int, default=PROCESSES, help="%(default)s; intervals take 2 or more")
    add("--threads", type=int, help="CPU threads (default: torch's)")
    add("--timeout", type=float, default=7200, help="seconds a process may take (%(default)g)")
    add("--output", type=Path, default=Path("runs/step_bench"), help="folder (%(default)s)")
    return parser.parse_args(arguments)


def folded(text: str) -> str:
    """A paragraph of the help, its later lines further in."""
    return textwrap.fill(text, 98, subsequent_indent="  ", break_on_hyphens=False)


def words(flag: str, given: Sequence[str] | None) -> list[str] | None:
    """Distinct names separated by blanks or commas; None where the flag was not given.

    Raises UserError for a flag without a name.
    """
    if given is None:
        return None
    found = list(dict.fromkeys(word for part in given for word in part.split(",") if word))
    if not found:
        raise UserError(f"{flag} needs a name; leave it out for the default.")
    return found


def check(options: argparse.Namespace) -> tuple[list[plan.Candidate], list[str] | None]:
    """The chosen candidates and precisions. Raises UserError before torch is imported."""
    for key, least in (("steps", 1), ("warmup", 0), ("processes", 1), ("threads", 1)):
        value = getattr(options, key)
        if value is not None and value < least:
            raise UserError(f"--{key}={value} is too small; the least allowed is {least}.")
    if not 0 < options.timeout <= threading.TIMEOUT_MAX:
        raise UserError(
            f"--timeout={options.timeout:g} is not allowed; it must be a number of seconds above 0."
        )
    chosen = plan.choose(words("--optimizer", options.optimizer) or [])
    types = words("--dtype", options.dtype)
    for name in types or ():
        if name not in PRECISION_NAMES:
            allowed = ", ".join(PRECISION_NAMES)
            raise UserError(f"--dtype has {name!r}; allowed: {allowed}.")
    return chosen, None if types is None else [PRECISION_NAMES[name] for name in types]


def device_of(wanted: str | None) -> str:
    """The device to use. Raises UserError for a CUDA device that is not there."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda is not possible here: torch sees no CUDA device.")
    return wanted or ("cuda" if torch.cuda.is_available() else "cpu")


def run(options: argparse.Namespace, command: str) -> int:
    """Plan, measure, write, print; the exit code."""
    chosen, precisions = check(options)
    device = device_of(options.device)
    free = plan.free_bytes(device)
    precisions = precisions or plan.defaults()["precisions"][device]
    conditions, said = plan.plan(words("--model", options.model), precisions, chosen, device, free)
    if not conditions:
        raise UserError(f"Nothing can be timed: {' '.join(said)}")
    facts = provenance.collect(command, device, "", provenance.code_hash())
    document = Document(conditions, chosen, said, facts, vars(options), device)
    for sentence in said:
        print(sentence)
    failed = measure(document, options)
    print(document.text())
    path = document.write(options.output)
    print(f"Written: {path}")
    draw(path)
    return 1 if failed else 0


def measure(document: Document, options: argparse.Namespace) -> int:
    """Run every process, writing the document after each; the number of those that failed.

    Processes go round all conditions before any has its next, so a cut leaves all of them.
    """
    rounds = [(n, c) for n in range(options.processes) for c in document.conditions]
    folder: Path = options.output / "processes"
    folder.mkdir(parents=True, exist_ok=True)
    failed = 0
    shape = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=float(len(rounds)), bar_format=shape, mininterval=0.5) as bar:
        for index, (number, condition) in enumerate(rounds):
            label = f"{condition.model}_{condition.precision}"
            bar.set_description(f"{label}, process {number + 1} of {options.processes}")

            def progress(share: float, start: int = index) -> None:
                bar.update(max(0.0, start + share - bar.n))

            error = document.measure(condition, folder / f"{label}_{number}", progress)
            progress(1.0)
            if error is not None:
                failed += 1
                bar.write(f"{label}, process {number + 1} failed: {error}")
            document.write(options.output)
    return failed


def draw(path: Path) -> None:
    """Figure and tables, drawn by `reports` in a process of its own, which needs no torch."""
    done = subprocess.run(
        child.command("reports.figures.steps", str(path)),
        env=child.environment(),
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        print(done.stdout.strip())
        return
    reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
    print(f"No figure ({reason}); python -m reports.figures.steps {path} draws it elsewhere.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `gefen-step`."""
    options = parse(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    return exit_code(
        "gefen-step",
        lambda: run(options, shlex.join(["gefen-step", *given])),
        stopped="stopped; finished processes are in step_bench.json.",
    )


if __name__ == "__main__":
    sys.exit(main())
