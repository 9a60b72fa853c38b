"""Which edits of this project's own files change the identity of which cells, on a copy of them."""

import dataclasses
import importlib.metadata
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from harness.cells.code import project_root
from harness.cells.identity import Origin
from harness.config import RunConfig, from_dict
from harness.config.groups import load_group
from harness.study.origins import Origins, versions

MakeRun = Callable[..., RunConfig]
OPTIMIZERS = ("adamw", "gefen", "galore", "muon")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("code")
    for name in ("gefen", "harness"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(project_root() / name, folder / name, ignore=ignored)
    return folder


@pytest.fixture
def tree(pristine: Path, tmp_path: Path) -> Path:
    """A copy to edit; unedited files are shared, so that their fingerprints are."""
    shutil.copytree(pristine, tmp_path / "code", copy_function=lambda a, b: Path(b).hardlink_to(a))
    return tmp_path / "code"


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} has no {old!r}"
    path.unlink()
    path.write_text(text.replace(old, new, 1))


def edit_operator(paths: Iterable[Path]) -> None:
    """Turn the first plus of code into a minus."""
    for path in sorted(paths):
        found = re.search(
            r"^ +[^/#\"\n]* [=(] ?[^/#\"\n]* \+ [^#\"\n]*$", path.read_text(), re.MULTILINE
        )
        if found:
            edit(path, found.group(), found.group().replace(" + ", " - ", 1))
            return
    raise AssertionError("no plus")


def origins(root: Path, make_run: MakeRun) -> dict[str, Origin]:
    """Of a pretraining cell with each optimizer, of a memory cell, and of one on images."""
    found = Origins(root)
    answers = {name: found.of(make_run(name), "data") for name in OPTIMIZERS}
    answers["memory"] = found.of(make_run(task={"kind": "memory"}), "data")
    run = make_run(task={"kind": "classify"})
    data = from_dict(type(run.data), load_group("data", "digits"))
    model = from_dict(type(run.model), load_group("model", "vit_digits"))
    answers["images"] = found.of(dataclasses.replace(run, data=data, model=model), "data")
    return answers


def changed(tree: Path, before: dict[str, Origin], make_run: MakeRun) -> dict[str, list[str]]:
    """The parts that changed, by what was asked for above."""
    after = origins(tree, make_run)
    return {
        name: parts
        for name, origin in after.items()
        if (
            parts := [part for part, mark in origin.code.items() if before[name].code[part] != mark]
        )
    }


@pytest.fixture
def before(pristine: Path, make_run: MakeRun) -> dict[str, Origin]:
    return origins(pristine, make_run)


def test_new_files_and_wording_change_nothing(
    tree: Path, before: dict[str, Origin], make_run: MakeRun
) -> None:
    new = (tree / "harness/optimizers/adamw.py").read_text().replace('"adamw"', '"mine"')
    (tree / "harness/optimizers/mine.py").write_text(new)
    (tree / "harness/tasks/mine.py").write_text("READS = frozenset()\n")
    (tree / "harness/data/sources/mine.py").write_text('KIND = "texts"\n')
    (tree / "constraints.txt").write_text("# a comment\n")
    edit(tree / "harness/train/loop.py", '"""', '"""Said better: ')
    edit(tree / "harness/optimizers/adamw.py", "\nfrom", "\n# a comment\nfrom")
    for path in [*tree.glob("harness/trackers/*.py"), *tree.glob("harness/cli/*.py")]:
        edit(path, '"""', 'SPARE = 1\n"""')
    for path in [*tree.glob("harness/study/*.py"), *tree.glob("harness/planner/*.py")]:
        edit(path, '"""', 'SPARE = 1\n"""')
    kernel = next(tree.glob("gefen/**/*.cpp"))
    edit(kernel, "\n", "\n// a comment\n")
    assert changed(tree, before, make_run) == {}


def test_a_kernel_changes_gefen_and_nothing_else(
    tree: Path, before: dict[str, Origin], make_run: MakeRun
) -> None:
    edit_operator(tree.glob("gefen/**/*.cpp"))
    assert changed(tree, before, make_run) == {"gefen": ["optimizer"]}


def test_a_python_operator_of_gefen_changes_gefen_and_nothing_else(
    tree: Path, before: dict[str, Origin], make_run: MakeRun
) -> None:
    edit_operator(tree.glob("gefen/**/*.py"))
    assert changed(tree, before, make_run) == {"gefen": ["optimizer"]}


def test_an_optimizer_changes_its_own_cells(
    tree: Path, before: dict[str, Origin], make_run: MakeRun
) -> None:
    edit(tree / "harness/optimizers/galore.py", "import math", "import cmath as math")
    assert changed(tree, before, make_run) == {"galore": ["optimizer"]}


def test_what_optimizers_share_changes_them_all_and_no_core(
    tree: Path, before: dict[str, Origin], make_run: MakeRun
) -> None:
    path = tree / "harness/optimizers/groups.py"
    text = path.read_text()
    path.unlink()
    path.write_text(text + "\nSPARE = 1\n")
    assert changed(tree, before, make_run) == {name: ["optimizer"] for name in before}


@pytest.mark.parametrize(
    ("file", "names", "part"),
    [
        ("harness/train/setup.py", {*OPTIMIZERS, "memory", "images"}, "core"),
        ("harness/meters/memory.py", {*OPTIMIZERS, "memory", "images"}, "core"),
        ("harness/meters/energy.py", {*OPTIMIZERS, "images"}, "core"),
        ("harness/worker/main.py", {*OPTIMIZERS, "memory", "images"}, "core"),
        ("harness/train/loop.py", {*OPTIMIZERS, "images"}, "core"),
        ("harness/tasks/memory.py", {"memory"}, "core"),
        ("harness/data/texts.py", {*OPTIMIZERS, "memory"}, "data"),
        ("harness/data/images.py", {"images"}, "data"),
        ("harness/tasks/finetune.py", set(), ""),
        ("harness/data/pairs.py", set(), ""),
    ],
)
def test_code_of_the_run_changes_the_cells_that_execute_it(
    tree: Path, before: dict[str, Origin], make_run: MakeRun, file: str, names: set[str], part: str
) -> None:
    text = (tree / file).read_text()
    (tree / file).unlink()
    (tree / file).write_text(text + "\nSPARE = 1\n")
    assert changed(tree, before, make_run) == {name: [part] for name in names}


def test_libraries_are_those_that_the_optimizer_imports(before: dict[str, Origin]) -> None:
    base = {"torch", "transformers", "accelerate", "numpy"}
    assert set(before["adamw"].libraries) == set(before["gefen"].libraries) == base
    assert set(before["galore"].libraries) == {*base, "pytorch_optimizer"}
    installed = importlib.metadata.version("pytorch-optimizer")
    assert before["galore"].libraries["pytorch_optimizer"] == installed
    assert "+" not in before["adamw"].libraries["torch"]
    assert versions(["no_such_package"]) == {}
    assert versions(["yaml"]) == {"yaml": importlib.metadata.version("PyYAML")}


def test_lora_and_weights_count_where_they_are_used(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    lora = dataclasses.replace(run, model=dataclasses.replace(run.model, lora_rank=4))
    assert "peft" in Origins().of(lora, "data").libraries
    marks = []
    for content in (b"one", b"two"):
        folder = tmp_path / content.decode()
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_bytes(content)
        model = dataclasses.replace(run.model, path=str(folder))
        marks.append(Origins().of(dataclasses.replace(run, model=model), "data").weights)
    assert marks[0] != marks[1]
