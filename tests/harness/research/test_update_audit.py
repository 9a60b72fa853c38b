"""Updates of Gefen beside AdamW's: the measures, the audit against a plain loop, the command."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from harness import data, models
from harness.config import OptimizerConfig, RunConfig
from harness.errors import UserError
from harness.optimizers import build_optimizer
from harness.research.audit import update_audit
from harness.research.audit.comparison import as_matrix, audit, compare, decile_ratios
from harness.research.audit.report import summarize
from harness.study import planner
from harness.train.schedule import learning_rate_factor

MakeRun = Callable[..., RunConfig]
BLOCK = {"second_moment": "block", "first_moment_bits": 32}
FACTORED = {"second_moment": "factored", "first_moment_bits": 8}
EXACT = {"second_moment": "factored", "min_quantized_size": 10**9}


def test_measures_equal_their_definitions() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 7, 30))
    found = compare(torch.from_numpy(a), torch.from_numpy(b))
    assert found["cosine"] == pytest.approx(np.sum(a * b) / np.sqrt(np.sum(a**2) * np.sum(b**2)))
    assert found["norm_ratio"] == pytest.approx(np.linalg.norm(a) / np.linalg.norm(b))
    assert found["update_rms"] == pytest.approx(np.sqrt(np.mean(a**2)))
    assert found["adamw_update_rms"] == pytest.approx(np.sqrt(np.mean(b**2)))
    still = compare(torch.from_numpy(a), torch.zeros(7, 30))
    assert math.isnan(still["cosine"])
    assert math.isnan(still["norm_ratio"])


def test_deciles_follow_the_scale_of_columns_and_not_their_place() -> None:
    columns = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    reference = torch.randn(5, 40)
    ratios = 1.0 + (columns // 4)  # the tenth by scale that a column belongs to, from 1
    found = decile_ratios(reference * ratios, reference, columns.float())
    assert found == pytest.approx([float(number) for number in range(1, 11)])
    assert decile_ratios(reference[:, :9], reference[:, :9], columns[:9]) == []
    frozen = torch.where(columns < 4, 0.0, reference)
    assert math.isnan(decile_ratios(reference, frozen, columns)[0])


def test_a_convolution_has_one_row_for_each_output_channel() -> None:
    assert as_matrix(torch.zeros(8, 3, 5, 5)).shape == (8, 75)
    assert as_matrix(torch.zeros(4, 6, 9)).shape == (24, 9)


def plain_loop(config: RunConfig, options: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """Updates of AdamW and of a variant reset to AdamW's parameters, as differences, by step."""
    corpus = data.load(config.data, Path(config.cache or "") / "data", progress=False)
    model = models.build_model(config.model, corpus.vocab_size, config.model_seed or 0)
    other = copy.deepcopy(model)
    no_decay = OptimizerConfig(weight_decay=0.0, options={"fused": True})
    optimizer = build_optimizer(model, no_decay)
    variant = build_optimizer(
        other, OptimizerConfig(name="gefen_ablation", weight_decay=0.0, options=options)
    )
    found: dict[int, dict[str, Any]] = {}
    for step in range(config.task.steps):
        rate = config.optimizer.lr * learning_rate_factor(step, config.task)
        for group in (*optimizer.param_groups, *variant.param_groups):
            group["lr"] = rate
        tokens = corpus.tokens("train")
        ids = torch.from_numpy(data.batch(tokens, config.seq_len, config.micro_batch, 0, step))
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.task.grad_clip)
        other.load_state_dict(model.state_dict())
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            assert p.grad is not None
            q.grad = p.grad.clone()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
        variant.step()
        optimizer.zero_grad()
        found[step + 1] = {
            name: ((before[name] - q).detach() / rate, (before[name] - p).detach() / rate)
            for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True)
        }
    return found


def test_the_audit_equals_a_plain_loop_reset_to_adamws_parameters(make_run: MakeRun) -> None:
    torch.set_num_threads(1)
    config = planner.resolve(make_run(task={"steps": 3}))
    config.optimizer.weight_decay = 0.0
    tensors, _ = audit(config, {"v": FACTORED})
    expected = plain_loop(config, FACTORED)
    assert sorted(tensors["step"].unique()) == [1, 2, 3]
    for row in tensors.itertuples():
        update, reference = expected[row.step][row.tensor]
        wanted = compare(update, reference)
        for key in ("cosine", "norm_ratio", "update_rms", "adamw_update_rms"):
            assert getattr(row, key) == pytest.approx(wanted[key], rel=2e-3), (row.tensor, key)


def test_the_first_step_has_a_closed_form(make_run: MakeRun) -> None:
    """In the first step v is g^2: AdamW moves by g / |g|, a block by g over the block's RMS."""
    torch.set_num_threads(1)
    config = planner.resolve(make_run(task={"steps": 2, "warmup_steps": 1}))
    config.optimizer.eps = 1e-20
    tensors, deciles = audit(config, {"block": BLOCK, "exact": EXACT})
    exact = tensors[tensors["variant"] == "exact"]
    assert exact["exact"].all()
    np.testing.assert_allclose(exact["cosine"], 1, rtol=1e-6)
    np.testing.assert_allclose(exact["norm_ratio"], 1, rtol=1e-5)
    first = tensors[(tensors["variant"] == "block") & (tensors["step"] == 1) & ~tensors["exact"]]
    hidden = first[first["tensor"].str.contains(".h.", regex=False)]
    assert len(hidden) == 8
    # Every element of a hidden matrix has a gradient, so both have an RMS of 1.
    np.testing.assert_allclose(hidden["update_rms"], 1, rtol=1e-5)
    np.testing.assert_allclose(hidden["adamw_update_rms"], 1, rtol=1e-5)
    chosen = deciles[(deciles["variant"] == "block") & (deciles["step"] == 1) & ~deciles["exact"]]
    chosen = chosen[chosen["tensor"].isin(hidden["tensor"])]
    by_column = chosen[chosen["axis"] == "column"].groupby("decile")["rms_ratio"].median()
    # A v shared along a row gives every row the norm 1 and large columns the larger steps.
    assert by_column.loc[1] < 0.9
    assert by_column.loc[10] > 1.1
    by_row = chosen[chosen["axis"] == "row"]
    np.testing.assert_allclose(by_row["rms_ratio"], 1, rtol=1e-5)


def test_the_summary_weighs_tensors_by_their_elements() -> None:
    common = {"step": 1, "variant": "v", "exact": False}
    tensors = pd.DataFrame(
        [
            {**common, "elements": 300, "update_rms": 2.0, "adamw_update_rms": 1.0, "cosine": 0.5},
            {**common, "elements": 100, "update_rms": 0.0, "adamw_update_rms": 1.0, "cosine": 0.9},
            {**common, "exact": True, "elements": 9, "update_rms": 9.0, "adamw_update_rms": 1.0,
             "cosine": 0.0},
        ]
    )  # fmt: skip
    ratios = [{"decile": d, "rms_ratio": d / 5, "axis": "column"} for d in range(1, 11)]
    rows = [{**common, **ratio} for ratio in ratios]
    (row,) = summarize(tensors, pd.DataFrame(rows)).to_dict("records")
    assert row["norm_ratio"] == pytest.approx(math.sqrt(300 * 4 / 400))
    assert row["matching_rate"] == pytest.approx(1 / row["norm_ratio"])
    assert (row["cosine_median"], row["cosine_lowest"]) == pytest.approx((0.7, 0.5))
    assert (row["smallest_columns"], row["largest_columns"]) == pytest.approx((0.2, 2.0))
    assert (row["lowest_ratio"], row["highest_ratio"]) == pytest.approx((0.2, 2.0))


def test_the_command_writes_tables_a_page_and_a_figure(
    tiny_overrides: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "audit"
    variants = ["--variants", "factored_4bit,published_like"]
    update_audit.main(["--output", str(output), *variants, *tiny_overrides, "task.steps=2"])
    printed = capsys.readouterr().out
    assert "| factored_4bit | 2 |" in printed
    assert (output / "summary.md").read_text() in printed
    for name in ("tensors", "columns"):
        table = pd.read_parquet(output / f"{name}.parquet")
        assert set(table["variant"]) == {"factored_4bit", "published_like"}
        assert len(table) == len(pd.read_csv(output / f"{name}.csv"))
    facts = json.loads((output / "audit.json").read_text())
    assert facts["config"]["task"]["steps"] == 2
    assert len(facts["provenance"]["code_hash"]) == 64
    assert {row["step"] for row in facts["summary"]} == {1, 2}
    assert (output / "updates.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model=gpt9"], "model=gpt9 is not known; allowed: gpt2_124m"),
        (["optimizer=lion", "task.steps=2"], "optimizer=lion is not the reference; use adamw"),
        (["task.stesp=2"], "Unknown key 'task.stesp'"),
        (["--variants=all"], "--variants has 'all'; allowed: factored_8bit, factored_4bit"),
        (["precision=bf16_pure"], "The audit runs in float32 on the CPU"),
    ],
)
def test_a_mistake_is_one_sentence(
    refuses: Callable[..., None], overrides: list[str], sentence: str
) -> None:
    refuses(update_audit.main, overrides, sentence)


def test_the_reference_is_adamw(make_run: MakeRun) -> None:
    with pytest.raises(UserError, match="optimizer=gefen is not the reference"):
        audit(planner.resolve(make_run("gefen")), {})
