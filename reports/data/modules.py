"""Files of a package that offer something (a figure, a table, an estimator), by folder."""

import importlib
import pkgutil
from types import ModuleType


def offering(package: ModuleType, *names: str) -> list[ModuleType]:
    """The modules of `package` that define any of `names`, in alphabetical order."""
    below = sorted(entry.name for entry in pkgutil.iter_modules(package.__path__))
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in below]
    return [module for module in modules if any(hasattr(module, name) for name in names)]
