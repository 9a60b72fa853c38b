"""How far Gefen's updates are from AdamW's on the same gradients, by tensor, column and step.

A small model is trained with torch's AdamW in float32. In every step each variant of Gefen is
shown the same clipped gradients and would start from AdamW's parameters, so that nothing but the
state of the optimizers differs. The question behind it: does a variant move some columns further
than AdamW at the same learning rate, so that it needs a smaller one?

Example, about ten minutes on two cores:

  python -m harness.research.audit.update_audit --output runs/update_audit/gpt2_3m \
      model=gpt2_3m task.steps=200

Overrides are those of gefen-bench (key=value; `gefen-bench --cfg job` lists them). Unless they say
otherwise: model=gpt2_3m seq_len=128 micro_batch=8 task.steps=200 task.warmup_steps=20 (a tenth of
fewer steps), on the CPU.

Written below --output: tensors (cosine, ratio of norms and RMS for each tensor, variant and step)
and columns (RMS over AdamW's by tenths of the columns and rows, in order of their gradients), both
as csv and parquet; audit.json (settings, provenance, summary); summary.md; updates.png.
"""

import argparse
from pathlib import Path
from typing import Any

from harness.cells import store
from harness.config import RunConfig
from harness.errors import UserError
from harness.research.audit import command
from harness.research.audit.comparison import audit
from harness.research.audit.report import draw, markdown, summarize

MODULE = "harness.research.audit.update_audit"
# Options of the registry's gefen_ablation, which is gefen itself where no switch is set.
VARIANTS: dict[str, dict[str, Any]] = {
    "factored_8bit": {"second_moment": "factored", "first_moment_bits": 8},
    "factored_4bit": {"second_moment": "factored", "first_moment_bits": 4},
    "factored_32bit": {"second_moment": "factored", "first_moment_bits": 32},
    "block_8bit": {"second_moment": "block", "first_moment_bits": 8},
    "published_like": {"second_moment": "block", "first_moment_bits": 8, "rounding": "nearest"},
}


def write(config: RunConfig, variants: dict[str, dict[str, Any]], output: Path, line: str) -> str:
    """Run the audit, write its files into the folder `output`, return the summary's Markdown.

    `line` is the command line.
    """
    tensors, deciles = audit(config, variants)
    summary = summarize(tensors, deciles)
    output.mkdir(parents=True, exist_ok=True)
    for name, frame in (("tensors", tensors), ("columns", deciles)):
        frame.to_csv(output / f"{name}.csv", index=False, float_format="%.6g")
        frame.to_parquet(output / f"{name}.parquet", index=False)
    text = markdown(summary, config, line)
    (output / "summary.md").write_text(text, encoding="utf-8")
    draw(summary, deciles, config.model.name).savefig(output / "updates.png", dpi=150)
    found = {"variants": variants, "summary": summary.to_dict("records")}
    store.write_json_atomic(output / "audit.json", command.facts(config, line, **found))
    return text


def chosen(names: str) -> dict[str, dict[str, Any]]:
    """The variants of a comma-separated list; UserError for one that is not known."""
    wanted = names.split(",")
    for name in wanted:
        if name not in VARIANTS:
            raise UserError(f"--variants has {name!r}; allowed: {', '.join(VARIANTS)}.")
    return {name: VARIANTS[name] for name in wanted}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = command.parser_of(MODULE, __doc__)
    parser.add_argument(
        "--variants",
        default=",".join(VARIANTS),
        metavar="NAME,...",
        help="which to compare with AdamW (default: %(default)s)",
    )
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the audit and print its summary; a mistake is one sentence, exit code 2."""
    options = parse(arguments)

    def work(config: RunConfig, line: str) -> str:
        return write(config, chosen(options.variants), options.output, line)

    command.run(MODULE, options, arguments, work)


if __name__ == "__main__":
    main()
