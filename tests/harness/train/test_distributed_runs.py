"""One cell on several ranks: the same sequences and losses, checkpoints, and ranks that die.

The losses of two ranks are those of one process but for the order of sums: stated and tested is a
relative difference of 1e-5 a step in float32 (6e-7 is the largest that was seen).
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from harness import data, models, optimizers
from harness.cells import identity as cells
from harness.cells import store
from harness.config import RunConfig, from_dict, to_dict
from harness.errors import UserError
from harness.launch import process
from harness.launch.launcher import launch
from harness.study import planner
from harness.study.origins import Origins
from harness.train.distributed.ranks import Ranks, rank_metrics
from harness.train.schedule import learning_rate_factor
from harness.worker.rank import is_first_failure, rank_index

from . import distributed_ranks

MakeRun = Callable[..., RunConfig]
Found = list[dict[Any, Any]]
Weights = dict[str, torch.Tensor]
TOLERANCE = 1e-5
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What both ranks of `distributed_ranks.py` found."""
    folder = tmp_path_factory.mktemp("ranks")
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[2])}
    environment |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}
    ended = subprocess.run(
        [*run, str(HERE / "distributed_ranks.py"), str(folder)],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("case", distributed_ranks.CASES, ids="-".join)
def test_two_ranks_do_what_one_process_does(found: Found, case: tuple[str, str, str]) -> None:
    for rank in found:
        one, two = rank[case]["one"], rank[case]["two"]
        np.testing.assert_allclose(two["losses"], one["losses"], rtol=TOLERANCE)
        assert one["losses"][-1] != one["losses"][0]
        assert_close(two["weights"], one["weights"], rank[case]["lr"])


def assert_close(found: Weights, expected: Weights, rate: float) -> None:
    """Within a tenth of a step; where a sum is near 0 its sign may turn, and with it Lion's."""
    far = total = 0
    for name, weight in expected.items():
        far += int(((found[name] - weight).abs() > 0.1 * rate).sum())
        total += weight.numel()
    assert far <= 1e-3 * total


@pytest.mark.parametrize("case", distributed_ranks.CASES, ids="-".join)
@pytest.mark.parametrize(("way", "source"), [("1 to 2", "one"), ("2 to 1", "two")])
def test_a_checkpoint_continues_on_other_ranks(
    found: Found, case: tuple[str, str, str], way: str, source: str
) -> None:
    for rank in found:
        results = rank[case]
        assert results[f"{way} mapped"] == []  # the file may go, or be written anew
        for name, weight in results[f"{source} saved"].items():
            assert torch.equal(results[f"{way} restored"][name], weight), name
            assert not torch.equal(results[source]["weights"][name], weight), name
        expected = results[source]["losses"][distributed_ranks.SAVED_AT :]
        np.testing.assert_allclose(results[way]["losses"], expected, rtol=TOLERANCE)
        assert_close(results[way]["weights"], results[source]["weights"], results["lr"])


def test_fsdp_computes_in_bfloat16_what_autocast_does(found: Found) -> None:
    """To cast norms and the residual stream too changes the first loss by 1.5e-5 of it."""
    for rank in found:
        one, two = rank["mixed"]["one"], rank["mixed"]["two"]
        np.testing.assert_allclose(two[0], one[0], rtol=2e-6)
        # Each rank rounds its own gradients to bfloat16, which makes what follows differ.
        np.testing.assert_allclose(two, one, rtol=1e-4)
        assert len(set(two)) == 4


def test_shards_of_the_state_add_up_to_one_state(found: Found) -> None:
    case = ("fsdp", "gpt2_tiny", "adamw")
    (one,), two = found[0][case]["one bytes"], found[0][case]["two bytes"]
    tensors = len(found[0][case]["one"]["weights"])
    assert sum(two) == one + 4 * tensors  # each rank counts the step of each tensor
    assert max(two) < 0.52 * one
    case = ("ddp", "gpt2_tiny", "galore")
    (one,), two = found[0][case]["one bytes"], found[0][case]["two bytes"]
    assert two == [one, one]


def test_ranks_add_gather_and_notice_other_weights(found: Found) -> None:
    for rank in found:
        small = rank["small"]
        assert small["total"] == [3.0, 1.0]
        assert small["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert small["rms"] == pytest.approx(((10 * 9 + 30 * 16) / 40) ** 0.5)
        assert small["disagreement"].startswith("The ranks hold different weights")


def test_shares_are_the_rows_of_the_whole_batch_in_order() -> None:
    batch = {"input_ids": np.arange(22).reshape(11, 2), "labels": np.arange(11)}
    ranks = [Ranks(index, 3) for index in range(3)]
    shares = [rank.share(batch, 4) for rank in ranks]
    for name, rows in batch.items():
        assert np.array_equal(np.concatenate([share[name] for share, _ in shares]), rows)
    assert [counts for _, counts in shares] == [True, True, True]
    last, counts = ranks[2].share({"labels": np.arange(8)}, 4)
    assert (list(last["labels"]), counts) == ([0], False)
    assert Ranks().share(batch, 1) == (batch, True)


def plain_losses(config: RunConfig, together: int) -> list[float]:
    """The loss of each step of one process, `together` sequences a step, in a plain torch loop."""
    corpus = data.load(config.data, Path(config.cache or "") / "data", progress=False)
    torch.set_num_threads(1)
    model = models.build_model(config.model, corpus.vocab_size, config.model_seed or 0).train()
    optimizer = optimizers.build_optimizer(model, config.optimizer)
    losses = []
    for step in range(config.task.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * learning_rate_factor(step, config.task)
        losses.append(0.0)
        for index in range(config.grad_accumulation):
            number = step * config.grad_accumulation + index
            seed = config.data_seed or 0
            ids = data.batch(corpus.tokens("train"), config.seq_len, together, seed, number)
            logits = model(input_ids=torch.from_numpy(ids)).logits[:, :-1]
            wanted = torch.from_numpy(ids)[:, 1:].reshape(-1)
            loss = torch.nn.functional.cross_entropy(logits.reshape(len(wanted), -1), wanted)
            (loss / config.grad_accumulation).backward()
            losses[-1] += float(loss.detach()) / config.grad_accumulation
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.task.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    return losses


def running_ranks() -> list[int]:
    """Process ids of the ranks of the cell that this process has launched, in their order."""
    children = psutil.Process().children()
    (agent,) = [child for child in children if "harness.worker.agent" in child.cmdline()]
    numbers = {child.environ()["RANK"]: child.pid for child in agent.children()}
    return [numbers["0"], numbers["1"]]


@pytest.mark.timeout(600)
def test_a_killed_rank_ends_the_cell_and_other_ranks_finish_it(
    make_run: MakeRun,
) -> None:
    """DDP loses rank 1 after a checkpoint; FSDP goes on from there, to one process's losses."""
    task = {"steps": 10, "checkpoint_every_steps": 4, "log_every_steps": 1, "eval_every_steps": 10}
    keys = {"micro_batch": 2, "grad_accumulation": 2, "task": task}
    config = make_run("gefen", **keys, launch={"nproc": 2})
    (cell,) = planner.plan([config], progress=False)
    killed: list[int] = []

    def kill_rank_1(values: dict[str, Any]) -> None:
        if values.get("step", 0) >= 6 and not killed:
            killed.extend(running_ranks())
            os.kill(killed[1], signal.SIGKILL)

    record = launch(cell, "", kill_rank_1)
    assert record.status == "crashed"
    assert record.error == "Rank 1 of 2 was ended by signal SIGKILL."
    assert not any(psutil.pid_exists(pid) for pid in killed)
    continued = {"nproc": 2, "strategy": "fsdp", "resume_from": str(cell.directory)}
    (other,) = planner.plan([make_run("gefen", **keys, launch=continued)], progress=False)
    assert other.id != cell.id
    record = launch(other, "", lambda _: None)
    assert record.status == "done", record.error
    assert record.metrics["resumed_at_step"] == 4
    assert record.metrics["tokens"] == 10 * 32 * 8
    curve = store.read_curve(other.directory)
    losses = curve[curve["key"] == "train/loss"]["value"]
    np.testing.assert_allclose(losses, plain_losses(planner.resolve(config), 4), rtol=TOLERANCE)
    check_record(record)


def check_record(record: store.Record) -> None:
    """Two ranks measured; each holds about half of weights and state."""
    metrics = record.metrics
    launched = {"nproc": 2, "strategy": "fsdp"}
    assert {key: record.config["launch"][key] for key in launched} == launched
    for key in ("peak_bytes", "optimizer_state_bytes", "step_median_seconds"):
        assert len(metrics[f"rank_{key}"]) == 2
        assert metrics[f"rank_{key}"][0] == metrics[key] > 0
    assert sum(metrics["rank_parameter_bytes"]) >= 4 * metrics["parameters"]
    assert max(metrics["rank_parameter_bytes"]) < 0.52 * 4 * metrics["parameters"]
    state = sum(metrics["rank_optimizer_state_bytes"])
    assert metrics["all_ranks_optimizer_state_bytes"] == state
    assert metrics["state_bytes_per_parameter"] == pytest.approx(state / metrics["parameters"])
    assert metrics["optimizer_state_predicted_bytes"] is None


def test_one_process_records_nothing_about_ranks() -> None:
    assert rank_metrics(Ranks(), {"peak_bytes": 1}) == {}


class Neighbour(Ranks):
    """Rank 0 of two, whose neighbour's card took 7 joules, or has no counter."""

    joules: float | None = 7.0

    def gather(self, value: Any) -> list[Any]:
        return [value, {**value, "energy_joules": self.joules} if self.joules else {}]


def test_energy_is_that_of_all_cards() -> None:
    ranks = Neighbour(0, 2)
    own = {"energy_joules": 5.0, "energy_method": "nvml", "optimizer_state_bytes": 1}
    found = rank_metrics(ranks, own)
    assert (found["rank_energy_joules"], found["energy_joules"]) == ([5.0, 7.0], 12.0)
    assert found["energy_method"] == "nvml"
    assert "energy_joules" not in rank_metrics(ranks, {"optimizer_state_bytes": 1})


def test_ranks_are_part_of_what_a_cell_is(make_run: MakeRun, tmp_path: Path) -> None:
    def identity(**launch: Any) -> tuple[str, str, dict[str, Any]]:
        config = planner.resolve(make_run(launch=launch))
        cell = Origins().cell(config, "data")
        record = cells.blank_record(cells.job(cell, 1, ""), "cpu")
        return cell.id, cell.run, record.config.get("launch", {})

    one = identity()
    assert identity(strategy="ddp", timeout_seconds=5.0) == one
    assert one[2] == {}
    two = identity(nproc=2)
    assert identity(nproc=2, strategy="ddp") == two
    assert two[2] == {"nproc": 2, "strategy": "ddp", "resume_from": None}
    others = [identity(nproc=2, strategy="fsdp"), identity(nproc=3), identity(resume_from="a/b")]
    assert len({one[0], two[0], *(other[0] for other in others)}) == 5
    # The same run: as many sequences a step, however many ranks read them.
    assert others[2][1] == one[1] != two[1]
    wide = dataclasses.replace(planner.resolve(make_run(micro_batch=8)))
    assert Origins().cell(wide, "data").run == two[1]
    assert cells.label(planner.resolve(make_run(launch={"nproc": 2}))).split("/")[4] == "2xddp"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"launch": {"nproc": 0}}, "launch.nproc=0 is too small"),
        ({"launch": {"nproc": 2, "strategy": "zero"}}, "launch.strategy=zero is not known"),
        (
            {"launch": {"nproc": 2, "strategy": "fsdp"}, "task": {"gradient_noise": 0.1}},
            "task.gradient_noise does not work with launch.strategy=fsdp",
        ),
        ({"launch": {"strategy": "fsdp"}}, "launch.strategy=fsdp with launch.nproc=1 cuts nothing"),
        ({"launch": {"resume_from": "/nowhere"}}, "/nowhere holds no checkpoint.pt"),
    ],
)
def test_mistakes_are_answered_in_one_sentence(
    make_run: MakeRun, keys: dict[str, Any], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        planner.plan([make_run(**keys)], progress=False)


@pytest.mark.parametrize(
    ("name", "options"), [("galore", {}), ("stam", {}), ("gefen", {"second_moment": "paper"})]
)
def test_optimizers_that_need_whole_tensors_are_refused_shards(
    make_run: MakeRun, name: str, options: dict[str, Any]
) -> None:
    config = make_run(name, launch={"nproc": 2, "strategy": "fsdp"})
    optimizer = dataclasses.replace(config.optimizer, options=options)
    with pytest.raises(UserError, match=f"optimizer {name} does not work on the shards"):
        planner.plan([dataclasses.replace(config, optimizer=optimizer)], progress=False)
    ddp = from_dict(RunConfig, {**to_dict(config), "launch": {"nproc": 2}})
    assert len(planner.plan([ddp], progress=False)) == 1


def test_another_run_is_not_continued(make_run: MakeRun, tmp_path: Path) -> None:
    (cell,) = planner.plan([make_run()], progress=False)
    (tmp_path / "checkpoint.pt").touch()
    (tmp_path / "job.json").write_text(json.dumps(cells.job(cell, 1, "")))
    halves = {"nproc": 2, "resume_from": str(tmp_path)}
    assert planner.plan([make_run(micro_batch=2, launch=halves)], progress=False)
    for keys in ({}, {"micro_batch": 2, "seed": 1}):
        with pytest.raises(UserError, match="is another run"):
            planner.plan([make_run(launch=halves, **keys)], progress=False)


def test_the_first_rank_to_fail_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(time, "sleep", waits.append)
    assert is_first_failure(tmp_path, 1)
    assert not is_first_failure(tmp_path, 1)
    assert len(waits) == 1
    assert is_first_failure(tmp_path, 2)


def test_a_single_process_is_no_rank_of_another_launcher(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert rank_index(make_run()) == 0
    assert rank_index(make_run(launch={"nproc": 4})) == 3


def test_ranks_share_the_processors(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(process, "cpu_cores", lambda: 9)
    (cell,) = planner.plan([make_run(threads=None, launch={"nproc": 2})], progress=False)
    assert process.environment_of(cell)["OMP_NUM_THREADS"] == "4"
    assert process.command(cell, 1)[3] == "harness.worker.agent"
    (cell,) = planner.plan([make_run(threads=None)], progress=False)
    assert "OMP_NUM_THREADS" not in process.environment_of(cell)
    assert process.command(cell, 1)[3] == "harness.worker.main"
