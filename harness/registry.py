"""Folders whose files register themselves: their names, literals read without an import, modules.

A data source, a task and the like is one file in a folder of `harness`; its name is the file's.
What has to be known before anything heavy is imported (which settings a task reads, what kind of
data a source holds) is a literal at the top of that file, read from its text.
"""

import ast
import functools
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

_HARNESS = Path(__file__).parent


def names(folder: str) -> tuple[str, ...]:
    """The files of `harness/<folder>` ("tasks", "data/sources") without their suffix, sorted.

    A file whose name begins with an underscore is no entry.
    """
    files = (_HARNESS / folder).glob("*.py")
    return tuple(sorted(file.stem for file in files if not file.stem.startswith("_")))


def constant(folder: str, name: str, key: str, default: Any = None) -> Any:
    """The literal that a file assigns to `key` at its top level; `default` where it does not.

    Nothing of the file is run. `frozenset({...})` counts as a literal.

    Raises:
        ValueError: the file assigns something else than a literal.
    """
    value = _assigned(_HARNESS / folder / f"{name}.py").get(key)
    if value is None:
        return default
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "frozenset":
        return frozenset(ast.literal_eval(value.args[0]))
    return ast.literal_eval(value)


def module(folder: str, name: str) -> ModuleType:
    """The file `name` of `harness/<folder>`, imported."""
    return importlib.import_module(f"harness.{folder.replace('/', '.')}.{name}")


@functools.cache
def _assigned(path: Path) -> dict[str, ast.expr]:
    """The expressions that a file assigns to single names at its top level."""
    found: dict[str, ast.expr] = {}
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
            first = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
            if isinstance(first, ast.Name):
                found[first.id] = statement.value
    return found
