"""What a planned cell's numbers rest on: the code, libraries and weights that it will use."""

import functools
import importlib.metadata
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from harness import optimizers, registry, tasks
from harness.cells.code import PACKAGES, Tree
from harness.cells.identity import Cell, Origin, identify
from harness.config import RunConfig
from harness.data import sources
from harness.models.files import GGUF, fingerprint

TRAINING = "harness/train/loop.py"
LIBRARIES = ("torch", "transformers", "accelerate", "numpy")


class Origins:
    """Answers for the cells of one command; each combination of parts is looked at once.

    `root` is the folder of the code, by default this very one.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._tree = Tree(root)
        self._known: dict[tuple[str, ...], Origin] = {}
        self._weights: dict[str, str] = {}

    def cell(self, config: RunConfig, data_hash: str) -> Cell:
        """The cell of a resolved configuration whose prepared data has this hash."""
        return identify(config, self.of(config, data_hash), tasks.reads(config.task.kind))

    def of(self, config: RunConfig, data_hash: str) -> Origin:
        """What that cell's numbers rest on."""
        model = config.model
        key = (config.task.kind, config.data.source, model.family, config.optimizer.name)
        if key not in self._known:
            self._known[key] = self._code(config)
        found = self._known[key]
        named = ["peft"] * (model.lora_rank is not None)
        named += ["gguf"] * (model.path or "").endswith(GGUF)
        return replace(
            found,
            data=data_hash,
            libraries=found.libraries | versions(named),
            weights=None if model.path is None else self._fingerprint(model.path),
        )

    def _code(self, config: RunConfig) -> Origin:
        """Fingerprints by part, of what a registry finds by name those that this cell uses."""
        tree, code = self._tree, optimizers.code(config.optimizer.name)
        kinds = {f"harness.data.{sources.kind(name)}" for name in sources.names()}
        core = ["harness.worker.main", f"harness.tasks.{config.task.kind}"]
        if TRAINING in tree.closure(core, kinds):  # it finds the meters of a run by their files
            core += [f"harness.meters.{name}" for name in registry.names("meters")]
        roots = {
            "core": core,
            "data": [f"harness.data.{sources.kind(config.data.source)}"],
            "model": [f"harness.models.families.{config.model.family}"],
            "optimizer": code,
        }
        parts: dict[str, set[str]] = {}
        for part, names in roots.items():
            parts[part] = tree.closure(names, kinds) - parts.get("core", set())
        used = {name.partition(".")[0] for name in code}
        used |= tree.libraries(parts["optimizer"])
        return Origin(
            data="",
            code={part: tree.fingerprint(files) for part, files in parts.items()},
            libraries=versions(used.union(LIBRARIES) - set(PACKAGES)),
            files={file: tree.read(file).stamp for file in sorted(set().union(*parts.values()))},
        )

    def _fingerprint(self, path: str) -> str:
        if path not in self._weights:
            self._weights[path] = fingerprint(path)
        return self._weights[path]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Versions of installed distributions by the names that they are imported by.

    Build tags ("+cpu", "+cu130") are left out, and so is what torch itself comes with.
    """
    found = {}
    for name in sorted(set(packages) - {"triton"}):
        version = _version(name)
        if version is not None:
            found[name] = version.partition("+")[0]
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        distributions = _distributions().get(name)
        return importlib.metadata.version(distributions[0]) if distributions else None


@functools.cache
def _distributions() -> dict[str, list[str]]:
    return dict(importlib.metadata.packages_distributions())
