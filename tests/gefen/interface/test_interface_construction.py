"""What the constructor, `add_param_group` and loading accept and refuse, as torch.optim.AdamW."""

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from gefen import Gefen

Build = Callable[..., Gefen]


def leaf(*shape: int) -> Tensor:
    return torch.ones(shape).requires_grad_()


def outcome(act: Callable[[], object]) -> tuple[type, str]:
    """The type and text of what `act` raises; warnings count as errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            act()
        except Exception as error:
            return type(error), str(error)
    return type(None), ""


def test_the_signature_begins_with_that_of_adamw() -> None:
    """Names, order, kinds and defaults; everything of ours is keyword-only."""
    ours = list(inspect.signature(Gefen).parameters.values())
    theirs = list(inspect.signature(AdamW).parameters.values())
    for mine, other in zip(ours, theirs, strict=False):
        assert (mine.name, mine.kind, mine.default) == (other.name, other.kind, other.default)
    assert {extra.kind for extra in ours[len(theirs) :]} == {inspect.Parameter.KEYWORD_ONLY}
    steps = (inspect.signature(kind.step).parameters.values() for kind in (Gefen, AdamW))
    assert len({tuple((p.name, p.kind, p.default) for p in step) for step in steps}) == 1


def test_positional_arguments_mean_what_they_mean_in_adamw() -> None:
    arguments = (0.5, (0.1, 0.2), 0.3, 0.4, False)
    ours, theirs = Gefen([leaf(2)], *arguments), AdamW([leaf(2)], *arguments)
    for key in ("lr", "betas", "eps", "weight_decay", "amsgrad"):
        assert ours.param_groups[0][key] == theirs.param_groups[0][key]


def test_groups_have_the_keys_of_adamw() -> None:
    """Except Adam's own switch, which AdamW inherits and pins to True."""
    ours, theirs = Gefen([leaf(2)]).param_groups[0], AdamW([leaf(2)]).param_groups[0]
    assert set(theirs) - set(ours) == {"decoupled_weight_decay"}
    assert all(ours[key] == theirs[key] for key in set(theirs) & set(ours) - {"params"})


def test_every_option_reaches_the_groups_and_the_text(
    build: Build, options: dict[str, Any], pair: tuple[Tensor, Tensor]
) -> None:
    optimizer = build(pair)
    for key, value in {"min_quantized_size": 1, **options}.items():
        assert optimizer.param_groups[0][key] == value
        assert optimizer.defaults[key] == value
        assert f"    {key}: " in repr(optimizer)
    assert repr(optimizer).startswith("Gefen (\nParameter Group 0\n")


def test_parameters_come_in_every_form_that_adamw_takes(build: Build) -> None:
    forms: list[Callable[[nn.Module], Any]] = [
        lambda model: model.parameters(),
        lambda model: model.named_parameters(),
        lambda model: iter(list(model.parameters())),
        lambda model: dict(model.named_parameters()).values(),
        lambda model: ({"params": [p]} for p in model.parameters()),
        lambda model: [{"params": p} for p in model.parameters()],
        lambda model: [{"params": (p for p in model.parameters()), "lr": 0.5, "mine": "kept"}],
        lambda model: [{"params": model.named_parameters(), "weight_decay": 0.3}],
        lambda model: [{"params": []}, {"params": model.parameters()}],
    ]
    for form in forms:
        model = nn.Linear(3, 2)
        ours, theirs = build(form(model)), AdamW(form(model))
        assert len(ours.param_groups) == len(theirs.param_groups)
        for mine, other in zip(ours.param_groups, theirs.param_groups, strict=True):
            assert [id(p) for p in mine["params"]] == [id(p) for p in other["params"]]
            for key in ("param_names", "mine"):
                assert mine.get(key) == other.get(key)


WRONG_PARAMS: dict[str, Callable[[], Any]] = {
    "no iterable": lambda: leaf(1, 1),
    "nothing": lambda: [],
    "no tensors": lambda: ["weight"],
    "not a leaf": lambda: [leaf(2, 2) * 2],
    "a set": lambda: [{"params": {leaf(2)}}],
    "twice in a group": lambda: [leaf(1, 1)] * 2,
    "twice in groups": lambda: [{"params": tensor} for tensor in [leaf(1, 1)] * 2],
    "names missing": lambda: [("weight", leaf(2)), leaf(3)],
    "names missing in a group": lambda: [
        {"params": [leaf(2)], "lr": 1e-2},
        {"params": [("weight", leaf(3))]},
    ],
    "a group without params": lambda: [{"lr": 0.1}],
}


@pytest.mark.parametrize("name", WRONG_PARAMS)
def test_wrong_parameters_get_the_answer_of_adamw(name: str) -> None:
    kind, text = outcome(lambda: AdamW(WRONG_PARAMS[name]()))
    assert kind is not type(None)
    assert outcome(lambda: Gefen(WRONG_PARAMS[name]())) == (kind, text)


WRONG_GROUPS: dict[str, Callable[[Tensor], Any]] = {
    "no dict": lambda own: [own],
    "own parameter again": lambda own: {"params": [own]},
    "not a leaf": lambda own: {"params": [own * 2]},
    "a set": lambda own: {"params": {leaf(2)}},
    "names in a group of no names": lambda own: {"params": [("weight", leaf(2))]},
    "no params": lambda own: {"lr": 0.1},
}


@pytest.mark.parametrize("name", WRONG_GROUPS)
def test_wrong_groups_get_the_answer_of_adamw_and_change_nothing(name: str) -> None:
    answers = []
    for kind in (AdamW, Gefen):
        own = leaf(2, 2)
        optimizer: Optimizer = kind([own])
        answers.append(outcome(partial(optimizer.add_param_group, WRONG_GROUPS[name](own))))
        assert len(optimizer.param_groups) == 1
    assert answers[0] == answers[1]
    assert answers[0][0] is not type(None)


WRONG_OPTIONS: dict[str, dict[str, Any]] = {
    "lr": {"lr": -1e-2},
    "lr nan": {"lr": float("nan")},
    "lr of two": {"lr": torch.tensor([0.001, 0.001])},
    "lr tensor negative": {"lr": torch.tensor(-1.0)},
    "beta1": {"lr": 1e-2, "betas": (1.0, 0.0)},
    "beta2": {"betas": (0.5, 1.0)},
    "beta2 negative": {"betas": (0.5, -0.1)},
    "eps": {"eps": -1e-8},
    "weight decay": {"weight_decay": -1},
    "betas mixed": {"lr": 1e-2, "betas": (0.9, torch.tensor(0.99))},
    "betas mixed too": {"lr": 1e-2, "betas": (torch.tensor(0.9), 0.99)},
}


@pytest.mark.parametrize("name", WRONG_OPTIONS)
def test_wrong_options_get_the_answer_of_adamw(name: str) -> None:
    wrong = WRONG_OPTIONS[name]
    kind, text = outcome(lambda: AdamW([leaf(2)], **wrong))
    assert kind is ValueError
    assert outcome(lambda: Gefen([leaf(2)], **wrong)) == (kind, text)


REFUSED: list[dict[str, Any]] = [
    {"amsgrad": True},
    {"differentiable": True},
    {"first_moment_bits": 16},
    {"first_moment_bits": "8"},
    {"first_moment_bits": 8.0},
    {"second_moment": "row"},
    {"second_moment": None},
    {"group_size": 0},
    {"group_size": 2.5},
    {"block_size": 0},
    {"block_size": True},
    {"min_quantized_size": 0},
    *({key: "no"} for key in ("fused", "foreach", "skip_nonfinite", "maximize", "capturable")),
    *({key: value} for key in ("fused", "amsgrad") for value in (0, 1.0, "true", [])),
]


@pytest.mark.parametrize("wrong", REFUSED, ids=str)
def test_what_gefen_alone_refuses_is_named_in_one_sentence(wrong: dict[str, Any]) -> None:
    """The same words from the constructor, a group of it, and `add_param_group`."""
    ((key, value),) = wrong.items()
    optimizer = Gefen([leaf(2)])
    answers = {
        outcome(lambda: Gefen([leaf(3)], **wrong)),
        outcome(lambda: Gefen([{"params": [leaf(3)], **wrong}])),
        outcome(lambda: optimizer.add_param_group({"params": [leaf(3)], **wrong})),
    }
    ((kind, text),) = answers
    assert kind is ValueError
    assert key in text
    assert str(value) in text
    assert "\n" not in text
    assert text.endswith(".")
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("dtype", [torch.complex64, torch.int64, torch.float8_e4m3fn], ids=str)
def test_parameters_of_other_dtypes_are_refused(build: Build, dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match=str(dtype)):
        build([torch.zeros(16, 32, dtype=dtype)])


def test_sparse_gradients_are_refused_as_by_adamw(build: Build) -> None:
    """RuntimeError from `step`, before anything changed."""
    for construct in (build, AdamW):
        dense, embedding = leaf(12, 32), nn.Embedding(12, 32, sparse=True)
        dense.grad = torch.ones(12, 32)
        embedding(torch.tensor([1, 2])).sum().backward()
        optimizer = construct([dense, embedding.weight])
        with pytest.raises(RuntimeError, match="does not support sparse gradients"):
            optimizer.step()
        assert bool((dense == 1).all())


@pytest.mark.parametrize("saved", [[[2], [3]], [[2]], [[2, 3, 4]]], ids=str)
def test_states_of_other_groups_are_refused_as_by_adamw(saved: list[list[int]]) -> None:
    """With a ValueError, and nothing has changed."""
    for construct in (AdamW, Gefen):
        other: Optimizer = construct([{"params": [leaf(n) for n in sizes]} for sizes in saved])
        params = [leaf(2), leaf(3)]
        optimizer: Optimizer = construct(params, lr=0.5)
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        before = str(optimizer.state_dict())
        assert outcome(partial(optimizer.load_state_dict, other.state_dict()))[0] is ValueError
        assert str(optimizer.state_dict()) == before
