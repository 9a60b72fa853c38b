"""What `gefen-step` writes: settings, provenance, raw results of every process, and summaries."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.cells import store
from harness.cells.provenance import utc_now
from harness.step_bench import plan, table
from harness.step_bench.plan import Candidate, Condition, StepSettings
from harness.step_bench.process import last_words, run_process
from harness.step_bench.summary import failures, summarize_processes

SCHEMA_VERSION = 1
FILE = "step_bench.json"


@dataclass
class Document:
    """The conditions of one call and the results of their processes so far.

    `said` are the sentences about what is left out, `options` those of the command line.
    """

    conditions: list[Condition]
    chosen: list[Candidate]
    said: list[str]
    provenance: dict[str, Any]
    options: dict[str, Any]
    device: str
    results: dict[Condition, list[dict[str, Any]]] = field(init=False)
    errors: dict[Condition, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.results = {condition: [] for condition in self.conditions}
        self.errors = {condition: [] for condition in self.conditions}

    @property
    def reference(self) -> str:
        """The candidate that ratios are to: the configuration's where it takes part."""
        known = [candidate.name for candidate in self.chosen]
        wanted = str(plan.defaults()["reference"])
        return wanted if wanted in known else known[0]

    def settings_of(self, condition: Condition) -> StepSettings:
        """What a process of `condition` is told."""
        return StepSettings(
            model=condition.group,
            candidates={c.name: c.values for c in self.chosen},
            gradient_reads={c.name: c.gradient_reads for c in self.chosen},
            precision=condition.precision,
            device=self.device,
            threads=self.options["threads"],
            vocab_size=plan.vocabulary(),
            warmup_steps=self.options["warmup"],
            timed_rounds=self.options["steps"],
            copy_bytes=plan.COPY_BYTES[self.device],
            evict_bytes=plan.EVICT_BYTES,
            share_parameters=True,
            keep_going=True,
        )

    def measure(
        self, condition: Condition, stem: Path, progress: Callable[[float], Any]
    ) -> str | None:
        """Run one process and keep its result; the error in one sentence where there is none."""
        settings = self.settings_of(condition)
        result = run_process(settings, stem, self.options["timeout"], progress)
        if result is None:
            error = f"{last_words(stem)} (see {stem.with_suffix('.log')})"
            self.errors[condition].append(error)
            return error
        self.results[condition].append(result)
        return None

    def entry(self, condition: Condition) -> dict[str, Any]:
        """Everything about one condition as plain values."""
        results = self.results[condition]
        facts: dict[str, Any] = {
            **asdict(condition),
            "failed_processes": self.errors[condition],
            "failed_candidates": failures(results),
            "candidates": {},
            "runs": results,
        }
        if results:
            facts |= summarize_processes(results, self.reference)
            facts["threads"] = results[0].get("threads")
        return facts

    def content(self) -> dict[str, Any]:
        """The whole document as plain values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": "step_bench",
            "device": self.device,
            "reference": self.reference,
            "optimizers": {c.name: c.values["name"] for c in self.chosen},
            "options": self.options,
            "provenance": {**self.provenance, "finished_utc": utc_now()},
            "said": self.said,
            "conditions": [self.entry(condition) for condition in self.conditions],
        }

    def write(self, folder: Path) -> Path:
        """Write `step_bench.json` into `folder`, atomically."""
        store.write_json_atomic(folder / FILE, self.content())
        return folder / FILE

    def text(self) -> str:
        """The tables for a terminal."""
        blocks = []
        for facts in (self.entry(condition) for condition in self.conditions):
            if not facts["candidates"]:
                continue
            rows = table.rows(facts, facts["parameters"], self.reference)
            bandwidth = facts["copy_bytes_per_second"] / 1e9
            title = (
                f"{facts['model']}, {facts['precision']}: {facts['parameters']:,} parameters, "
                f"{facts['processes']} processes, copy bandwidth {bandwidth:,.1f} GB/s"
            )
            failed = [f"{n}: not timed ({e})" for n, e in facts["failed_candidates"].items()]
            body = table.aligned(table.headings(self.reference), rows)
            blocks.append("\n".join([title, "", body, *failed]))
        return "\n\n".join([*blocks, table.NOTE])
