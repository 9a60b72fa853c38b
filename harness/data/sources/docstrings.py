"""Pairs from Python files: signature and docstring, and the body that a person wrote for them."""

import ast
import textwrap
from collections.abc import Iterator

from harness.config import DataConfig
from harness.data.documents import Document, Splits
from harness.data.pairs import Pair, PairSplits
from harness.data.sources import python_source

KIND = "pairs"
READS = frozenset({"train", "validation", "test", "exclude", "max_package_bytes"})
Function = ast.FunctionDef | ast.AsyncFunctionDef


check = python_source.check
signature = python_source.signature
packages = python_source.packages


def read(config: DataConfig) -> PairSplits:
    """The pairs of each split; packages are divided over the splits as in python_source.

    Raises:
        UserError: as `harness.data.sources.python_source.read`.
    """
    splits: Splits = python_source.read(config)
    return {
        split: [pair for document in documents for pair in pairs_of(document)]
        for split, documents in splits.items()
    }


def pairs_of(document: Document) -> Iterator[Pair]:
    """The documented functions of one file and of its classes, in order.

    The prompt is the function from `def` to the end of its docstring, the completion the rest,
    both indented as at the top level. Left out: functions inside functions (they stand in the outer
    body), stubs (nothing but pass, ..., or raise), and files that this Python cannot parse.
    """
    try:
        tree = ast.parse(document.text)
    except (SyntaxError, ValueError):
        return
    lines = document.text.splitlines(keepends=True)
    for function in _functions(tree):
        pair = _pair(function, lines, document.name)
        if pair is not None:
            yield pair


def _functions(node: ast.AST) -> Iterator[Function]:
    """Functions of a module and of its classes, not those inside functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        else:
            yield from _functions(child)


def _pair(function: Function, lines: list[str], name: str) -> Pair | None:
    body = function.body
    if ast.get_docstring(function) is None or len(body) < 2 or _is_stub(body[1:]):
        return None
    first, cut, last = function.lineno - 1, body[0].end_lineno, function.end_lineno
    # A statement beside the docstring, or a form feed or the like that splitlines takes for the
    # end of a line: the lines are not those of the parser.
    if cut is None or last is None or body[1].lineno <= cut or last > len(lines):
        return None
    text = textwrap.dedent("".join(lines[first:last]))
    if not text.startswith(("def ", "async def ")):
        return None
    whole = text.splitlines(keepends=True)
    # The line break before the body belongs to the completion: a tokenizer joins it to the indent.
    prompt = "".join(whole[: cut - first]).rstrip("\n")
    return Pair(f"{name}:{function.name}", prompt, text[len(prompt) :].rstrip())


def _is_stub(body: list[ast.stmt]) -> bool:
    return all(
        isinstance(statement, ast.Pass | ast.Raise)
        or (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in body
    )
