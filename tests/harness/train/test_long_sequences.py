"""Lengths beyond the table of positions, recomputed activations, and keys swept together."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import yaml

from harness import models
from harness.cells import store
from harness.config import ROTARY_FAMILIES, ModelConfig, RunConfig, StudyConfig, from_dict, to_dict
from harness.config.groups import configs_dir, load_group
from harness.errors import UserError
from harness.launch import process
from harness.meters.limits import MAPPED_FROM
from harness.models.families import names, transformers_config
from harness.planner.check import compare
from harness.study import parts, planner
from harness.study.origins import Origins

MakeRun = Callable[..., RunConfig]


def load(name: str, **values: Any) -> ModelConfig:
    return from_dict(ModelConfig, load_group("model", name) | values)


def expand(part: dict[str, Any], extra: list[str] | None = None) -> list[list[str]]:
    return parts.expand(StudyConfig(name="s", parts={"p": part}), "s", extra or [])


def test_linked_keys_change_together_and_cross_with_the_sweep() -> None:
    linked = [{"seq_len": 128, "micro_batch": 8}, {"seq_len": 512, "micro_batch": 2}]
    found = expand({"linked": linked, "sweep": {"optimizer": ["adamw", "gefen"]}})
    assert [sorted(cell)[1:] for cell in found] == [
        [f"optimizer={name}", "part=p", f"seq_len={length}", "study=s"]
        for length in (128, 512)
        for name in ("adamw", "gefen")
    ]
    assert [cell for cell in found if "micro_batch=8" in cell] == found[:2]


@pytest.mark.parametrize(
    ("linked", "extra", "words"),
    [
        ([{"seq_len": 1}, {"micro_batch": 2}], [], "must be a list of overrides with the same"),
        ([], [], "must be a list of overrides"),
        ([{"seq_len": 8}], ["seq_len=16"], "seq_len is swept by part p"),
    ],
)
def test_wrong_linked_keys_are_named(linked: Any, extra: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        expand({"linked": linked}, extra)


def test_the_study_holds_tokens_a_step_constant() -> None:
    study = yaml.safe_load((configs_dir() / "study" / "long_sequences.yaml").read_text())
    lists = parts.expand(StudyConfig(name="l", parts=study["parts"]), "l", [])
    steps: dict[str, set[int]] = {}
    for overrides in lists:
        cell = {k: yaml.safe_load(v) for k, _, v in (text.partition("=") for text in overrides)}
        tokens = cell["seq_len"] * cell["micro_batch"] * cell.get("grad_accumulation", 1)
        steps.setdefault(cell["task"], set()).add(tokens)
    assert steps == {"memory": {32768}, "pretrain": {2048}}
    assert {text for cell in lists for text in cell if text.startswith("seq_len")} == {
        f"seq_len={n}" for n in (128, 1024, 2048, 8192, 32768)
    }


def test_rotary_families_are_those_with_rotary_positions() -> None:
    tiny = {name: load(f"{name}_tiny") for name in names() if name != "vit"}
    shapes = {name: transformers_config(config, 64) for name, config in tiny.items()}
    found = {name for name, shape in shapes.items() if getattr(shape, "rope_parameters", None)}
    assert found == set(ROTARY_FAMILIES)


def test_positions_follow_the_length_of_rotary_models_alone(make_run: MakeRun) -> None:
    model = load_group("model", "llama_tiny")
    run = make_run(model=model, seq_len=8192, task={"eval_tokens": 8192})
    config = planner.resolve(run)
    assert config.model.max_positions == config.seq_len == 8192
    short = planner.resolve(make_run(model=model))
    assert short.model.max_positions == model["max_positions"]
    with pytest.raises(UserError, match="seq_len=8192 is longer than the"):
        planner.resolve(make_run(seq_len=8192, task={"eval_tokens": 8192}))


def _note(calls: list[str], name: str, module: torch.nn.Module, inputs: Any) -> None:
    calls.append(name)


@pytest.mark.parametrize("name", ["gpt2_tiny", "llama_tiny"])
def test_recomputed_activations_give_the_same_gradients(name: str) -> None:
    """And every layer really runs twice: once forward, once for the backward pass."""
    ids = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(0))
    found = []
    for again in (False, True):
        model = models.build_model(load(name, activation_checkpointing=again), 64, 0)
        calls: list[str] = []
        for module_name, module in model.named_modules():
            if module_name.endswith(".mlp"):
                module.register_forward_pre_hook(partial(_note, calls, module_name))
        model(input_ids=ids, labels=ids).loss.backward()
        layers = {module_name: calls.count(module_name) for module_name in calls}
        assert layers
        assert set(layers.values()) == {2 if again else 1}
        found.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(found[1], found[0])


def test_recomputation_is_part_of_a_cell_and_of_its_prediction(make_run: MakeRun) -> None:
    plain = planner.resolve(make_run(model=load_group("model", "llama_tiny"), seq_len=512))
    again = replace(plain, model=replace(plain.model, activation_checkpointing=True))
    assert Origins().cell(plain, "data").id != Origins().cell(again, "data").id
    assert predicted(again) < 0.9 * predicted(plain)


def predicted(config: RunConfig) -> int:
    """The peak that the planner states for a record of this configuration."""
    metrics = {"optimizer_state_bytes": 8, "peak_bytes": 10**8, "memory_method": "vmhwm"}
    record = store.Record("i", "s", "p", "l", "done", config=to_dict(config), metrics=metrics)
    peak = compare(record).predicted_peak_bytes
    assert peak is not None
    return peak


def test_exact_peaks_change_the_process_the_cell_and_the_prediction(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(MAPPED_FROM, raising=False)
    # So large a vocabulary that its gradient is not hidden by activations.
    model = load_group("model", "llama_tiny") | {"vocab_size": 4096}
    plain = planner.resolve(make_run(model=model, task={"kind": "memory"}))
    exact = replace(plain, task=replace(plain.task, exact_peaks=True))
    assert Origins().cell(plain, "data").id != Origins().cell(exact, "data").id
    values = [
        process.environment_of(cell).get(MAPPED_FROM)
        for cell in planner.plan([plain, exact], progress=False)
    ]
    assert values == [None, "65536"]
    assert predicted(exact) < predicted(plain)
    together = [replace(run, grad_accumulation=2) for run in (exact, plain)]
    assert predicted(together[0]) == predicted(together[1])  # all gradients live in the last pass
