"""Command line shared by the audits that train a small model in their own process."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from harness.cells import provenance
from harness.cli import bench, mistakes
from harness.config import RunConfig, from_dict, to_dict
from harness.config.groups import configs_dir
from harness.errors import UserError
from harness.research.audit.comparison import prepared
from harness.study import planner

DEFAULTS = ("model=gpt2_3m", "seq_len=128", "micro_batch=8", "task.steps=200", "device=cpu")
NOT_DESCRIBED = ("study", "launch", "tracker", "root", "cache", "part", "seed")


def compose(overrides: list[str]) -> RunConfig:
    """The configuration of `gefen-bench` with these commands' defaults, then these overrides.

    The defaults are `DEFAULTS` and task.warmup_steps=20 (a tenth of fewer steps). Raises UserError
    or an error of Hydra for a mistake.
    """
    bench.register_schema()
    with hydra.initialize_config_dir(str(configs_dir()), version_base="1.3"):
        steps = hydra.compose("config", [*DEFAULTS, *overrides]).task.steps
        warmup = f"task.warmup_steps={min(20, steps // 10)}"
        composed = hydra.compose("config", [*DEFAULTS, warmup, *overrides])
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    config = planner.resolve(from_dict(RunConfig, plain))
    if config.device != "cpu" or config.precision != "fp32":
        raise UserError("The audit runs in float32 on the CPU: leave device and precision out.")
    return config


def facts(config: RunConfig, command: str, **found: Any) -> dict[str, Any]:
    """What was found, with the settings and the provenance, as one document."""
    described = {key: value for key, value in to_dict(config).items() if key not in NOT_DESCRIBED}
    data_hash, code_hash = prepared(config).hash, provenance.code_hash()
    origin = provenance.collect(command, config.device, data_hash, code_hash)
    return {"config": described, "provenance": origin, **found}


def parser_of(module: str, description: str | None) -> argparse.ArgumentParser:
    """A parser of `--output DIR` and overrides; parse with `parse_intermixed_args`."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as for gefen-bench")
    return parser


def run(
    module: str,
    options: argparse.Namespace,
    arguments: Sequence[str] | None,
    work: Callable[[RunConfig, str], str],
) -> None:
    """Print what `work` says of the configuration and the command line as it was typed.

    A mistake is one sentence, exit code 2.
    """
    given = sys.argv[1:] if arguments is None else arguments
    try:
        text = work(compose(options.overrides), shlex.join(["python", "-m", module, *given]))
    except mistakes.MISTAKES as error:
        print(f"{module}: {mistakes.explain(error)}", file=sys.stderr)
        sys.exit(2)
    print(text)
    print(f"Written: {options.output}")
