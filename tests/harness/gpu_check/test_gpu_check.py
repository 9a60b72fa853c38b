"""The GPU check as far as a machine without a GPU can check it: everything but the device."""

import json
import math
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cells import store
from harness.cells.provenance import project_root
from harness.config import PRECISIONS, to_dict, validate
from harness.gpu_check import __main__ as command
from harness.gpu_check import cells, common, kernels

ROOT = project_root()
ABSENT = (
    *("hydra", "omegaconf", "datasets", "wandb", "bitsandbytes", "pytorch_optimizer"),
    *("scipy", "matplotlib", "hypothesis", "jinja2", "statsmodels"),
)
HIDE = f"""
import importlib.machinery as machinery
original = machinery.PathFinder.find_spec
def find_spec(cls, name, path=None, target=None):
    hidden = name.split(".")[0] in {ABSENT!r}
    return None if hidden else original(name, path, target)
machinery.PathFinder.find_spec = classmethod(find_spec)
"""
TINY = {"family": "gpt2", "hidden_size": 32, "layers": 1, "heads": 2, "max_positions": 64}


@pytest.fixture
def bare_environment(tmp_path: Path) -> dict[str, str]:
    """A process environment in which the packages the GPU machine lacks cannot be found."""
    folder = tmp_path / "hide"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HIDE)
    paths = f"{folder}{os.pathsep}{ROOT}"
    return {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}


# --- no device ---------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [*command.PARTS, "all"])
def test_without_cuda_one_sentence_and_code_3(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(["--part", part, "--output", str(tmp_path / "out")]) == 3
    out, error = capsys.readouterr()
    assert out == ""
    assert error.count("\n") == 1
    assert "sees no CUDA device here, so nothing was measured." in error
    assert not (tmp_path / "out").exists()


def test_script_finds_the_code_from_another_folder(
    tmp_path: Path, bare_environment: dict[str, str]
) -> None:
    environment = {**bare_environment, "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = environment["PYTHONPATH"].split(os.pathsep)[0]
    script = ROOT / "scripts" / "gpu_check.sh"
    done = subprocess.run(
        [str(script), "--part", "speed"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert "no CUDA device" in done.stderr
    assert len(script.read_text().splitlines()) < 30


def test_output_defaults_to_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", "/somewhere")
    assert command.parse([]).output == Path("/somewhere")
    monkeypatch.delenv("OUT")
    assert command.parse([]).output == ROOT / "runs" / "gpu_check"


def test_missing_data_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "cuda_problem", lambda: None)
    assert command.main(["--data", str(tmp_path / "no")]) == 2
    assert "does not exist" in capsys.readouterr().err


# --- configurations ----------------------------------------------------------------------------


def test_memory_cells_are_gpt2_in_three_precisions(tmp_path: Path) -> None:
    configs = cells.memory_configs(tmp_path, tmp_path)
    found = {(c.optimizer.name, c.precision) for c in configs}
    assert found == {(name, p) for name in ("adamw", "gefen") for p in PRECISIONS}
    for config in configs:
        validate(config)
        assert (config.model.name, config.task.kind) == ("gpt2_124m", "memory")
        assert (config.tracker.name, config.device) == ("none", "cuda")


def test_convergence_cells_are_paired(tmp_path: Path) -> None:
    configs = cells.convergence_configs(tmp_path, tmp_path)
    assert [(c.optimizer.name, c.seed) for c in configs] == [
        (name, seed) for seed in (0, 1, 2) for name in ("adamw", "gefen")
    ]
    for config in configs:
        validate(config)
    # Apart from optimizer and seed the cells are one and the same.
    rest = []
    for config in configs:
        values = to_dict(config)
        del values["optimizer"], values["seed"]
        rest.append(values)
    assert all(values == rest[0] for values in rest)


def test_convergence_model_has_about_thirty_million_parameters() -> None:
    from harness.config import ModelConfig, from_dict
    from harness.models import meta_shapes

    shapes = meta_shapes(from_dict(ModelConfig, cells.MODEL), 257)
    count = sum(math.prod(spec.shape) for spec in shapes)
    assert 28e6 < count < 36e6


def test_standard_library_text_is_bounded_and_free_of_tests(tmp_path: Path) -> None:
    folder = cells.standard_library_text(tmp_path / "text", limit=300_000)
    files = list(folder.iterdir())
    assert len(files) > 5
    assert 100_000 < sum(file.stat().st_size for file in files) <= 300_000
    assert not any("site-packages" in f.name or "__tests__" in f.name for f in files)


# --- cells, end to end, without the packages that the GPU machine lacks -------------------------

BARE = """
import sys
from pathlib import Path
from harness.gpu_check import cells, common
from harness.study.sweep import run_cell
work, model = Path(sys.argv[1]), {model!r}
text = cells.standard_library_text(work / "text", limit=200_000)
cells.memory_configs(work, text)
cells.convergence_configs(work, text)
small = dict(seq_len=32, micro_batch=2, device="cpu", threads=1, precision="fp32")
task = {{"kind": "pretrain", "steps": 4, "warmup_steps": 1, "eval_every_steps": 2,
         "eval_tokens": 256, "checkpoint_every_steps": 0}}
configs = [cells.cell_config("s", "gefen", model, text, work, task=task, **small)]
run = lambda config: run_cell(config, progress=False)
records = cells.run_cells(configs, common.Deadline(120), print, run)
print(cells.summarize_convergence(records)[1])
for name in {absent!r}:
    assert name not in sys.modules, name
sys.exit([r.error for r in records if r.status != "done"] or 0)
"""


def test_cells_run_without_the_optional_packages(
    tmp_path: Path, bare_environment: dict[str, str]
) -> None:
    work = tmp_path / "work"
    code = BARE.format(model={**TINY, "name": "tiny"}, absent=ABSENT)
    done = subprocess.run(
        [sys.executable, "-c", code, str(work)],
        cwd=tmp_path,
        env=bare_environment,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    records = [
        store.read_record(path.parent) for path in work.glob("gpu_check_s/cells/*/record.json")
    ]
    assert [r.status for r in records] == ["done"]
    assert "| gefen | 0 | done |" in done.stdout


def test_cells_stop_when_the_time_is_over(tmp_path: Path) -> None:
    configs = cells.memory_configs(tmp_path, tmp_path)[:2]
    said: list[str] = []
    records = cells.run_cells(
        configs, common.Deadline(-1), said.append, lambda _: pytest.fail("ran")
    )
    assert records == []
    assert "out of time: 2 of 2 cells not run" in said[0]


# --- summaries, archive, kernels ---------------------------------------------------------------


def record(optimizer: str, status: str = "done", **values: Any) -> store.Record:
    config = {"optimizer": {"name": optimizer}, "precision": "fp32", "seed": values.pop("seed", 0)}
    return store.Record("i", "s", "p", "l", status, config=config, metrics=values)


def test_memory_summary_divides_counted_bytes() -> None:
    records = [record("adamw", optimizer_state_bytes=8000), record("gefen", "oom")]
    assert cells.summarize_memory(records)[0] == {"state_ratio": {}}
    records.append(record("gefen", optimizer_state_bytes=1000))
    facts, page = cells.summarize_memory(records)
    assert facts == {"state_ratio": {"fp32": 8.0}}
    assert "| gefen | fp32 | oom |" in page
    assert "8.000" in page


def test_convergence_summary_uses_whole_pairs() -> None:
    losses = {("adamw", 0): 2.0, ("gefen", 0): 2.1, ("adamw", 1): 2.2, ("gefen", 1): 2.1}
    records = [record(n, seed=s, final_eval_loss=v) for (n, s), v in losses.items()]
    records.append(record("adamw", "timeout", seed=2))
    facts, page = cells.summarize_convergence(records)
    assert facts["paired_seeds"] == [0, 1]
    assert facts["mean_difference"] == pytest.approx(0.0, abs=1e-12)
    assert "No verdict" in page
    assert cells.summarize_convergence([])[0]["final_loss_differences"] == []


def test_archive_holds_facts_and_leaves_out_caches(tmp_path: Path) -> None:
    work = tmp_path / "memory"
    kept = ["summary.json", "s/cells/a/record.json", "s/cells/a/curve.parquet", "log.txt"]
    for name in [*kept, "cache/data/meta.json", "text/os.txt", "s/cells/a/checkpoint.pt"]:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(name)
    common.write_archive(tmp_path / "out" / "a.tar.gz", [work])
    with tarfile.open(tmp_path / "out" / "a.tar.gz") as archive:
        assert sorted(archive.getnames()) == sorted(f"memory/{name}" for name in kept)


def test_check_archives_after_every_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A part that fails unexpectedly is reported, archived, and does not stop the others."""
    monkeypatch.setattr(command.provenance, "project_root", lambda: tmp_path)
    monkeypatch.setattr(command, "cuda_problem", lambda: None)

    def runner(part: str, *_: Any) -> Any:
        if part == "speed":
            return lambda: 1 / 0
        return lambda: common.PartResult(part, True, {"answer": 42}, f"# {part}\n")

    monkeypatch.setattr(command, "_runner", runner)
    assert command.main(["--part", "all", "--output", str(tmp_path / "out")]) == 1
    with tarfile.open(tmp_path / "out" / "gefen_gpu_check_all.tar.gz") as archive:
        names = set(archive.getnames())
        facts = json.load(archive.extractfile("kernels/summary.json"))  # type: ignore[arg-type]
        error = archive.extractfile("speed/error.txt").read()  # type: ignore[union-attr]
    assert {f"{part}/summary.json" for part in command.PARTS} <= names
    assert (facts["ok"], facts["answer"]) == (True, 42)
    assert facts["provenance"]["device"] == "cuda"
    assert b"ZeroDivisionError" in error
    assert "speed: FAILED" in capsys.readouterr().out


def test_only_files_with_gpu_tests_are_collected(tmp_path: Path) -> None:
    folder = tmp_path / "tests" / "area"
    folder.mkdir(parents=True)
    mark = "@pytest." + kernels.MARK
    (folder / "test_with.py").write_text(f"import pytest\n{mark}\ndef test_a(): pass\n")
    (folder / "test_without.py").write_text("import no_such_package\n")
    assert kernels.gpu_test_files(tmp_path) == [folder / "test_with.py"]
    found = {path.name for path in kernels.gpu_test_files(ROOT)}
    assert "test_kernels.py" in found


@pytest.mark.parametrize(("body", "ok"), [("pass", True), ("assert 0", False)])
def test_kernels_part_runs_marked_tests_only(
    body: str, ok: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, work = tmp_path / "project", tmp_path / "work"
    (project / "tests").mkdir(parents=True)
    work.mkdir()
    mark = "@pytest." + kernels.MARK
    text = f"import pytest\n{mark}\ndef test_a(): {body}\ndef test_b(): assert 0\n"
    (project / "tests" / "test_it.py").write_text(text)
    monkeypatch.setattr(kernels, "project_root", lambda: project)
    result = kernels.run_kernels(work, common.Deadline(60))
    assert result.ok is ok, (work / "pytest.log").read_text()
    assert result.facts["tests"] == 1
    assert result.facts["failures"] == (not ok)


def test_skipped_gpu_tests_are_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = tmp_path / "work"
    (tmp_path / "tests").mkdir()
    work.mkdir()
    mark = "@pytest." + kernels.MARK
    text = f"import pytest\n{mark}\ndef test_a(): pytest.skip('none')\n"
    (tmp_path / "tests" / "test_it.py").write_text(text)
    monkeypatch.setattr(kernels, "project_root", lambda: tmp_path)
    assert not kernels.run_kernels(work, common.Deadline(60)).ok
