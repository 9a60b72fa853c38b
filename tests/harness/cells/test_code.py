"""Fingerprints of code on small trees of files, written by the tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cells.code import CodeChanged, Tree, check_code
from harness.errors import UserError

FILES = {
    "gefen/__init__.py": "from gefen.optimizer import Gefen\n",
    "gefen/optimizer.py": "class Gefen: pass\n",
    "gefen/unnamed.py": "a = 1\n",
    "gefen/paper.py": "class Paper: pass\n",
    "gefen/cpu/kernel.cpp": "int f(int a) { return a + 1; }\n",
    "harness/__init__.py": "",
    "harness/config/__init__.py": "a = 1\n",
    "harness/worker.py": (
        "def main():\n    from harness.train import loop\n    import harness.meter\n"
    ),
    "harness/meter.py": "import json\nimport psutil\n",
    "harness/train/__init__.py": "import harness.unused\n",
    "harness/train/loop.py": (
        "from typing import TYPE_CHECKING\nfrom harness.config import a\n"
        "from harness.optimizers import find\n"
        "if TYPE_CHECKING:\n    from harness.unused import a\n"
    ),
    "harness/unused.py": "a = 1\n",
    "harness/optimizers/__init__.py": (
        "from harness.optimizers import ours, theirs\ndef find(): return [ours, theirs]\n"
    ),
    "harness/optimizers/shared.py": "a = 1\n",
    "harness/optimizers/ours.py": (
        "import harness.optimizers.shared\ndef build():\n    from gefen import Gefen\n"
    ),
    "harness/optimizers/theirs.py": "from torch.optim import AdamW\n",
    "harness/optimizers/derived.py": "from harness.optimizers import theirs\n",
    "harness/optimizers/paper.py": "from gefen.paper import Paper\n",
}
FOUND = {f"harness.optimizers.{name}" for name in ("ours", "theirs", "derived", "paper")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_imports_are_followed_inside_functions_and_not_for_type_checkers(root: Path) -> None:
    assert Tree(root).closure(["harness.worker"], FOUND) == {
        "harness/worker.py",
        "harness/meter.py",
        "harness/train/loop.py",
        "harness/optimizers/__init__.py",
    }


def test_an_optimizer_is_its_file_and_what_that_imports(root: Path) -> None:
    tree = Tree(root)

    def closure(name: str) -> set[str]:
        return tree.closure([f"harness.optimizers.{name}"], FOUND)

    gefen = {name for name in FILES if name.startswith("gefen/")}
    files = {"harness/optimizers/ours.py", "harness/optimizers/shared.py"}
    assert closure("ours") == files | gefen  # also files that nothing names, and C++
    assert closure("theirs") == {"harness/optimizers/theirs.py"}
    assert closure("derived") == {f"harness/optimizers/{n}.py" for n in ("derived", "theirs")}
    assert closure("paper") == {"harness/optimizers/paper.py", "gefen/paper.py"}
    assert tree.libraries(closure("theirs")) == {"torch"}
    assert tree.libraries(tree.closure(["harness.worker"], FOUND)) == {"psutil"}


PYTHON = '''"""A docstring."""
import math

def f(a: int) -> float:
    """Another."""
    # a comment
    return math.sqrt(a) + 1  # beside code

class C:
    """And one."""
    x = "text"
'''
CPP = """// a comment
#include <cmath>
#define TWICE(a) \\
  ((a) * 2)
/* of two
   lines */
static const char* name = "a // b";
float f(float a) {
  return a + 1;  // beside code
}
"""


def meaning(folder: Path, name: str, text: str) -> str:
    path = folder / "harness" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return Tree(folder).read(f"harness/{name}").meaning


@pytest.mark.parametrize(
    ("name", "text", "old", "new"),
    [
        ("a.py", PYTHON, '"""A docstring."""\n', ""),
        ("b.py", PYTHON, "Another.", "Other words: a + b."),
        ("c.py", PYTHON, "    # a comment\n", "\n\n"),
        ("d.py", PYTHON, "  # beside code", ""),
        ("e.py", PYTHON, "math.sqrt(a) + 1", "(math.sqrt(a)  +  1)"),
        ("a.cpp", CPP, "// a comment", "// another"),
        ("b.cpp", CPP, "/* of two\n   lines */", ""),
        ("c.cpp", CPP, "  return a + 1;  // beside code", "    return a\n + 1;"),
        ("d.cpp", CPP, "\\\n  ((a)", "((a)"),
    ],
)
def test_wording_and_layout_keep_a_fingerprint(
    tmp_path: Path, name: str, text: str, old: str, new: str
) -> None:
    assert old in text
    assert meaning(tmp_path, name, text.replace(old, new)) == meaning(tmp_path, f"0{name}", text)


@pytest.mark.parametrize(
    ("name", "text", "old", "new"),
    [
        ("a.py", PYTHON, "+ 1", "- 1"),
        ("b.py", PYTHON, "+ 1", "+ 1.0"),
        ("c.py", PYTHON, '"text"', '"other"'),
        ("d.py", PYTHON, "a: int)", "a: int = 0)"),
        ("e.py", PYTHON, "import math", "import cmath as math"),
        ("a.cpp", CPP, "a + 1", "a - 1"),
        ("b.cpp", CPP, '"a // b"', '"a // c"'),
        ("c.cpp", CPP, "* 2)", "* 3)"),
        ("d.cpp", CPP, "#include <cmath>\n", ""),
    ],
)
def test_one_operator_or_value_changes_a_fingerprint(
    tmp_path: Path, name: str, text: str, old: str, new: str
) -> None:
    assert old in text
    assert meaning(tmp_path, name, text.replace(old, new)) != meaning(tmp_path, f"0{name}", text)


@pytest.fixture
def stamps(root: Path) -> Callable[[], dict[str, str]]:
    tree = Tree(root)
    return lambda: {
        file: tree.read(file).stamp for file in tree.closure(["harness.optimizers.ours"], FOUND)
    }


def test_a_comment_after_planning_passes_and_a_change_is_named(
    root: Path, stamps: Callable[[], dict[str, str]]
) -> None:
    planned = stamps()
    check_code(planned, root)
    kernel = root / "gefen/cpu/kernel.cpp"
    kernel.write_text("// said better\n" + FILES["gefen/cpu/kernel.cpp"])
    (root / "harness/unused.py").write_text("a = 2\n")
    check_code(planned, root)
    kernel.write_text(FILES["gefen/cpu/kernel.cpp"].replace("+", "-"))
    with pytest.raises(
        CodeChanged, match=r"^gefen/cpu/kernel\.cpp changed after .* planned; [^.]*"
    ):
        check_code(planned, root)
    kernel.unlink()
    with pytest.raises(CodeChanged, match="kernel"):
        check_code(planned, root)


def test_a_file_that_is_being_edited_is_one_sentence(
    root: Path, stamps: Callable[[], dict[str, str]]
) -> None:
    planned = stamps()
    (root / "harness/optimizers/shared.py").write_text("def f(:\n")
    with pytest.raises(UserError, match=r"shared\.py:1 has a syntax error"):
        stamps()
    with pytest.raises(CodeChanged, match=r"shared\.py changed"):
        check_code(planned, root)
