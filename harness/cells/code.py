"""Fingerprints of the code that a cell executes, from the import graph of its files; no torch.

A file's fingerprint is that of its syntax tree without docstrings and comments (of a C++ file: of
its text without comments and layout), so that wording changes no cell's identity. Which files a
cell executes is read from their import statements, also those inside functions, and followed
within this project. A package's `__init__` counts where a name is taken from it; a folder's C++
sources count with its Python files; `gefen` counts whole once its `__init__` does.
"""

import ast
import functools
import hashlib
import importlib.util
import re
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from harness.errors import UserError

PACKAGES = ("gefen", "harness")
WHOLE = "gefen"
SOURCES = (".cpp", ".cu", ".h")  # beside Python's
# They neither compute nor measure: where a run writes, what mirrors it, how it is configured.
APART = ("harness.config", "harness.cells", "harness.errors", "harness.trackers")
_LAYOUT_FIELDS = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


class CodeChanged(UserError):
    """The code on disk is not what a cell was planned with."""


class Parsed(NamedTuple):
    """A file: hashes of its bytes and of its meaning, and (module, name) of what it imports."""

    raw: str
    meaning: str
    imports: tuple[tuple[str, str | None], ...]

    @property
    def stamp(self) -> str:
        """Both hashes in one word, as a job carries them."""
        return f"{self.raw}:{self.meaning}"


def project_root() -> Path:
    """The folder that holds the package `harness`."""
    return Path(__file__).resolve().parents[2]


class Tree:
    """The code of this project below `root`, or wherever its packages are installed."""

    def __init__(self, root: Path | None = None) -> None:
        root = root or project_root()
        self._folders = {name: _package_folder(name, root) for name in PACKAGES}

    def path(self, file: str) -> Path:
        """Where a file lies that is named from its package on, as harness/train/loop.py."""
        package, _, rest = file.partition("/")
        return self._folders[package] / rest

    def read(self, file: str) -> Parsed:
        """Hashes and imports of a file, taken once a process as long as it stays as it is.

        Raises OSError, and UserError for a Python file that has a syntax error.
        """
        path = self.path(file)
        state = path.stat()
        return _parse(path, state.st_mtime_ns, state.st_size)

    def closure(self, modules: Iterable[str], found_by_name: Collection[str] = ()) -> set[str]:
        """The files of `modules` and of all that they import within this project.

        `found_by_name` are modules of which a registry imports all and a cell executes one: they
        are followed where they are among `modules`, or where one of them imports another.
        """
        files: set[str] = set()
        queue = [module for module in modules if self._file(module)]
        done: set[str] = set()
        while queue:
            module = queue.pop()
            file = self._file(module)
            if module in done or file is None:
                continue
            done.add(module)
            files.add(file)
            if module == WHOLE:
                files |= self._everything(module)
                continue
            for base, name in self.read(file).imports:
                target = f"{base}.{name}" if name and self._file(f"{base}.{name}") else base
                known = target not in found_by_name or module in found_by_name
                if known and not _within(target, APART):
                    queue.append(target)
        return files | {found for file in files for found in self._sources_beside(file)}

    def libraries(self, files: Iterable[str]) -> set[str]:
        """Top-level names of the packages from elsewhere that Python files import."""
        names = {
            base.partition(".")[0]
            for file in files
            if file.endswith(".py")
            for base, _ in self.read(file).imports
        }
        return names - set(PACKAGES) - set(sys.stdlib_module_names)

    def fingerprint(self, files: Iterable[str]) -> str:
        """SHA-256 (hex) over the names and meanings of files."""
        listed = sorted((file, self.read(file).meaning) for file in files)
        return hashlib.sha256(repr(listed).encode()).hexdigest()

    def everything(self) -> set[str]:
        """All files of this project's packages that hold code."""
        return {file for package in PACKAGES for file in self._everything(package)}

    def _file(self, module: str) -> str | None:
        """The file of a module of this project, else None."""
        package, *rest = module.split(".")
        if package not in self._folders:
            return None
        stem = "/".join(rest)
        for name in (f"{stem}.py", f"{stem}/__init__.py") if rest else ("__init__.py",):
            if (self._folders[package] / name).is_file():
                return f"{package}/{name}"
        return None

    def _everything(self, package: str) -> set[str]:
        folder = self._folders[package]
        kinds = (".py", *SOURCES)
        found = (path for path in folder.rglob("*") if path.suffix in kinds)
        return {f"{package}/{path.relative_to(folder).as_posix()}" for path in found}

    def _sources_beside(self, file: str) -> Iterator[str]:
        folder = file.rpartition("/")[0]
        for path in self.path(file).parent.iterdir():
            if path.suffix in SOURCES:
                yield f"{folder}/{path.name}"


def check_code(stamps: Mapping[str, str], root: Path | None = None) -> None:
    """Raise CodeChanged where a file no longer means what it did when `stamps` were taken.

    `stamps` are `Parsed.stamp` by file. Bytes are compared first: that takes milliseconds.
    """
    tree = Tree(root)
    for file, stamp in stamps.items():
        raw, _, meaning = stamp.partition(":")
        try:
            changed = _hash(tree.path(file).read_bytes()) != raw
            changed = changed and tree.read(file).meaning != meaning
        except (OSError, UserError):
            changed = True
        if changed:
            raise CodeChanged(
                f"{file} changed after the runs were planned; finished runs are kept, start the "
                "command again."
            )


def _within(module: str, packages: Iterable[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in packages)


def _package_folder(name: str, root: Path) -> Path:
    """The folder of a package beside `harness`, or wherever it is installed."""
    beside = root / name
    if beside.is_dir():
        return beside
    spec = importlib.util.find_spec(name)
    locations = list(spec.submodule_search_locations or []) if spec else []
    return Path(locations[0]) if locations else beside


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


@functools.lru_cache(maxsize=4096)
def _parse(path: Path, modified: int, size: int) -> Parsed:
    content = path.read_bytes()
    if path.suffix != ".py":
        return Parsed(_hash(content), _hash(_plain_cpp(content.decode()).encode()), ())
    try:
        tree = ast.parse(content)
    except SyntaxError as error:
        raise UserError(f"{path}:{error.lineno} has a syntax error: {error.msg}.") from None
    words: list[str] = []
    _flatten(tree, words)
    imports = dict.fromkeys(_imports(tree))
    return Parsed(_hash(content), _hash("\n".join(words).encode()), tuple(imports))


def _flatten(value: object, words: list[str]) -> None:
    """Append a syntax tree as words: no positions, docstrings or fields that are empty.

    What a version of Python adds to its trees is empty where older syntax is used.
    """
    if isinstance(value, ast.AST):
        words.append(type(value).__name__)
        for name in value._fields:
            item = getattr(value, name, None)
            if item is not None and item != [] and name not in _LAYOUT_FIELDS:
                words.append(name)
                _flatten(item, words)
        words.append(")")
    elif isinstance(value, list):
        for item in value:
            if not _is_text(item):
                _flatten(item, words)
        words.append("]")
    else:
        words.append(repr(value))


def _is_text(node: object) -> bool:
    """Whether a statement is a string alone, as a docstring is."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _imports(node: ast.AST) -> Iterator[tuple[str, str | None]]:
    """(module, name) of every import that can run; those for type checkers alone cannot."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        return
    if isinstance(node, ast.Import):
        yield from ((alias.name, None) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        yield from ((node.module or "", alias.name) for alias in node.names)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        if node.args and isinstance(node.args[0], ast.Constant):
            yield str(node.args[0].value), None
    for child in ast.iter_child_nodes(node):
        yield from _imports(child)


def _plain_cpp(text: str) -> str:
    """C++ without comments, runs of white space as one; a preprocessor line stays a line."""
    token = r'("(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\')|//[^\n]*|/\*.*?\*/'
    text = re.sub(token, lambda m: m.group(1) or " ", text.replace("\\\n", " "), flags=re.DOTALL)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    return "".join(f"\n{line}\n" if line.startswith("#") else f"{line} " for line in lines if line)
