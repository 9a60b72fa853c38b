"""Fine-tuning against a plain torch loop, its study, and what a user can get wrong."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from harness import data, optimizers
from harness.config import (
    RunConfig,
    StudyConfig,
    from_dict,
    validate,
)
from harness.config.groups import load_group
from harness.errors import UserError
from harness.study import planner, sweep
from harness.study.parts import expand
from harness.train.schedule import learning_rate_factor

MakeRun = Callable[..., RunConfig]
TINY = load_group("model", "gpt2_tiny")


@pytest.fixture(scope="module")
def instructions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred sums, of different lengths."""
    path = tmp_path_factory.mktemp("pairs") / "sums.jsonl"
    rows = [
        {"question": f"{n} plus {3 * n} is", "answer": f" {4 * n}" + " indeed" * (n % 4)}
        for n in range(100)
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def pairs_of(path: Path, **given: Any) -> dict[str, Any]:
    """The data group for `path`."""
    template = {"prompt_template": "{question}", "completion_column": "answer"}
    return {**load_group("data", "instructions"), "path": str(path), **template, **given}


def test_a_run_from_own_weights_equals_a_plain_torch_loop(
    make_run: MakeRun, text_folder: Path, instructions: Path
) -> None:
    folder = pretrained(make_run, text_folder)
    task = {"kind": "finetune", "steps": 4, "eval_every_steps": 4, "eval_split": "test"}
    task |= {"generate_samples": 2, "generate_tokens": 40, "checkpoint_every_steps": 2}
    config = make_run(
        model={**TINY, "path": str(folder)},
        data=pairs_of(instructions, tokenizer="model"),
        task=task,
        seq_len=64,
        micro_batch=2,
        grad_accumulation=2,
    )
    record = sweep.run_cell(config, progress=False)
    assert (record.status, record.error) == ("done", None)
    metrics = record.metrics

    config = planner.resolve(planner.with_model_tokenizer(config))
    corpus = data.load(config.data, Path(config.cache or "") / "data")
    assert isinstance(corpus, data.PairCorpus)
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder / "model").train()
    check_samples(metrics["samples"], model, corpus)
    assert metrics["initial_eval_loss"] == pytest.approx(held_out(model, corpus), rel=1e-5)
    assert metrics["final_train_loss"] == pytest.approx(train(model, corpus, config), rel=1e-4)
    assert metrics["final_eval_loss"] == pytest.approx(held_out(model, corpus), rel=1e-4)
    bits = metrics["final_eval_loss"] / math.log(2) / corpus.bytes_per_token("test")
    assert metrics["final_eval_bits_per_byte"] == pytest.approx(bits)
    judged = corpus.spans("test")
    assert metrics["final_eval_completion_tokens"] == int((judged[:, 2] - judged[:, 1]).sum())
    assert metrics["peak_first_training_step_bytes"] > 0
    assert metrics["gradient_bytes"] == metrics["parameter_bytes"]


def pretrained(make_run: MakeRun, text_folder: Path) -> Path:
    """The folder of a cell that trained a model from scratch and kept its weights."""
    text = {"source": "text_files", "path": str(text_folder), "tokenizer": "bpe", "vocab_size": 300}
    config = make_run(data={"name": "sums", **text}, task={"save_model": True, "steps": 3})
    record = sweep.run_cell(config, progress=False)
    assert (record.status, record.error) == ("done", None)
    folder = Path(config.root) / "test" / "cells" / record.id
    assert not list(folder.glob("checkpoint.*"))
    return folder


def train(model: torch.nn.Module, corpus: data.PairCorpus, config: RunConfig) -> float:
    """The same steps with each pair alone in its sequence; the loss of the last one."""
    optimizer = optimizers.build_optimizer(model, config.optimizer)
    for step in range(config.task.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.optimizer.lr * learning_rate_factor(step, config.task)
        rows = [row for number in (2 * step, 2 * step + 1) for row in taken(corpus, number)]
        losses = [completion_loss(model, corpus, "train", index) for row in rows for index in row]
        total = sum(loss for loss, _ in losses) / sum(count for _, count in losses)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.task.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    return float(total.detach())


def taken(corpus: data.PairCorpus, number: int) -> list[list[int]]:
    """The pairs of the two rows of micro-batch `number`, found again by their text."""
    batch = corpus.batch(64, 2, 0, number)
    spans, tokens = corpus.spans("train"), corpus.tokens("train")
    known = {tuple(tokens[s : s + length]): index for index, (s, _, length) in enumerate(spans)}
    rows = []
    for ids, positions, labels in zip(*batch.values(), strict=True):
        starts = [*np.flatnonzero(positions == 0), len(ids)]
        parts = [slice(a, b) for a, b in itertools.pairwise(starts)]
        rows.append([known[tuple(ids[p])] for p in parts if (labels[p] >= 0).any()])
    return rows


def completion_loss(
    model: torch.nn.Module, corpus: data.PairCorpus, split: str, index: int
) -> tuple[torch.Tensor, int]:
    """The sum of the nats of one pair's completion, alone in its sequence, and its tokens."""
    start, prompt, length = (int(value) for value in corpus.spans(split)[index])
    ids = torch.from_numpy(corpus.tokens(split)[start : start + length].astype(np.int64))[None]
    logits = model(input_ids=ids).logits[0, prompt - 1 : -1]
    nats = torch.nn.functional.cross_entropy(logits, ids[0, prompt:], reduction="sum")
    return nats, length - prompt


@torch.no_grad()
def held_out(model: torch.nn.Module, corpus: data.PairCorpus) -> float:
    """Nats a token over all completions of the test split: 512 tokens hold them all."""
    found = [
        completion_loss(model, corpus, "test", index) for index in range(len(corpus.spans("test")))
    ]
    return float(sum(loss for loss, _ in found)) / sum(count for _, count in found)


@torch.no_grad()
def check_samples(
    samples: list[dict[str, Any]], model: torch.nn.Module, corpus: data.PairCorpus
) -> None:
    """What the record says the model wrote before is what the largest logit gives, word by word."""
    assert len(samples) == 2
    end = corpus.meta["end_of_text"]
    for index, sample in enumerate(samples):
        prompt, completion = corpus.pair("test", index)
        assert (sample["prompt"], sample["completion"]) == (
            corpus.decode(prompt),
            corpus.decode(completion),
        )
        ids = [int(token) for token in prompt]
        for _ in range(40):
            new = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if new == end:
                break
            ids.append(new)
        assert sample["before"] == corpus.decode(ids[len(prompt) :])
        assert sample["exact_before"] == (sample["before"].strip() == sample["completion"].strip())


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {},
            "holds texts; choose task=memory or task=pretrain, or data that holds pairs",
        ),
        ({"data": pairs_of(Path("x"))}, "model.path=null of model gpt2_tiny leaves"),
        (
            {"task": {"kind": "pretrain"}, "data": pairs_of(Path("x"))},
            "choose task=finetune or task=memory",
        ),
        (
            {"task": {"kind": "memory", "save_model": True}},
            "task.save_model=true does not go with task.kind=memory",
        ),
        (
            {"model": {**TINY, "lora_rank": 0}, "task": {"kind": "memory"}},
            "model.lora_rank=0 is too small",
        ),
        ({"task": {"kind": "memory", "generate_tokens": 0}}, "task.generate_tokens=0 is too small"),
    ],
)
def test_mistakes_are_one_sentence(make_run: MakeRun, keys: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        validate(make_run(**{"task": {"kind": "finetune"}, **keys}))


def test_the_study_pairs_adamw_and_gefen_over_five_seeds() -> None:
    study = from_dict(StudyConfig, load_group("study", "finetune"))
    found = [dict(text.split("=", 1) for text in cell) for cell in expand(study, "finetune", [])]
    seeds: dict[str, set[str]] = {}
    for cell in found:
        cell.setdefault("optimizer.variant", cell["optimizer"])
        seeds.setdefault(cell["optimizer.variant"], set()).add(cell["seed"])
    assert sorted(seeds) == ["adamw", "adamw8bit", "galore", "gefen", "lion"]
    assert seeds["adamw"] == seeds["gefen"]
    assert len(seeds["adamw"]) == 5
    assert all(values <= seeds["adamw"] for values in seeds.values())
    rates = {(cell["optimizer.variant"], float(cell["optimizer.lr"])) for cell in found}
    assert {rate for name, rate in rates if name in ("adamw", "gefen")} == {1e-4}
    assert {cell["task.eval_split"] for cell in found} == {"test"}
