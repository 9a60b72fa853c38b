"""The typed configuration: a mistake is one sentence with key, value and what is allowed."""

import dataclasses
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config import RunConfig, from_dict, to_dict, validate
from harness.errors import UserError


def changed(**values: object) -> RunConfig:
    """A default configuration with dotted keys (a__b for a.b) replaced."""
    plain = to_dict(RunConfig())
    for key, value in values.items():
        target, *rest = reversed(key.split("__"))
        node = plain
        for name in reversed(rest):
            node = node[name]
        node[target] = value
    return from_dict(RunConfig, plain)


def test_plain_values_survive_the_round_trip() -> None:
    config = changed(optimizer__lr=3e-4, seed=7, model__kv_heads=2, task__target_loss=3)
    assert from_dict(RunConfig, to_dict(config)) == config
    assert config.task.target_loss == 3.0
    assert isinstance(config.task.target_loss, float)


@given(st.text(min_size=1, max_size=12).filter(lambda name: name.isidentifier()))
def test_an_unknown_key_is_named(name: str) -> None:
    known = {field.name for field in dataclasses.fields(RunConfig)}
    if name in known:
        return
    with pytest.raises(UserError, match=f"Unknown key '{name}'"):
        from_dict(RunConfig, {name: 1})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"seq_len": "long"}, "seq_len='long' is not of type int"),
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr='fast' is not of type float"),
        ({"optimizer": {"betas": 0.9}}, "optimizer.betas=0.9 is not of type list"),
        ({"optimizer": {"speed": 1}}, "Unknown key 'optimizer.speed'"),
        ({"micro_batch": True}, "micro_batch=True is not of type int"),
    ],
)
def test_a_wrong_type_is_named(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        from_dict(RunConfig, values)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"seq_len": 4096}, "seq_len=4096 is longer than the 1024 positions of model gpt2_4m"),
        ({"seq_len": 1}, "seq_len=1 is too small"),
        ({"precision": "fp8"}, "precision=fp8 is not known; allowed: fp32, bf16_mixed, bf16_pure"),
        ({"micro_batch": 0}, "micro_batch=0 is too small"),
        ({"seed": -1}, "seed=-1 is too small"),
        ({"optimizer__lr": 0.0}, "optimizer.lr=0.0 is not allowed"),
        ({"optimizer__lr": float("nan")}, "optimizer.lr=nan is not allowed"),
        ({"optimizer__betas": [0.9, 1.0]}, r"optimizer.betas=\[0.9, 1.0\] must each lie in"),
        ({"task__warmup_steps": 300}, "task.warmup_steps=300 leaves nothing of task.steps=300"),
        ({"task__kind": "sing"}, "task.kind=sing is not known"),
        ({"model__vocab_size": 100}, "data.vocab_size=4096 is larger than the vocabulary"),
        ({"launch__timeout_seconds": 0.0}, "launch.timeout_seconds=0.0 is not allowed"),
        ({"device": "tpu"}, "device=tpu is not known"),
        ({"threads": 0}, "threads=0 is too small"),
        ({"task__final_eval_tokens": 512}, "final_eval_tokens=512 is less than task.eval_tokens="),
        ({"seed": 2**32}, "seed=4294967296 is too large; the largest allowed is 4294967295"),
        ({"threads": 100_000}, "threads=100000 is too large; the largest allowed is 1024"),
        ({"model_seed": 2**32}, "model_seed=4294967296 is too large"),
        ({"data_seed": -3}, "data_seed=-3 is too small; the least allowed is 0"),
        ({"optimizer__eps": math.inf}, "optimizer.eps=inf is not allowed"),
        ({"optimizer__weight_decay": math.inf}, "optimizer.weight_decay=inf is not allowed"),
        ({"optimizer__weight_decay": math.nan}, "optimizer.weight_decay=nan is not allowed"),
        ({"optimizer__lr": math.inf}, "optimizer.lr=inf is not allowed"),
        ({"optimizer__lr": 1e308, "optimizer__lr_factor": 10.0}, "is inf; their product must be"),
        ({"optimizer__betas": [math.nan, 0.9]}, r"optimizer.betas=\[nan, 0.9\] must each lie in"),
        ({"task__min_lr_ratio": math.nan}, "task.min_lr_ratio=nan must lie in"),
        ({"task__spike_mads": math.inf}, "task.spike_mads=inf is not allowed"),
        ({"model__lora_alpha": math.nan}, "model.lora_alpha=nan is not allowed"),
        ({"data__max_documents": -1}, "data.max_documents=-1 is too small; the least allowed is 1"),
        (
            {"data__tokenizer": "bytes", "model__vocab_size": 100},
            "model.vocab_size=100 is too small for data.tokenizer=bytes; choose at least 257",
        ),
    ],
)
def test_a_value_out_of_range_is_named(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        validate(changed(**values))


def test_defaults_and_the_largest_seed_are_valid() -> None:
    validate(RunConfig())
    validate(changed(seed=2**32 - 1, model_seed=0, optimizer__eps=0.0))
    validate(changed(data__tokenizer="bytes", model__vocab_size=257))


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../esc", "a/b", "/tmp/x", "a\\b", "a\nb", " a", "a\0b", "é" * 101]
)
def test_a_study_is_one_folder_below_root(name: str) -> None:
    with pytest.raises(UserError, match=r"study.name=.* must be the name of one folder"):
        validate(changed(study__name=name))


@given(st.text(max_size=20))
def test_an_accepted_study_name_stays_below_root(name: str) -> None:
    try:
        validate(changed(study__name=name))
    except UserError:
        return
    assert os.path.normpath(f"/root/{name}") == f"/root/{name}"
    assert os.path.dirname(f"/root/{name}") == "/root"
    assert name


@pytest.mark.parametrize("name", ["adhoc", "lr_scan", "größe", "a.b-c+d", "1", "...", "~x"])
def test_ordinary_study_names_are_valid(name: str) -> None:
    validate(changed(study__name=name))


def test_the_schema_and_the_store_load_without_torch() -> None:
    code = (
        "import sys, harness.config, harness.cells.store;"
        "print([n for n in ('torch', 'hydra', 'transformers') if n in sys.modules])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.stdout.strip() == "[]", answer.stdout + answer.stderr
