"""Which settings a task says that it reads, against the code that reads them."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import harness
from harness import registry, tasks
from harness.config import TaskConfig

HARNESS = Path(harness.__file__).parent
FIELDS = {field.name for field in dataclasses.fields(TaskConfig)}
# `kind` goes without saying; when a run is saved changes nothing that it computes.
ELSEWHERE = {"kind", "checkpoint_every_steps"}
# Before and after the task, whatever it is: the cap, how memory is mapped, and what is kept.
AROUND = {"memory_cap_gib", "exact_peaks", "save_model"}


def read_in(path: Path) -> set[str]:
    """Fields of `task` or `....task` that a file reads, getattr by name left out."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and node.attr in FIELDS:
            if ast.unparse(node.value).split(".")[-1] == "task":
                found.add(node.attr)
    return found


def test_every_setting_is_read_by_some_task() -> None:
    assert set(tasks.names()) >= {"pretrain", "finetune", "classify", "memory"}
    assert set().union(*map(tasks.reads, tasks.names())) | ELSEWHERE == FIELDS


@pytest.mark.parametrize("kind", tasks.names())
def test_a_task_says_what_its_code_reads(kind: str) -> None:
    read = read_in(HARNESS / "tasks" / f"{kind}.py")
    if kind != "memory":  # the others train
        read = read.union(*(read_in(file) for file in (HARNESS / "train").glob("*.py")))
    assert read - ELSEWHERE <= tasks.reads(kind)
    assert tasks.reads(kind) <= read | AROUND


def test_what_a_task_says_is_known_without_torch() -> None:
    code = (
        "import sys; from harness import tasks;"
        "print([(len(tasks.reads(k)) > 0, bool(tasks.data_kinds(k))) for k in tasks.names()]);"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    found = subprocess.run(command, cwd=HARNESS.parent, capture_output=True, text=True, check=True)
    assert found.stdout == f"{[(True, True)] * len(tasks.names())}\nFalse\n"


def test_a_constant_has_to_be_a_literal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_HARNESS", tmp_path)
    (tmp_path / "room").mkdir()
    (tmp_path / "room/__init__.py").write_text("")
    (tmp_path / "room/one.py").write_text(
        'A = frozenset({"x", "y"})\nB: tuple[int, ...] = (1, 2)\nC = print("run")\n'
    )
    assert registry.names("room") == ("one",)
    assert registry.constant("room", "one", "A") == frozenset({"x", "y"})
    assert registry.constant("room", "one", "B") == (1, 2)
    assert registry.constant("room", "one", "E", "default") == "default"
    with pytest.raises(ValueError, match="malformed"):
        registry.constant("room", "one", "C")
