"""The registry finds files by itself: the example of the README, in a copy of the tree."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from harness import optimizers

ROOT = Path(__file__).parents[3]
README = ROOT / "harness/optimizers/README.md"
TESTS = "tests/harness/optimizers/test_optimizers.py"


def test_adamw_comes_first_then_names_in_order() -> None:
    names = list(optimizers.entries())
    assert names[0] == "adamw"
    assert names[1:] == sorted(names[1:])
    assert {"gefen", "lion8bit", "gefen_ablation"} <= set(names)
    assert not set(names) & set(optimizers.instruments())


def test_the_code_of_an_optimizer_is_its_file_and_its_implementation() -> None:
    apollo = ["harness.optimizers.apollo", "harness.optimizers.implementations.apollo"]
    assert optimizers.code("apollo_mini") == apollo
    assert optimizers.code("gefen") == ["harness.optimizers.gefen", "gefen"]
    assert "harness.research.optimizers.planted" in optimizers.code("planted_slow")


def test_the_example_of_the_readme_is_found_and_passes_every_test(tmp_path: Path) -> None:
    """One file and one YAML are all that differs; a new process, which imports from the copy."""
    copied = shutil.ignore_patterns("__pycache__")
    for name in ("harness", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=copied)
    (tmp_path / TESTS).parent.mkdir(parents=True)
    shutil.copy(ROOT / TESTS, tmp_path / TESTS)
    blocks = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", README.read_text(), re.DOTALL)
    assert [path for path, _ in blocks] == [
        "harness/optimizers/radam.py",
        "configs/optimizer/radam.yaml",
    ]
    for path, text in blocks:
        assert not (tmp_path / path).exists()
        (tmp_path / path).write_text(text)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", TESTS),
            *("--import-mode=importlib", "-k", "radam or every_entry_has"),
        ],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    # Two models in two dtypes are counted; one is trained, one resumed in both; the config.
    assert re.search(r"^8 passed, \d+ deselected", done.stdout, re.MULTILINE), done.stdout
