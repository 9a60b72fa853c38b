"""The GPU check as far as a machine without a GPU can check it: everything but the device."""

import itertools
import json
import math
import os
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness import gpu_check, store
from harness.gpu import common, convergence, intervals, kernels, memory, speed, step_timing
from harness.groups import load_group
from harness.provenance import project_root
from harness.schema import PRECISIONS, to_dict, validate

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


def tiny_settings(precision: str, **values: Any) -> step_timing.StepSettings:
    defaults: dict[str, Any] = {
        "model": TINY,
        "vocab_size": 256,
        "warmup_steps": 2,
        "timed_rounds": 5,
        "copy_bytes": 1 << 20,
    }
    return speed.speed_settings(precision, "cpu", **{**defaults, **values})


# --- no device ---------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [*gpu_check.PARTS, "all"])
def test_without_cuda_one_sentence_and_code_3(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_check.main(["--part", part, "--output", str(tmp_path / "out")]) == 3
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
    assert gpu_check.parse([]).output == Path("/somewhere")
    monkeypatch.delenv("OUT")
    assert gpu_check.parse([]).output == ROOT / "runs" / "gpu_check"


def test_missing_data_is_a_mistake(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "cuda_problem", lambda: None)
    assert gpu_check.main(["--data", str(tmp_path / "no")]) == 2
    assert "does not exist" in capsys.readouterr().err


# --- configurations ----------------------------------------------------------------------------


def test_memory_cells_are_gpt2_in_three_precisions(tmp_path: Path) -> None:
    configs = memory.memory_configs(tmp_path, common.text_data(tmp_path))
    found = {(c.optimizer.name, c.precision) for c in configs}
    assert found == {(name, p) for name in ("adamw", "gefen") for p in PRECISIONS}
    for config in configs:
        validate(config)
        assert (config.model.name, config.task.kind) == ("gpt2_124m", "memory")
        assert (config.tracker.name, config.device) == ("none", "cuda")


def test_convergence_cells_are_paired(tmp_path: Path) -> None:
    configs = convergence.convergence_configs(tmp_path, common.text_data(tmp_path))
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
    from harness.models import meta_shapes
    from harness.schema import ModelConfig, from_dict

    shapes = meta_shapes(from_dict(ModelConfig, convergence.MODEL), 257)
    count = sum(math.prod(spec.shape) for spec in shapes)
    assert 28e6 < count < 36e6


def test_standard_library_text_is_bounded_and_free_of_tests(tmp_path: Path) -> None:
    folder = common.standard_library_text(tmp_path / "text", limit=300_000)
    files = list(folder.iterdir())
    assert len(files) > 5
    assert 100_000 < sum(file.stat().st_size for file in files) <= 300_000
    assert not any("site-packages" in f.name or "__tests__" in f.name for f in files)


# --- cells, end to end, without the packages that the GPU machine lacks -------------------------

BARE = """
import sys
from pathlib import Path
from harness.gpu import common, convergence, memory
from harness.cells import run_cell
work, model = Path(sys.argv[1]), {model!r}
data = common.text_data(common.standard_library_text(work / "text", limit=200_000))
memory.memory_configs(work, data)
convergence.convergence_configs(work, data)
small = dict(seq_len=32, micro_batch=2, device="cpu", threads=1, precision="fp32")
task = {{"kind": "pretrain", "steps": 4, "warmup_steps": 1, "eval_every_steps": 2,
         "eval_tokens": 256, "checkpoint_every_steps": 0}}
configs = [common.cell_config("s", "gefen", model, task, data, work, **small)]
run = lambda config: run_cell(config, progress=False)
records = common.run_cells(configs, common.Deadline(120), print, run)
print(convergence.summarize_convergence(records)[1])
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
    records = [store.read_record(path.parent) for path in work.glob("s/cells/*/record.json")]
    assert [r.status for r in records] == ["done"]
    assert "| gefen | 0 | done |" in done.stdout


def test_cells_stop_when_the_time_is_over(tmp_path: Path) -> None:
    configs = memory.memory_configs(tmp_path, common.text_data(tmp_path))[:2]
    said: list[str] = []
    records = common.run_cells(
        configs, common.Deadline(-1), said.append, lambda _: pytest.fail("ran")
    )
    assert records == []
    assert "out of time: 2 of 2 cells not run" in said[0]


# --- speed -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4, 7])
def test_turns_are_balanced_in_place_and_predecessor(count: int) -> None:
    """A rotation gave each candidate the same predecessor in every round but one."""
    rounds = 2 * count * (1 + count % 2)  # two whole blocks
    orders = step_timing.turns(count, rounds, seed=5)
    assert all(sorted(order) == list(range(count)) for order in orders)
    places = Counter((place, name) for order in orders for place, name in enumerate(order))
    assert set(places.values()) == {rounds // count}
    follows = Counter(pair for order in orders for pair in itertools.pairwise(order))
    assert set(follows.values()) == {rounds // count}
    assert len(follows) == count * (count - 1)
    assert orders == step_timing.turns(count, rounds, seed=5)
    assert count == 2 or orders != step_timing.turns(count, rounds, seed=6)
    assert step_timing.turns(count, 1, seed=5) == orders[:1]


def test_rounds_are_interleaved_in_a_drawn_order() -> None:
    order: list[str] = []
    arms = [
        step_timing.Arm(name, SimpleNamespace(step=lambda n=name: order.append(n)), [])  # type: ignore[arg-type]
        for name in "abc"
    ]
    step_timing.run_rounds(arms, torch.device("cpu"), warmup=2, rounds=4)
    rounds = ["".join(order[i : i + 3]) for i in range(0, len(order), 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    expected = [*step_timing.turns(3, 2, seed=0), *step_timing.turns(3, 4, seed=1)]
    assert rounds == ["".join("abc"[index] for index in order) for order in expected]
    assert [(len(a.warmup_seconds), len(a.seconds)) for a in arms] == [(2, 4)] * 3


@pytest.mark.parametrize(("precision", "adamw_floor"), [("fp32", 28), ("bf16_pure", 14)])
def test_measure_counts_bytes_and_times_every_candidate(precision: str, adamw_floor: int) -> None:
    result = step_timing.measure(tiny_settings(precision))
    assert set(result["candidates"]) == {*speed.ADAMW_MODES, "gefen"}
    count = result["parameters"]
    for name, entry in result["candidates"].items():
        assert len(entry["step_seconds"]) == 5
        assert entry["parameters_finite"]
        assert 0 < entry["roofline_percent"] < 100
        if name != "gefen":
            # 28 or 14 bytes a parameter and the step counters, 4 bytes a tensor, read and written.
            assert 0 <= entry["bytes_moved"] - adamw_floor * count <= 8 * 40
    assert result["copy_bytes_per_second"] > 1e7


def test_candidates_share_gradients_and_start_equal() -> None:
    arms = step_timing.build_arms(tiny_settings("fp32"))
    first = arms[0]
    for arm in arms[1:]:
        for own, other in zip(first.parameters, arm.parameters, strict=True):
            assert torch.equal(own, other)
            assert own.data_ptr() != other.data_ptr()
            assert own.grad is not None
            assert other.grad is not None
            assert own.grad.data_ptr() == other.grad.data_ptr()
    modes = [(a.optimizer.defaults["fused"], a.optimizer.defaults["foreach"]) for a in arms[:3]]
    assert modes == [(True, False), (False, True), (False, False)]


def test_a_candidate_that_changes_the_gradients_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(arms: list[step_timing.Arm], *_: Any) -> None:
        arms[-1].parameters[0].grad.add_(1)  # type: ignore[union-attr]

    monkeypatch.setattr(step_timing, "run_rounds", spoil)
    with pytest.raises(RuntimeError, match="changed the gradients"):
        step_timing.measure(tiny_settings("fp32"))


def test_speed_processes_on_cpu(tmp_path: Path) -> None:
    """Real processes on a tiny model: one precision works, the other fails and fails the part."""

    def half_broken(precision: str) -> step_timing.StepSettings:
        broken = {"candidates": {"gefen": {"name": "none_such"}}}
        return tiny_settings(precision, **(broken if precision == "bf16_pure" else {}))

    result = speed.run_speed(tmp_path, common.Deadline(200), lambda _: None, half_broken, 1)
    assert not result.ok
    assert result.facts["failed_processes"] == 1
    assert "none_such" in (tmp_path / "process_0_bf16_pure.log").read_text()
    assert set(result.facts["precisions"]) == {"fp32"}, (
        tmp_path / "process_0_fp32.log"
    ).read_text()
    assert result.markdown.count("| adamw_fused |") == 1


def fake_process(settings: step_timing.StepSettings, stem: Path, timeout: float) -> dict[str, Any]:
    """A result in which AdamW takes twice Gefen's time, up to a few per cent by process."""
    noise = 1 + 0.01 * int(stem.name.split("_")[1])
    entry = {"first_step_seconds": 1.0, "roofline_percent": 50.0, "bytes_moved": 28}
    entry["optimizer_state_bytes"] = 8
    candidates = {
        name: {**entry, "step_median_seconds": 0.001 if name == "gefen" else 0.002 * noise}
        for name in settings.candidates
    }
    return {"copy_bytes_per_second": 1e9, "candidates": candidates}


def test_speed_part_compares_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "run_process", fake_process)
    result = speed.run_speed(tmp_path, common.Deadline(60), lambda _: None)
    assert result.ok
    for precision in speed.PRECISIONS:
        table = result.facts["precisions"][precision]
        assert table["processes"] == speed.PROCESSES >= 5
        assert table["candidates"]["gefen"]["ratio_to_subject"] == pytest.approx(1)
        low, high = table["candidates"]["adamw_loop"]["ratio_interval_95"]
        assert 2.0 < low < 2.04 < high < 2.08
    result.write(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["ok"] is True


def test_speed_part_that_runs_out_of_time_is_not_ok(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "run_process", fake_process)
    said: list[str] = []
    result = speed.run_speed(tmp_path, common.Deadline(-1), said.append)
    assert not result.ok
    assert "out of time after 0 of 10" in said[0]


def test_settings_survive_json() -> None:
    settings = speed.speed_settings("bf16_pure")
    assert step_timing.StepSettings(**json.loads(json.dumps(asdict(settings)))) == settings
    assert settings.warmup_steps >= 10
    assert settings.timed_rounds >= 20
    assert settings.model == load_group("model", "gpt2_124m")


@pytest.mark.parametrize("count", [2, 3, 5, 31, 32, 100])
def test_t_interval_equals_scipy(count: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    values = [math.sin(7 * i) for i in range(count)]
    mean, error = sum(values) / count, stats.sem(values)
    expected = stats.t.interval(0.95, count - 1, loc=mean, scale=error)
    assert intervals.t_interval(values) == pytest.approx(expected, rel=2e-4, abs=1e-5)


def test_ratio_interval_is_symmetric_in_logs() -> None:
    ratio, low, high = intervals.ratio_interval([2.0, 2.2, 1.8], [1.0, 1.0, 1.0])
    assert ratio == pytest.approx((2.0 * 2.2 * 1.8) ** (1 / 3))
    assert low * high == pytest.approx(ratio**2)
    assert intervals.ratio_interval([2.0], [1.0]) == (2.0, 0.0, math.inf)


# --- summaries, archive, kernels ---------------------------------------------------------------


def record(optimizer: str, status: str = "done", **values: Any) -> store.Record:
    config = {"optimizer": {"name": optimizer}, "precision": "fp32", "seed": values.pop("seed", 0)}
    return store.Record("i", "s", "p", "l", status, config=config, metrics=values)


def test_memory_summary_divides_counted_bytes() -> None:
    records = [record("adamw", optimizer_state_bytes=8000), record("gefen", "oom")]
    assert memory.summarize_memory(records)[0] == {"state_ratio": {}}
    records.append(record("gefen", optimizer_state_bytes=1000))
    facts, page = memory.summarize_memory(records)
    assert facts == {"state_ratio": {"fp32": 8.0}}
    assert "| gefen | fp32 | oom |" in page
    assert "8.000" in page


def test_convergence_summary_uses_whole_pairs() -> None:
    losses = {("adamw", 0): 2.0, ("gefen", 0): 2.1, ("adamw", 1): 2.2, ("gefen", 1): 2.1}
    records = [record(n, seed=s, final_eval_loss=v) for (n, s), v in losses.items()]
    records.append(record("adamw", "timeout", seed=2))
    facts, page = convergence.summarize_convergence(records)
    assert facts["paired_seeds"] == [0, 1]
    assert facts["mean_difference"] == pytest.approx(0.0, abs=1e-12)
    assert "No verdict" in page
    assert convergence.summarize_convergence([])[0]["final_loss_differences"] == []


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
    monkeypatch.setattr(gpu_check.provenance, "project_root", lambda: tmp_path)
    monkeypatch.setattr(gpu_check, "cuda_problem", lambda: None)

    def runner(part: str, *_: Any) -> Any:
        if part == "speed":
            return lambda: 1 / 0
        return lambda: common.PartResult(part, True, {"answer": 42}, f"# {part}\n")

    monkeypatch.setattr(gpu_check, "_runner", runner)
    assert gpu_check.main(["--part", "all", "--output", str(tmp_path / "out")]) == 1
    with tarfile.open(tmp_path / "out" / "gefen_gpu_check_all.tar.gz") as archive:
        names = set(archive.getnames())
        facts = json.load(archive.extractfile("kernels/summary.json"))  # type: ignore[arg-type]
        error = archive.extractfile("speed/error.txt").read()  # type: ignore[union-attr]
    assert {f"{part}/summary.json" for part in gpu_check.PARTS} <= names
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
    assert "test_gpu_kernels.py" in found


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
