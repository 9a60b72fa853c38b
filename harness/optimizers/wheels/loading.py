"""Load a published `gefen` beside our own, in one process.

Python knows one module by each name. So the published modules stand under theirs only while their
own code runs: `Published.active()` exchanges them with ours in `sys.modules`, and puts their
folder first on the path, and takes both back. Their lazy imports then find themselves, ours us.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from harness.errors import UserError
from harness.optimizers.wheels.packages import PACKAGES, libraries_folder, package_folder

_NAME = "gefen"


def _take_out() -> dict[str, ModuleType]:
    """Remove all modules of the name from `sys.modules` and return them."""
    names = [name for name in sys.modules if name == _NAME or name.startswith(f"{_NAME}.")]
    return {name: sys.modules.pop(name) for name in names}


@dataclass
class Published:
    """The modules of one unpacked package; `active()` while anything of them runs."""

    folder: Path
    _modules: dict[str, ModuleType] = field(default_factory=dict)

    @contextmanager
    def active(self) -> Iterator[ModuleType]:
        """The published `gefen`, importable by that name inside the context."""
        ours = _take_out()
        sys.path.insert(0, str(self.folder))
        sys.modules.update(self._modules)
        try:
            yield importlib.import_module(_NAME)
        finally:
            self._modules = _take_out()
            sys.path.remove(str(self.folder))
            sys.modules.update(ours)


def folder(name: str, version: str) -> Path:
    """The folder of that version, unpacked before; `name` as in `PACKAGES`.

    Raises:
        UserError: the folder is not there, with the command that makes it.
    """
    path = package_folder(PACKAGES[name], version)
    if not (path / _NAME / "__init__.py").is_file() or not libraries_folder().is_dir():
        raise UserError(
            f"optimizer.name={name!r} needs the published package {PACKAGES[name].name} {version} "
            f"in {path}: python -m harness.optimizers.wheels {name} {version}."
        )
    return path


_loaded: dict[Path, Published] = {}


def load(name: str, version: str) -> Published:
    """That version's modules, imported once in a process. UserError as `folder`."""
    path = folder(name, version)
    if path not in _loaded:
        libraries = str(libraries_folder())
        if libraries not in sys.path:
            # Last: what the environment has comes first.
            sys.path.append(libraries)
        package = Published(path)
        with package.active() as module:
            if path not in Path(str(module.__file__)).parents:
                raise ImportError(f"{_NAME} came from {module.__file__} and not from {path}")
        _loaded[path] = package
    return _loaded[path]
