"""Runs of unlike configurations are never averaged as repeats, and labels say what differs."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.cells import store
from reports.data.labels import labels
from reports.data.load import ReportError, load
from reports.page.report import report_main
from reports.tables.runs import runs_table, summary_table

Maker = Callable[..., store.Record]
Writer = Callable[..., Path]


def changed(record: store.Record, number: int, **values: Any) -> store.Record:
    """A copy of a record under another id whose configuration has these dotted keys (`__`)."""
    other = copy.deepcopy(record)
    other.id = f"{number:016x}"
    for path, value in values.items():
        *parents, last = path.split("__")
        below = other.config
        for key in parents:
            below = below.setdefault(key, {})
        below[last] = value
    return other


def table_of(folder: Path) -> tuple[Any, Any]:
    """The cells of a study, and its means."""
    runs = load(folder).runs
    return runs, summary_table(runs_table(runs))


@pytest.mark.parametrize("kind", ["pretrain", "memory"])
@pytest.mark.parametrize(
    ("path", "values", "words"),
    [
        ("optimizer__betas", ([0.9, 0.95], [0.9, 0.999]), ("betas [0.9, 0.95]",)),
        ("optimizer__options__rank", (64, 128), ("rank 64", "rank 128")),
        ("task__warmup_steps", (10, 100), ("warmup_steps 10",)),
        ("task__min_lr_ratio", (0.0, 0.1), ("min_lr_ratio 0.1",)),
        ("task__eval_every_steps", (10, 20), ("eval_every_steps 20",)),
        ("threads", (1, 2), ("threads 1", "threads 2")),
        ("grad_accumulation", (1, 3), ()),
        ("data__name", ("python_tiny", "wiki_tiny"), ("data python_tiny", "data wiki_tiny")),
        ("a_key_of_later", ("x", "y"), ("a_key_of_later x",)),
    ],
)
def test_cells_that_differ_in_any_setting_are_apart(
    tmp_path: Path, write_study: Writer, loss_cell: Maker, memory_cell: Maker,
    kind: str, path: str, values: tuple[Any, Any], words: tuple[str, ...],
) -> None:  # fmt: skip
    base = loss_cell("adamw", 0, 3.0) if kind == "pretrain" else memory_cell("adamw")
    records = [changed(base, number, **{path: value}) for number, value in enumerate(values)]
    runs, means = table_of(write_study(tmp_path / "s", records))
    assert list(means["n"]) == [1, 1]
    names = " and ".join(labels(runs).values())
    assert all(word in names for word in words), names
    assert all(name.startswith("AdamW (") for name in labels(runs).values())


@pytest.mark.parametrize(
    ("path", "values", "words"),
    [
        ("model__hidden_size", (64, 128), ("gpt2_4m (hidden_size 64)", "(hidden_size 128)")),
        ("model__layers", (2, 4), ("gpt2_4m (layers 2)",)),
        ("model__path", ("/w/one", "/w/two"), ("gpt2_4m (path one)", "gpt2_4m (path two)")),
        ("model__path", ("/a/hf", "/b/hf"), ("gpt2_4m (path /a/hf)",)),
    ],
)
def test_models_of_one_name_that_differ_are_two_models(
    tmp_path: Path, write_study: Writer, loss_cell: Maker,
    path: str, values: tuple[Any, Any], words: tuple[str, ...],
) -> None:  # fmt: skip
    """As conditions of their own, so that optimizers are compared at one width."""
    records = [
        changed(loss_cell(name, seed, 3.0 + seed), 10 * number + 2 * seed + at, **{path: value})
        for number, value in enumerate(values)
        for seed in (0, 1)
        for at, name in enumerate(("adamw", "gefen"))
    ]
    runs, means = table_of(write_study(tmp_path / "s", records))
    assert sorted(means["n"]) == [2, 2, 2, 2]
    assert set(runs["variant"]) == {"adamw", "gefen"}
    assert set(words) <= {word for name in set(runs["model"]) for word in (name, name[8:])}


@pytest.mark.parametrize(
    "path", ["seed", "part", "root", "tracker__name", "task__log_every_steps", "data__fold"]
)
def test_seeds_folds_and_what_only_watches_set_nothing_apart(
    tmp_path: Path, write_study: Writer, loss_cell: Maker, path: str
) -> None:
    base = loss_cell("adamw", 0, 3.0)
    records = [changed(base, number, **{path: number}) for number in range(3)]
    runs, means = table_of(write_study(tmp_path / "s", records))
    assert list(means["n"]) == [3]
    assert set(runs["variant"]) == {"adamw"}
    assert set(runs["model"]) == {"gpt2_4m"}


def test_a_key_that_an_older_record_lacks_is_no_difference(
    tmp_path: Path, write_study: Writer, loss_cell: Maker
) -> None:
    base = loss_cell("adamw", 0, 3.0)
    records = [base, changed(base, 1, task__spike_window=50, model__lora_alpha=16.0)]
    _, means = table_of(write_study(tmp_path / "s", records))
    assert list(means["n"]) == [2]


def test_a_label_names_a_setting_once(
    tmp_path: Path, write_study: Writer, loss_cell: Maker
) -> None:
    """The hash of the data, or a warm-up that follows the number of steps, tells nothing more."""
    first, second = (
        loss_cell("adamw", 0, 3.0, steps=steps, data_hash=letter * 64)
        for steps, letter in ((100, "1"), (200, "2"))
    )
    records = [
        changed(first, 1, task__warmup_steps=10, data__name="one"),
        changed(second, 2, task__warmup_steps=20, data__name="two"),
    ]
    runs = load(write_study(tmp_path / "s", records)).runs
    assert list(runs["variant"]) == ["adamw (data one, steps 100)", "adamw (data two, steps 200)"]


def test_the_terminal_shows_two_widths_as_two_rows(
    tmp_path: Path, write_study: Writer, loss_cell: Maker, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [
        changed(loss_cell("adamw", 0, loss), number, model__hidden_size=size)
        for number, (size, loss) in enumerate([(64, 5.68), (128, 5.40)])
    ]
    study = write_study(tmp_path / "s", records, claims=[])
    assert report_main([str(study), "-o", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "hidden_size 64" in shown
    assert "hidden_size 128" in shown
    assert "\N{PLUS-MINUS SIGN}" not in shown, "one seed each has no interval"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cells": [{"label": 3}]}, "broken key cells"),
        ({"cells": {"a": "b"}}, "broken key cells"),
        ({"claims": 5}, "claims=5"),
        ({"claims": "state_8x"}, "claims='state_8x'"),
    ],
)
def test_a_broken_study_file_is_one_sentence_with_its_file(
    tmp_path: Path, write_study: Writer, loss_cell: Maker, given: dict[str, Any], said: str
) -> None:
    study = write_study(tmp_path / "s", [loss_cell("adamw", 0, 3.0)], **given)
    with pytest.raises(ReportError, match=r"study\.json") as found:
        load(study)
    assert said in str(found.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda r: r.config.pop("model"), "lacks the key 'model'"),
        (lambda r: r.config.update(optimizer="adamw"), "is broken"),
        (lambda r: r.metrics.update(peak_bytes="low"), "peak_bytes='low'"),
    ],
)
def test_a_broken_record_is_one_sentence_with_its_file(
    tmp_path: Path, write_study: Writer, loss_cell: Maker,
    capsys: pytest.CaptureFixture[str], change: Callable[[store.Record], Any], said: str,
) -> None:  # fmt: skip
    record = loss_cell("adamw", 0, 3.0)
    change(record)
    study = write_study(tmp_path / "s", [record])
    with pytest.raises(ReportError, match=r"record\.json") as found:
        load(study)
    assert said in str(found.value)
    assert report_main([str(study)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"cells/{record.id}/record.json" in error
