"""gefen-plan: bytes of a rank, cards, the reverse question, records, and the command line."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.cells import store
from harness.planner import check, memory, plan
from harness.planner.activations import Peaks
from harness.planner.app import main
from harness.planner.config import GIB, PlanConfig, build, size, split

PUBLISHED = Path(__file__).parents[3] / "results"
RESULTS = PUBLISHED / "reproduce_full"
TINY = ("model=gpt2_tiny", "seq_len=64", "precision=fp32", "headroom_gib=0")


def tiny(*words: str) -> PlanConfig:
    return build(split([*TINY, *words]))


def test_bytes_of_gpt2_are_those_of_its_published_size() -> None:
    config = build(split(["model=gpt2_124m", "optimizer=adamw"]))
    specs, peaks = plan.parameter_specs(config), Peaks(300, 200, 100)
    one = memory.estimate(config, config.optimizers[0], specs, peaks, memory.ONE)
    assert one.parameter_bytes == one.gradient_bytes == 4 * 124_439_808
    assert one.optimizer_state_bytes == 8 * 124_439_808 + 4 * 148  # a step for each tensor
    assert one.forward_backward_peak_bytes == 12 * 124_439_808 + 4 * 148 + 300
    assert one.step_peak_bytes == one.peak_bytes == 16 * 124_439_808 + 4 * 148
    ddp = memory.estimate(config, config.optimizers[0], specs, peaks, memory.DDP)
    assert ddp.peak_bytes == one.peak_bytes + 4 * 124_439_808
    pure = replace(config, precision="bf16_pure")
    half = memory.estimate(pure, config.optimizers[0], specs, peaks, memory.ONE)
    assert half.peak_bytes == 8 * 124_439_808 + 4 * 148


@pytest.mark.parametrize("word", ["grad_accumulation=2", "device=cpu"])
def test_all_gradients_lie_beside_activations(word: str) -> None:
    """With accumulation, and where the heap of a CPU process keeps freed activations."""
    config = tiny("optimizer=adamw", word)
    specs, peaks = plan.parameter_specs(config), Peaks(3000, 2000, 1000)
    item = memory.estimate(config, config.optimizers[0], specs, peaks, memory.ONE)
    assert item.optimizer_state_bytes is not None
    held = item.parameter_bytes + item.optimizer_state_bytes + item.gradient_bytes
    assert item.forward_backward_peak_bytes == held + 2000


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 64])
def test_shards_are_the_chunks_that_torch_cuts(ranks: int) -> None:
    specs = plan.parameter_specs(tiny())
    for spec, part in zip(specs, memory.shard(specs, ranks), strict=True):
        assert part.shape == torch.empty(spec.shape, device="meta").chunk(ranks)[0].shape


def test_cards_are_the_fewest_that_take_it() -> None:
    config = build(split(["model=llama3_8b", "optimizer=adamw", "seq_len=1024"]))
    (adamw,) = config.optimizers
    answer = plan.plan(config)
    assert answer.parameters == 8_030_261_248
    for fit in answer.fits:
        if fit.cards is not None:
            again, bytes_ = fit.checkpointing, fit.card_gib * GIB
            assert plan.peak_within(config, adamw, fit.cards, again, bytes_) is not None
            fewer = fit.cards - 1
            assert not fewer or plan.peak_within(config, adamw, fewer, again, bytes_) is None
    cards = {(fit.card_gib, fit.checkpointing): fit.cards for fit in answer.fits}
    # 16 bytes a parameter are 120 GiB: one card of 141, and of no smaller size.
    assert cards[141, True] == 1
    assert (cards[80, True] or 0) >= 2


def test_state_that_gradients_decide_gives_no_peak() -> None:
    config = tiny("optimizer=gefen")
    config.optimizers[0].options["second_moment"] = "peak"
    item = plan.estimate(config, config.optimizers[0])
    assert (item.optimizer_state_bytes, item.peak_bytes) == (None, None)
    assert all(fit.cards is None for fit in plan.plan(config).fits)


@pytest.mark.parametrize("edge", [1, 2, 3, 15, 16, 17, 100, 999, 1000])
def test_bisection_finds_the_edge_within_a_sixteenth(edge: int) -> None:
    found = plan.bisect(lambda n: n <= edge, 1, 1000)
    assert found is not None
    assert found <= edge < found + max(1, found // 16)
    for start in (1, 7, 16, 1000, 2000):
        started = plan.bisect(lambda n: n <= edge, 1, 1000, start)
        assert started is not None
        assert started <= edge < started + max(1, started // 16)
    assert plan.bisect(lambda n: False, 1, 1000) is None
    assert plan.bisect(lambda n: False, 1, 1000, 8) is None


def test_largest_micro_batch_fits_and_a_larger_one_does_not() -> None:
    config, room = tiny("optimizer=adamw"), 24 * 2**20
    (plain, again) = plan.largest_micro_batch(config, room)
    assert isinstance(plain.value, int)
    assert isinstance(again.value, int)
    assert plain.peak_bytes is not None
    assert plain.peak_bytes <= room
    more = replace(config, micro_batch=math.ceil(plain.value * 1.0625) + 1)
    assert plan.peak_within(more, config.optimizers[0], 1, False, room) is None
    short = tiny("optimizer=adamw", "model.max_positions=8", "seq_len=8")
    assert [item.value for item in plan.largest_seq_len(short, 2**40)] == [8, 8]


@pytest.mark.parametrize("study", ["reproduce_full", "memory", "capacity", "stam_state"])
def test_published_records_are_predicted(study: str) -> None:
    found = check.compare_all(PUBLISHED / study)
    verdicts = Counter(item.verdict for item in found)
    assert set(verdicts) <= {"ok", "small"}
    assert verdicts["ok"] >= 8


def test_what_cannot_be_predicted_is_no_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    """Gradients decide the state of the published package: it is shown, and judged as nothing."""
    assert main(["--check", str(PUBLISHED / "published")]) == 0
    text = capsys.readouterr().out
    assert text.count("not predicted") == 7
    assert "\n5 of 5 judged cells are within" in text


def test_rotary_models_are_planned_beyond_their_table_of_positions() -> None:
    """As `gefen-bench` runs them; more tokens take more activations and the same state."""
    plans = []
    for length in (1024, 4096):
        config = build(split(["model=llama_4m", f"seq_len={length}"]))
        plans.append(plan.estimate(config, config.optimizers[0]))
    assert plans[1].activation_bytes > 3 * plans[0].activation_bytes
    assert plans[1].optimizer_state_bytes == plans[0].optimizer_state_bytes


def test_bf16_is_autocast() -> None:
    assert build(split([*TINY, "precision=bf16"])).precision == "bf16_mixed"


def test_decoding_in_8_bits_takes_memory_on_a_cpu_alone() -> None:
    for device, expected in (("cpu", 7 * 4 * 50257 * 768), ("cuda", None)):
        words = ["model=gpt2_124m", "optimizer=adamw8bit", "seq_len=16", f"device={device}"]
        config = build(split(words))
        found = plan.estimate(config, config.optimizers[0])
        assert found.step_transient_bytes == expected


@pytest.mark.parametrize(
    ("state", "peak", "verdict"),
    [(1.0, 1.0, "ok"), (1.02, 1.0, "state off"), (1.0, 1.3, "peak off"), (1.0, 0.8, "peak off")],
)
def test_verdicts(state: float, peak: float, verdict: str) -> None:
    config = build(split(["model=gpt2_124m", "optimizer=adamw", "seq_len=16", "precision=fp32"]))
    config.device = "cpu"
    item = plan.estimate(config, config.optimizers[0])
    assert item.optimizer_state_bytes is not None
    assert item.peak_bytes is not None
    record = store.read_records(RESULTS)[0].record
    record.config |= {"seq_len": 16, "micro_batch": 1, "precision": "fp32"}
    record.config["optimizer"] = {"name": "adamw", "options": {"fused": True}}
    record.config["model"] = vars(config.model)
    record.metrics |= {
        "optimizer_state_bytes": int(state * item.optimizer_state_bytes),
        "peak_bytes": int(peak * item.peak_bytes),
        "memory_method": "vmhwm",
    }
    assert check.compare(record).verdict == verdict


@pytest.mark.parametrize(
    ("launch", "layout"),
    [
        ({"nproc": 1, "resume_from": "a"}, memory.ONE),
        ({"nproc": 3, "strategy": "ddp"}, memory.DDP),
        ({"nproc": 3, "strategy": "fsdp"}, memory.FSDP),
    ],
)
def test_records_of_ranks_are_compared_with_the_plan_of_a_rank(
    launch: dict[str, Any], layout: str
) -> None:
    config = tiny("optimizer=adamw")
    item = plan.estimate(config, config.optimizers[0], layout, launch["nproc"])
    record = store.read_records(RESULTS)[0].record
    record.config |= {"seq_len": 64, "micro_batch": 1, "precision": "fp32", "launch": launch}
    record.config["optimizer"] = {"name": "adamw", "options": {"fused": True}}
    record.config["model"] = vars(config.model)
    record.metrics |= {
        "optimizer_state_bytes": item.optimizer_state_bytes,
        "peak_bytes": item.peak_bytes,
        "memory_method": "cuda",
    }
    found = check.compare(record)
    assert (found.state_error, found.peak_error) == (0, 0)
    assert found.verdict == "ok"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model=nothing"], "allowed: gpt2_124m"),
        ([*TINY, "optimizer=sgd"], "optimizer=sgd is not known; allowed: "),
        ([*TINY, "seq_len=0"], "seq_len=0"),
        ([*TINY, "seq_len=300"], "256 positions"),
        ([*TINY, "precision=int4"], "fp32, bf16_mixed, bf16_pure"),
        ([*TINY, "device=tpu"], "device=tpu is not known; allowed: cuda, cpu."),
        ([*TINY, "batch=3"], "keys: model, optimizer"),
        ([*TINY, "model.width=3"], "hidden_size"),
        ([*TINY, "model.vocab_size=-5"], "model.vocab_size=-5 is too small"),
        ([*TINY, "model.lora_rank=4"], "model.lora_rank=4 cannot be planned"),
        ([*TINY, f"micro_batch={10**15}"], "too many tokens"),
        ([*TINY, "model.layers=[1"], "model.layers=[1 cannot be read; close its brackets"),
        (["gpt2_tiny"], "is not key=value"),
        ([], "Give model=NAME"),
        (["--fits", "much", "model=gpt2_tiny"], "24GiB"),
        (["--fits", "24GiB"], "family=NAME or model=NAME"),
        (["--fits", "24GiB", "family=bert"], "allowed: gpt2"),
        (["family=gpt2"], "--fits"),
        (["--check", "/nowhere"], "no folder"),
        ([*TINY, "--save"], "--save needs --check DIR."),
    ],
)
def test_a_mistake_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sentence in printed.err
    assert printed.err.startswith("gefen-plan: ")
    assert printed.err.count("\n") == 1


def test_table_and_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*TINY, "optimizer=adamw,gefen", "shards=2"]
    assert main(words) == 0
    text = capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert f"{values['parameters']:,} parameters" in text
    assert [item["optimizer"] for item in values["estimates"]] == ["adamw"] * 2 + ["gefen"] * 2
    assert text.count("fsdp x 2") == 4


def test_the_largest_of_a_family(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--fits", "16GiB", "family=gpt2", "optimizer=adamw", "precision=fp32", "--json"]
    assert main([*words, "seq_len=256"]) == 0
    answers = json.loads(capsys.readouterr().out)["model"]
    # 16 bytes a parameter: 774M are 11.5 GiB, 1558M are 23 GiB.
    assert [answer["value"] for answer in answers] == ["gpt2_774m"] * 2


def test_sizes() -> None:
    assert [size(text) for text in ("24GiB", "80GB", "512 MiB", "1.5")] == [
        24 * 2**30,
        80 * 10**9,
        512 * 2**20,
        3 * 2**29,
    ]
