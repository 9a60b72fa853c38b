"""The transformers Trainer, and LoRA adapters from peft, on a GPT-2 of one layer."""

import math
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.optim import AdamW, Optimizer
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from gefen import Gefen

Build = Callable[..., Gefen]
VOCABULARY = 24


def gpt2(dropout: float = 0.1) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=16,
            n_embd=16,
            n_layer=1,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
            embd_pdrop=dropout,
            resid_pdrop=dropout,
            attn_pdrop=dropout,
        )
    )


def sequences(count: int) -> list[dict[str, Tensor]]:
    """Counting upwards from random starts: learnable from one token to the next."""
    starts = torch.randint(VOCABULARY, (count, 1), generator=torch.Generator().manual_seed(0))
    tokens = (starts + torch.arange(12)) % VOCABULARY
    return [{"input_ids": row, "labels": row} for row in tokens]


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """The Trainer configures accelerate through class attributes."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train(
    folder: Path,
    options: dict[str, Any],
    dropout: float = 0.1,
    resume_from: Path | None = None,
    **arguments: Any,
) -> tuple[Trainer, list[Tensor], Gefen]:
    """A finished run: its trainer, parameters and optimizer."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "use_cpu": True,
        "max_steps": 8,
        "save_steps": 4,
        "logging_steps": 1,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.01,
        "weight_decay": 0.1,
        "warmup_steps": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 3,
        **arguments,
    }
    trainer = Trainer(
        model=gpt2(dropout),
        args=TrainingArguments(**settings),
        train_dataset=sequences(64),
        optimizer_cls_and_kwargs=(Gefen, {"min_quantized_size": 1, **options}),
    )
    trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    optimizer = getattr(trainer.optimizer, "optimizer", None)
    assert type(optimizer) is Gefen
    assert isinstance(trainer.model, GPT2LMHeadModel)
    return trainer, list(trainer.model.parameters()), optimizer


TRAINED: dict[str, dict[str, Any]] = {
    "default": {},
    "block-4": {"second_moment": "block", "first_moment_bits": 4},
    "peak": {"second_moment": "peak"},
}


@pytest.mark.parametrize("options", TRAINED.values(), ids=TRAINED.keys())
def test_the_trainer_trains_and_resumes_bit_for_bit(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """From a checkpoint on disk, dropout and schedule included, against the unbroken run."""
    options = {"lr": 0.01, **options}
    whole, params, optimizer = train(tmp_path / "whole", options)
    losses = [entry["loss"] for entry in whole.state.log_history if "loss" in entry]
    assert sum(losses[-2:]) < 0.95 * sum(losses[:2])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert any("index" in state for state in optimizer.state.values())
    checkpoint = tmp_path / "whole" / "checkpoint-4"
    resumed, resumed_params, loaded = train(tmp_path / "resumed", options, resume_from=checkpoint)
    assert resumed.state.global_step == 8
    for a, b in zip(params, resumed_params, strict=True):
        assert torch.equal(a, b)
    states = zip(optimizer.state.values(), loaded.state.values(), strict=True)
    for state, found in states:
        assert state.keys() == found.keys()
        assert all(torch.equal(state[name], found[name]) for name in state)


def test_the_trainer_accumulates_and_clips(tmp_path: Path) -> None:
    """Two passes of two sequences: the same run as one pass of four, to rounding (float32)."""
    runs = []
    for name, size, passes in (("one", 4, 1), ("two", 2, 2)):
        _, params, _ = train(
            tmp_path / name,
            {"first_moment_bits": 32},
            dropout=0.0,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=passes,
            max_grad_norm=0.5,
            max_steps=3,
            save_strategy="no",
        )
        runs.append(params)
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def lora_run(
    construct: Callable[..., Optimizer], dtype: torch.dtype
) -> tuple[Any, Optimizer, list[float], dict[str, Tensor]]:
    """Twenty steps of adapters of rank 8; also the parameters after the first step."""
    model = get_peft_model(
        gpt2(),
        LoraConfig(r=8, lora_alpha=16, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
    ).to(dtype)
    optimizer = construct([p for p in model.parameters() if p.requires_grad], lr=0.02)
    tokens = torch.stack([entry["input_ids"] for entry in sequences(16)])
    losses, first = [], {}
    model.eval()  # without dropout
    for step in range(20):
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        if step == 0:
            grads = [p.grad for n, p in model.named_parameters() if "lora_A" in n]
            assert [grad is not None and not grad.any() for grad in grads] == [True, True]
        optimizer.step()
        if step == 0:
            first = {name: param.detach().clone() for name, param in model.named_parameters()}
        losses.append(float(loss.detach()))
    return model, optimizer, losses, first


@cache
def losses_of_adamw(dtype: torch.dtype) -> list[float]:
    return lora_run(AdamW, dtype)[2]


@cache
def lora_start(dtype: torch.dtype) -> dict[str, Tensor]:
    """The parameters before any step: a run at rate zero."""
    model = lora_run(lambda params, lr: torch.optim.SGD(params, lr=0.0), dtype)[0]
    return {name: param.detach() for name, param in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lora_adapters_learn_from_a_zero_first_gradient(
    main_form: Build, dtype: torch.dtype
) -> None:
    """A only decays in the first step, since B is zero; then both learn, and nothing else moves."""
    model, optimizer, losses, first = lora_run(main_form, dtype)
    start, adamw = lora_start(dtype), losses_of_adamw(dtype)
    for name, param in model.named_parameters():
        if "lora_A" in name:
            expected = start[name] * (1 - 0.02 * 1e-2)
            torch.testing.assert_close(first[name], expected)
            assert not torch.equal(param, first[name])
        elif "lora_B" in name:
            assert bool(first[name].any())
        else:
            assert torch.equal(param, start[name])
            assert param not in optimizer.state
        assert param.isfinite().all()
    assert len(optimizer.state) == 4
    assert math.isfinite(losses[-1])
    assert losses[0] - losses[-1] > 0.7 * (adamw[0] - adamw[-1])
