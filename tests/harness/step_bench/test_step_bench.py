"""gefen-step: what takes part, the tensors, bytes and memory that it counts, and its output."""

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gefen
from harness.config import ModelConfig, OptimizerConfig, from_dict
from harness.config.groups import load_group
from harness.errors import UserError
from harness.meters.memory import optimizer_state_bytes, tensors_bytes
from harness.models import meta_shapes
from harness.optimizers import build_optimizer, entries
from harness.step_bench import arms, clock, document, plan, process, table, worker
from harness.step_bench import command as step_bench
from harness.step_bench.arms import build_arms
from harness.step_bench.plan import StepSettings
from harness.step_bench.process import printed, share_of
from harness.step_bench.summary import failures, summarize_processes

MIB = 2**20
CPU = torch.device("cpu")
TINY = load_group("model", "gpt2_tiny")


def settings(names: list[str], **values: Any) -> StepSettings:
    chosen = plan.choose(names)
    defaults: dict[str, Any] = {
        "model": TINY,
        "candidates": {c.name: c.values for c in chosen},
        "gradient_reads": {c.name: c.gradient_reads for c in chosen},
        "device": "cpu",
        "vocab_size": 256,
        "warmup_steps": 1,
        "timed_rounds": 3,
        "copy_bytes": MIB,
        "evict_bytes": MIB,
        "share_parameters": True,
    }
    return StepSettings(**{**defaults, **values})


# --- candidates --------------------------------------------------------------------------------


def test_every_optimizer_of_the_registry_takes_part() -> None:
    chosen = plan.choose(["all"])
    names = {c.values["name"] for c in chosen}
    assert names == set(entries()) - {"gefen_ablation"}
    assert {c.name for c in plan.choose(["all", "gefen_ablation"])} - {c.name for c in chosen} == {
        "gefen_ablation"
    }
    for candidate in chosen:
        from_dict(OptimizerConfig, candidate.values)


def test_a_candidate_that_is_not_known_is_named() -> None:
    with pytest.raises(UserError, match=r"--optimizer has 'adamq'; allowed: all, adamw_fused"):
        plan.choose(["gefen", "adamq"])


def test_a_factored_second_moment_alone_reads_gradients_twice() -> None:
    parameter = torch.nn.Parameter(torch.zeros(64, 64))
    for candidate in plan.known().values():
        options = candidate.values["options"]
        known = {k: v for k, v in options.items() if k in ("second_moment", "first_moment_bits")}
        factored = candidate.values["name"] in ("gefen", "gefen_ablation") and (
            gefen.Gefen([parameter], **known).defaults["second_moment"] == "factored"
        )
        if candidate.name != "gefen_ablation":
            assert candidate.gradient_reads == (2 if factored else 1), candidate.name


# --- tensors -----------------------------------------------------------------------------------


def test_parameters_have_the_names_and_shapes_of_the_model() -> None:
    config = from_dict(ModelConfig, load_group("model", "llama_tiny"))
    module = arms.build_parameters(
        plan.model_specs(dataclasses.asdict(config), 300), CPU, torch.bfloat16, 0
    )
    found = [(name, tuple(p.shape)) for name, p in module.named_parameters()]
    assert found == [(spec.name, spec.shape) for spec in meta_shapes(config, 300)]
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    gradients = arms.random_gradients(module, 1)
    largest, name = max((p.numel(), name) for name, p in module.named_parameters())
    pair = torch.stack([gradients[name].flatten(), module.get_parameter(name).detach().flatten()])
    assert abs(float(torch.corrcoef(pair.double())[0, 1])) < 5 / math.sqrt(largest)


def test_llama3_8b_has_its_published_size() -> None:
    hidden, inner, keys = 4096, 14336, 8 * 128
    layer = 2 * hidden**2 + 2 * hidden * keys + 3 * hidden * inner + 2 * hidden
    total = 2 * 128256 * hidden + 32 * layer + hidden
    assert total == 8_030_261_248
    assert plan.elements(plan.model_specs(load_group("model", "llama3_8b"), 1)) == total


def test_a_twin_has_every_row_length_and_is_small() -> None:
    specs = plan.model_specs(load_group("model", "gpt2_124m"), 50257)
    small = arms.twin(specs)
    assert {s.shape[1:] for s in small} == {s.shape[1:] for s in specs}
    assert {s.shape for s in small if len(s.shape) == 1} == {
        s.shape for s in specs if len(s.shape) == 1
    }
    assert all(math.prod(s.shape) > 4096 for s in small if len(s.shape) > 1)
    assert plan.elements(small) < plan.elements(specs) / 200


# --- bytes and memory --------------------------------------------------------------------------


def test_the_bytes_of_a_step_follow_from_the_closed_form() -> None:
    by_name = {a.name: a for a in build_arms(settings(["gefen", "gefen_block", "adamw_fused"]))}
    count = sum(p.numel() for p in by_name["gefen"].parameters)
    for name, reads, form in (("gefen", 2, "factored"), ("gefen_block", 1, "block")):
        by_name[name].optimizer.step()
        state = gefen.state_bytes([p.shape for p in by_name[name].parameters], second_moment=form)
        assert by_name[name].bytes_moved(reads) == (8 + 4 * reads) * count + 2 * state
    by_name["adamw_fused"].optimizer.step()
    tensors = len(by_name["gefen"].parameters)
    assert by_name["adamw_fused"].bytes_moved(1) == 28 * count + 8 * tensors


def test_needed_bytes_count_what_is_really_held() -> None:
    names = ["adamw_fused", "gefen", "gefen_4bit"]
    chosen, specs = plan.choose(names), plan.model_specs(TINY, 256)
    configs = [from_dict(OptimizerConfig, c.values) for c in chosen]
    ready = build_arms(settings(names))
    held = tensors_bytes(ready[0].parameters) + sum(
        tensors_bytes([p.grad]) for p in ready[0].parameters if p.grad is not None
    )
    for arm in ready:
        arm.optimizer.step()
        held += optimizer_state_bytes(arm.optimizer)
    count, largest = plan.elements(specs), max(math.prod(s.shape) for s in specs)
    temporary = 4 * count + 12 * largest
    assert plan.needed_bytes(specs, configs, 4, 1000) == held + temporary + 1000


def test_transient_is_the_peak_beyond_what_stays() -> None:
    kept: list[torch.Tensor] = []

    def work() -> str:
        torch.ones(96 * MIB // 4)
        kept.append(torch.ones(32 * MIB // 4))
        return "done"

    answer, size = clock.transient(CPU, work)
    assert answer == "done"
    # 96 MiB at its peak, of which the 32 that stay can hide as many.
    assert 63 * MIB <= size <= 66 * MIB
    _, quiet = clock.transient(CPU, lambda: kept[0].add_(1))
    assert quiet <= 2 * MIB


def test_a_model_is_cut_to_the_whole_layers_that_fit() -> None:
    chosen = plan.choose(["adamw_fused"])
    configs = [from_dict(OptimizerConfig, c.values) for c in chosen]
    values = load_group("model", "gpt2_3m")

    def needed(layers: int) -> int:
        specs = plan.model_specs({**values, "layers": layers}, plan.vocabulary())
        return plan.needed_bytes(specs, configs, 4, plan.buffers("cpu"))

    free = math.ceil((needed(3) + 1000) / plan.USABLE_SHARE)
    (found,), said = plan.plan(["gpt2_3m"], ["fp32"], chosen, "cpu", free)
    assert (found.layers, found.whole_layers, found.whole) == (3, 4, False)
    assert found.group["layers"] == 3
    assert f"3 of 4 layers ({found.parameters:,} of {found.whole_parameters:,}" in said[0]
    (whole,), said = plan.plan(["gpt2_3m"], ["fp32"], chosen, "cpu", 2 * needed(4))
    assert whole.whole
    assert said == []
    none, said = plan.plan(["gpt2_3m"], ["fp32"], chosen, "cpu", needed(1) // 2)
    assert none == []
    assert said[0].startswith("gpt2_3m fp32 is left out: it needs more than")


# --- one process -------------------------------------------------------------------------------


def test_a_candidate_that_fails_is_left_out_or_fails_the_process() -> None:
    given = settings(["adamw_fused"])
    given.candidates["broken"] = {"name": "none_such"}
    with pytest.raises(UserError, match="none_such"):
        worker.measure(given)
    calls: list[str] = []
    found = worker.measure(dataclasses.replace(given, keep_going=True), calls.append)
    assert list(found["candidates"]) == ["adamw_fused"]
    assert "none_such" in found["failed"]["broken"]
    entry = found["candidates"]["adamw_fused"]
    assert len(entry["step_seconds"]) == 3
    assert entry["first_step_transient_bytes"] >= 0
    assert calls == ["adamw_fused"] * (1 + 1 + 3)


def test_building_is_what_a_first_optimizer_takes_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([20.0, 3.0, 2.0, 2.5])
    made: list[torch.optim.Optimizer] = []

    def build(module: torch.nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
        made.append(build_optimizer(module, config))
        return made[-1]

    def timed(device: torch.device, work: Callable[[], Any]) -> float:
        work()
        return next(clock)

    monkeypatch.setattr(arms, "build_optimizer", build)
    monkeypatch.setattr(arms, "timed", timed)
    seconds = [arms.build_code(settings(["adamw_fused"]), "adamw_fused") for _ in range(2)]
    assert seconds == [17.0, 0.0]
    steps = [float(next(iter(o.state.values()))["step"]) for o in made]
    assert steps == [2.0] * 4  # each optimizer begins anew, as the first one did


def test_arms_share_parameters_where_the_settings_say_so() -> None:
    shared, own = (
        build_arms(settings(["adamw_fused", "lion"], share_parameters=share))
        for share in (True, False)
    )
    assert shared[0].parameters[0] is shared[1].parameters[0]
    assert own[0].parameters[0].data_ptr() != own[1].parameters[0].data_ptr()


def test_progress_is_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    call = printed(4)
    for _ in range(5):
        call("gefen")
    shares = [share_of(line) for line in capsys.readouterr().out.splitlines()]
    assert shares == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert [share_of(line) for line in ("warning", "progress", "progress report")] == [None] * 3


@pytest.mark.parametrize(("timeout", "sleep"), [(30, 0), (0.5, 60)])
def test_a_child_is_read_and_stopped_when_overdue(
    timeout: float, sleep: int, tmp_path: Path
) -> None:
    code = f"import time; print('progress 0.5 x'); print('hello', flush=True); time.sleep({sleep})"
    seen: list[float] = []
    command = [sys.executable, "-S", "-E", "-c", code]
    status = process._run(command, {}, tmp_path / "p.log", timeout, seen.append)
    said = (tmp_path / "p.log").read_text()
    assert (status == 0) is (sleep == 0)
    assert ("stopped after" in said) is (sleep > 0)
    if not sleep:
        assert seen == [0.5]
        assert process.last_words(tmp_path / "p") == "hello"


# --- summary and document ----------------------------------------------------------------------


def result(scale: float, names: tuple[str, ...] = ("adamw_fused", "gefen")) -> dict[str, Any]:
    """An invented process in which Gefen takes .6 of AdamW's time, up to a few per cent."""
    rng = np.random.default_rng(int(1000 * scale))
    found: dict[str, Any] = {}
    for name in names:
        seconds = list(scale * (0.006 if name == "gefen" else 0.01) * rng.uniform(0.95, 1.05, 21))
        found[name] = {
            "step_median_seconds": float(np.median(seconds)),
            "step_seconds": seconds,
            "first_step_seconds": 0.1,
            "build_seconds": 30.0 if scale == 1.0 else 0.1,
            "optimizer_state_bytes": 800,
            "bytes_moved": 2800,
            "gradient_reads": 1,
            "roofline_percent": 50.0,
            "step_transient_bytes": int(scale * MIB),
            "first_step_transient_bytes": 2 * MIB,
        }
    failed = {} if "lion" in names else {"lion": "RuntimeError: no"}
    return {
        "parameters": 100,
        "threads": 1,
        "copy_bytes_per_second": 1e9 * scale,
        "failed": failed,
        "candidates": found,
    }


def test_a_summary_of_processes() -> None:
    stats = pytest.importorskip("scipy.stats")
    results = [result(1.0), result(1.1), result(0.9, ("adamw_fused", "gefen", "lion"))]
    found = summarize_processes(results, "adamw_fused")
    assert list(found["candidates"]) == ["adamw_fused", "gefen"]
    assert failures(results) == {"lion": "RuntimeError: no"}
    facts = found["candidates"]["gefen"]
    pooled = [s for r in results for s in r["candidates"]["gefen"]["step_seconds"]]
    assert facts["step_p10_seconds"] == pytest.approx(np.quantile(pooled, 0.1))
    assert facts["step_p90_seconds"] == pytest.approx(np.quantile(pooled, 0.9))
    medians = [
        [r["candidates"][name]["step_median_seconds"] for r in results]
        for name in ("gefen", "adamw_fused")
    ]
    logs = np.log(medians[0]) - np.log(medians[1])
    expected = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    assert facts["ratio_interval_95"] == pytest.approx(np.exp(expected), rel=1e-4)
    assert facts["build_seconds"] == 30.0
    assert facts["step_transient_bytes"] == int(1.1 * MIB)
    assert facts["bytes_moved_per_parameter"] == 28
    assert "ratio_to_reference" not in summarize_processes(results, "sgd")["candidates"]["gefen"]


@pytest.fixture
def made() -> document.Document:
    chosen = plan.choose(["adamw_fused", "gefen", "lion"])
    condition = plan.Condition("gpt2_tiny", "fp32", 2, 2, 100, 100)
    options = {"threads": 1, "warmup": 1, "steps": 3, "timeout": 60.0}
    return document.Document([condition], chosen, ["said"], {"device": "cpu"}, options, "cpu")


def test_the_document_keeps_raw_values_and_failures(
    made: document.Document, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales = iter([1.0, None, 1.1])

    def fake(settings: StepSettings, stem: Path, *_: Any) -> dict[str, Any] | None:
        assert settings.share_parameters
        assert settings.gradient_reads["gefen"] == 2
        scale = next(scales)
        if scale is None:
            stem.with_suffix(".log").write_text("Traceback\n  x\nValueError: bad\n\n")
        return None if scale is None else result(scale)

    monkeypatch.setattr(document, "run_process", fake)
    (condition,) = made.conditions
    errors = [made.measure(condition, tmp_path / f"p{i}", lambda _: None) for i in range(3)]
    assert [e is None for e in errors] == [True, False, True]
    assert str(errors[1]).startswith("ValueError: bad (see ")
    content = json.loads(made.write(tmp_path).read_text())
    (entry,) = content["conditions"]
    assert entry["processes"] == 2
    assert len(entry["failed_processes"]) == 1
    assert entry["failed_candidates"] == {"lion": "RuntimeError: no"}
    assert (
        entry["runs"][1]["candidates"]["gefen"]["step_seconds"]
        == result(1.1)["candidates"]["gefen"]["step_seconds"]
    )
    assert content["optimizers"]["adamw_fused"] == "adamw"
    text = made.text()
    assert "lion: not timed (RuntimeError: no)" in text
    assert max(map(len, text.split(table.NOTE)[0].splitlines())) <= 130


def test_one_process_gives_a_ratio_without_an_interval() -> None:
    found = summarize_processes([result(1.0)], "adamw_fused")
    text = {row[0]: row for row in table.rows(found, 100, "adamw_fused")}
    assert text["gefen"][2] == f"{found['candidates']['gefen']['ratio_to_reference']:.3f}"
    assert text["adamw_fused"][2] == table.EMPTY
    lines = table.aligned(table.headings("adamw_fused"), list(text.values())).splitlines()
    assert len({len(line) for line in lines}) == 1


# --- the command -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--model", "gpt5"], "model=gpt5 is not known; allowed: "),
        (["--optimizer", "gefen,adamq"], "--optimizer has 'adamq'; allowed: all, "),
        (["--dtype", "fp8"], "--dtype has 'fp8'; allowed: fp32, bf16."),
        (["--steps", "0"], "--steps=0 is too small; the least allowed is 1."),
        (["--timeout", "0"], "--timeout=0 is not allowed; it must be a number of seconds above 0."),
        (["--timeout", "inf"], "--timeout=inf is not allowed; it must be"),
        (["--timeout", "nan"], "--timeout=nan is not allowed; it must be"),
        (["--threads", "-1"], "--threads=-1 is too small; the least allowed is 1."),
        (["--model", ""], "--model needs a name; leave it out for the default."),
        (["--optimizer", ","], "--optimizer needs a name; leave it out for the default."),
        (["--model", "../study/adhoc"], "model=../study/adhoc is not known; allowed: "),
        (["--model", "x" * 300], f"model={'x' * 300} is not known; allowed: "),
        (["--model", "smollm2_135m"], "--model smollm2_135m is a pretrained model by path; choose"),
        (["--device", "cuda"], "--device=cuda is not possible here: torch sees no CUDA device."),
    ],
)
def test_a_mistake_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert step_bench.main([*arguments, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"gefen-step: {sentence}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_help_names_optimizers_and_models(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        step_bench.main(["--help"])
    text = capsys.readouterr().out
    for word in (*plan.known(), "llama3_8b", "step_bench.json"):
        assert word in text


SHADOW = "from pathlib import Path\nPath({path!r}).touch()\nraise RuntimeError('not ours')\n"


def test_the_whole_command_on_a_tiny_model_in_a_folder_with_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = tmp_path / "here"
    (here / "gefen").mkdir(parents=True)
    for name in ("gefen/__init__.py", "datasets.py", "statistics.py", "matplotlib.py"):
        (here / name).write_text(SHADOW.format(path=str(tmp_path / "imported")))
    monkeypatch.chdir(here)
    monkeypatch.setenv("PYTHONPATH", os.pathsep)  # an empty entry means the current folder too
    arguments = "--model gpt2_tiny --optimizer gefen,adamw_fused --steps 2 --warmup 1"
    more = f"--processes 1 --threads 1 --device cpu --output {tmp_path}"
    assert step_bench.main([*arguments.split(), *more.split()]) == 0, list(
        p.read_text() for p in tmp_path.glob("processes/*.log")
    )
    out = capsys.readouterr().out
    assert "gpt2_tiny, fp32" in out
    content = json.loads((tmp_path / "step_bench.json").read_text())
    (entry,) = content["conditions"]
    assert set(entry["candidates"]) == {"adamw_fused", "gefen"}
    assert entry["threads"] == 1
    assert content["provenance"]["code_hash"]
    shapes = [spec.shape for spec in plan.model_specs(TINY, plan.vocabulary())]
    state = entry["candidates"]["gefen"]["optimizer_state_bytes"]
    assert state == gefen.state_bytes(shapes)
    assert not (tmp_path / "imported").exists()
    assert (tmp_path / "roofline.png").stat().st_size > 10_000
    assert "| adamw_fused |" in (tmp_path / "step_bench.md").read_text()
