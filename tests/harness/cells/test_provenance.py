"""Provenance: stable code hash, git state through `git -C`, the processor from /proc/cpuinfo."""

import json
import platform
import subprocess
from pathlib import Path

import pytest

from harness.cells import provenance


def make_tree(root: Path) -> Path:
    for name, text in {
        "gefen/__init__.py": "a = 1\n",
        "gefen/updates/reference.py": "b = 2\n",
        "harness/__init__.py": "",
        "harness/worker/main.py": "c = 3\n",
        "reports/page/page.py": "d = 4\n",
        "constraints.txt": "torch==2.13.0\n",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_code_hash_depends_on_content_and_names_only(tmp_path: Path) -> None:
    first, second = make_tree(tmp_path / "one"), make_tree(tmp_path / "two")
    original = provenance.code_hash(first)
    assert original == provenance.code_hash(first) == provenance.code_hash(second)
    assert len(original) == 64
    assert int(original, 16) >= 0
    seen = {original}
    changes = [
        ("gefen/updates/reference.py", "b = 2 \n"),
        ("harness/worker/main.py", "c = 4\n"),
        ("harness/meters/new.py", ""),
    ]
    for name, text in changes:
        (second / name).parent.mkdir(exist_ok=True)
        (second / name).write_text(text)
        seen.add(provenance.code_hash(second))
    (second / "harness/worker/main.py").rename(second / "harness/worker_two.py")
    seen.add(provenance.code_hash(second))
    assert len(seen) == len(changes) + 2


def test_code_hash_ignores_reports_and_other_files(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    before = provenance.code_hash(root)
    (root / "reports/page/page.py").write_text("changed\n")
    (root / "harness/notes.md").write_text("text\n")
    (root / "constraints.txt").write_text("torch==2.13.1\n")
    assert provenance.code_hash(root) == before


def test_moving_bytes_between_files_changes_the_hash(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    before = provenance.code_hash(root)
    (root / "gefen/__init__.py").write_text("")
    (root / "gefen/updates/reference.py").write_text("a = 1\nb = 2\n")
    assert provenance.code_hash(root) != before


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.invalid"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_git_state_follows_the_repository(tmp_path: Path) -> None:
    root = make_tree(tmp_path)
    assert provenance.git_state(root) == (None, None)
    git(root, "init", "-q")
    assert provenance.git_state(root) == (None, True)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "one")
    commit = git(root, "rev-parse", "HEAD")
    assert provenance.git_state(root) == (commit, False)
    (root / "gefen/__init__.py").write_text("a = 5\n")
    assert provenance.git_state(root) == (commit, True)
    # Installed inside somebody else's repository: their commit says nothing about this code.
    inside = make_tree(root / "site-packages")
    assert provenance.git_state(inside) == (None, None)


def test_absent_git_is_null(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_state() == (None, None)


def test_cpu_model(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 1\nmodel name\t: Some CPU @ 2.5GHz\n")
    assert provenance.cpu_model(cpuinfo) == "Some CPU @ 2.5GHz"
    fallback = platform.processor() or platform.machine()
    assert provenance.cpu_model(tmp_path / "absent") == fallback


def test_collect_is_complete_and_json(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = provenance.collect("gefen-bench x=1", "cpu", "data", "code")
    assert json.loads(json.dumps(facts)) == facts
    keys = (
        "started_utc finished_utc command git_commit git_dirty code_hash data_hash device"
        " device_name cpu_model cpu_cores threads ram_bytes os python packages"
    )
    assert set(facts) == set(keys.split())
    assert facts["python"] == platform.python_version()
    assert (facts["data_hash"], facts["code_hash"]) == ("data", "code")
    assert facts["packages"]["numpy"].count(".") >= 1
    total = next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemTotal")
    )
    assert facts["ram_bytes"] == pytest.approx(total, rel=0.01)
