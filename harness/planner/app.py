"""gefen-plan: what training a model takes, stated without allocating it, in seconds.

Parameters, gradients and optimizer state are exact; activations are estimated from the model's own
code, with and without activation checkpointing; per rank on one device, under DDP and under FSDP,
and on how many cards of 16, 24, 40, 80 and 141 GiB it fits.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.errors import UserError, exit_code
from harness.planner import config as settings

EPILOG = """\
keys (defaults):
  model=NAME            a file of configs/model; several with commas
  optimizer=gefen,adamw files of configs/optimizer
  seq_len=1024 micro_batch=1 grad_accumulation=1    of one rank
  precision=bf16_mixed  fp32, bf16_mixed (or bf16: float32 weights under autocast) or bf16_pure
  shards=1              ranks of FSDP; with 1 the plan shows one device and a rank of DDP
  device=cuda           or cpu, where a process keeps what it has freed
  headroom_gib=1        of a card, for the CUDA context and what an allocator cannot give back
  vocab_size=4096       for models that take the vocabulary of the data
  model.KEY=VALUE       any key of a model, for example model.layers=48
  family=NAME           with --fits: models whose names begin so: gpt2, llama3, qwen3, ...

examples:
  gefen-plan model=gpt2_124m
  gefen-plan model=llama3_8b optimizer=gefen,adamw,adamw8bit seq_len=8192
  gefen-plan model=llama3_405b optimizer=gefen,adamw seq_len=8192 shards=128
  gefen-plan model=llama3_8b model.layers=48 precision=bf16_pure --json
  gefen-plan --fits 24GiB family=llama3 optimizer=gefen,adamw     the largest model
  gefen-plan --fits 80GiB model=qwen3_4b seq_len=4096             the largest micro-batch, sequence
  gefen-plan --check results                                      against measured records

Exit codes: 0 done, 1 with --check when a cell is outside its tolerance, 2 a mistake.
"""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="gefen-plan",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help="see below")
    parser.add_argument("--fits", metavar="SIZE", help="what is the largest that takes SIZE")
    parser.add_argument("--check", metavar="DIR", type=Path, help="compare with records in DIR")
    parser.add_argument(
        "--save", action="store_true", help="with --check: keep the errors for the study's report"
    )
    parser.add_argument("--json", action="store_true", help="all numbers, in bytes")
    return parser.parse_intermixed_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Answer one command line; the exit code. Raises UserError."""
    if options.check is not None:
        return _check(options)
    if options.save:
        raise UserError("--save needs --check DIR.")
    words = settings.split(options.words)
    if options.fits is not None:
        return _fits(options, words)
    if "family" in words.values:
        raise UserError("family= needs --fits SIZE; for a plan give model=NAME.")
    names = words.values.get("model", "").split(",")
    configs = [settings.build(words, name or None) for name in names]
    from harness.planner.plan import plan
    from harness.planner.tables import plan_text

    plans = [plan(config) for config in configs]
    _print(options, plans if len(plans) > 1 else plans[0], "\n\n".join(map(plan_text, plans)))
    return 0


def _fits(options: argparse.Namespace, words: settings.Words) -> int:
    limit = settings.size(options.fits)
    family, model = words.values.get("family"), words.values.get("model")
    if (family is None) == (model is None):
        raise UserError("--fits needs either family=NAME or model=NAME.")
    from harness.planner.plan import largest_micro_batch, largest_model, largest_seq_len
    from harness.planner.tables import largest_text

    if family is not None:
        configs = [settings.build(words, name) for name in settings.family_names(family)]
        answers = {"model": largest_model(configs, limit)}
        titles = {"model": f"Largest model of {family} in {options.fits}, {_tokens(configs[0])}:"}
    else:
        shown = settings.build(words)
        answers = {
            "micro_batch": largest_micro_batch(shown, limit),
            "seq_len": largest_seq_len(shown, limit),
        }
        place = f"{shown.model.name} in {options.fits}, {shown.precision}"
        titles = {
            "micro_batch": f"Largest micro_batch of {place}, seq_len={shown.seq_len}:",
            "seq_len": f"Largest seq_len of {place}, micro_batch={shown.micro_batch}:",
        }
    _print(options, answers, "\n\n".join(largest_text(titles[k], a) for k, a in answers.items()))
    return 0


def _tokens(config: settings.PlanConfig) -> str:
    ranks = "" if config.shards == 1 else f", FSDP over {config.shards}"
    return f"{config.micro_batch} x {config.seq_len} tokens, {config.precision}{ranks}"


def _check(options: argparse.Namespace) -> int:
    if options.words or options.fits:
        raise UserError("--check DIR takes its settings from the records: give nothing else.")
    from harness.planner.check import UNJUDGED, compare_all, save
    from harness.planner.tables import check_text

    comparisons = compare_all(options.check)
    _print(options, comparisons, check_text(comparisons))
    if options.save:
        for path in save(comparisons, options.check):
            print(f"Saved: {path}", file=sys.stderr)
    return 0 if all(item.verdict in ("ok", *UNJUDGED) for item in comparisons) else 1


def _print(options: argparse.Namespace, answer: Any, text: str) -> None:
    print(json.dumps(answer, default=dataclasses.asdict, indent=1) if options.json else text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `gefen-plan`."""
    options = parse(arguments)
    return exit_code("gefen-plan", lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())
