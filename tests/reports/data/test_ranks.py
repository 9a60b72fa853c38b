"""Cells on several processes: nothing averages over them, and no verdict compares across them."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from harness.cells.store import Record
from reports.claims.claim import Verdict
from reports.claims.files import claims_folder, load_claims
from reports.claims.judge import judge_one
from reports.data.load import load
from reports.data.pairing import counted, match_states

Maker = Callable[..., Record]
Write = Callable[..., Path]


def on_ranks(record: Record, count: int, strategy: str) -> Record:
    """The record of the same cell on `count` processes."""
    launch = {"nproc": count, "strategy": strategy, "resume_from": None}
    config = {**record.config, "launch": launch}
    return dataclasses.replace(record, id=f"{record.id}-{count}{strategy}", config=config)


Sizes = dict[str, tuple[int, str, int]]


def capacity(folder: Path, sizes: Sizes, make: Maker, write: Write) -> Verdict:
    """The claim bigger_microbatch on searches: largest micro-batch, strategy and ranks by name."""
    records = []
    for optimizer, (largest, strategy, count) in sizes.items():
        for value in (1, largest, largest + 1):
            status = "done" if value <= largest else "oom"
            salt = f"{value} {strategy}"
            record = make(optimizer, micro_batch=value, salt=salt, status=status)
            record.config["task"]["memory_cap_gib"] = 1.5
            record.metrics["tokens_per_second"] = 100.0 * value
            records.append(on_ranks(record, count, strategy))
    claim = load_claims(claims_folder())["bigger_microbatch"]
    return judge_one(claim, "ours", load(write(folder, records)))


def test_ranks_are_a_condition_of_their_own(
    tmp_path: Path, loss_cell: Maker, write_study: Write
) -> None:
    alone = [loss_cell("adamw", seed) for seed in range(3)]
    several = [on_ranks(record, *how) for record in alone for how in ((2, "ddp"), (2, "fsdp"))]
    runs = load(write_study(tmp_path, [*alone, *several])).runs
    assert set(runs["ranks"]) == {"1", "2 x ddp", "2 x fsdp"}
    names = runs.groupby("ranks")["variant"].unique()
    assert len({name for (name,) in names}) == 3
    assert "2 x fsdp" in names["2 x fsdp"][0]
    # Two ranks read twice as many sequences a step.
    assert "batch 4" in names["1"][0]
    assert "batch 8" in names["2 x ddp"][0]


def test_a_capacity_is_compared_on_the_same_ranks(
    tmp_path: Path, memory_cell: Maker, write_study: Write
) -> None:
    sizes = {"gefen": (7, "fsdp", 2), "adamw": (3, "fsdp", 2)}
    found = capacity(tmp_path / "same", sizes, memory_cell, write_study)
    assert found.verdict == "reproduced"
    assert found.estimate == 7 / 3
    assert "2 x fsdp" in found.sentence
    sizes["adamw"] = (3, "ddp", 2)
    found = capacity(tmp_path / "other", sizes, memory_cell, write_study)
    assert found.verdict == "not tested"
    assert "ranks 2 x fsdp against 2 x ddp" in found.sentence


def test_state_is_that_of_all_ranks_only_where_they_share_one(
    tmp_path: Path, memory_cell: Maker, write_study: Write
) -> None:
    def cell(optimizer: str, held: int, strategy: str) -> Record:
        record = on_ranks(memory_cell(optimizer, parameters=1000, salt=strategy), 4, strategy)
        record.metrics |= {
            "optimizer_state_bytes": held,
            "optimizer_tables_bytes": 1,
            "all_ranks_optimizer_state_bytes": 4 * held,
            "rank_optimizer_tables_bytes": [1, 1, 1, 1],
        }
        return record

    parts = [cell("adamw", 2000, "fsdp"), cell("gefen", 250, "fsdp")]
    copies = [cell("adamw", 8000, "ddp"), cell("gefen", 1000, "ddp")]
    alone = memory_cell("gefen", parameters=1000)
    runs = load(write_study(tmp_path, [*parts, *copies, alone])).runs
    held = counted(runs).set_index("id")["held_bytes"]
    assert [held[record.id] for record in (*parts, *copies)] == [8004, 1004, 8001, 1001]
    assert held[alone.id] == alone.metrics["optimizer_state_bytes"]
    matched = match_states(runs, "adamw").set_index("id")
    assert matched.loc[parts[1].id, "state_bytes"] == 1004
    assert matched.loc[parts[1].id, "baseline_bytes"] == 8004
