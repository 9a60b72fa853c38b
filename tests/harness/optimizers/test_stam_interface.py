"""STAM and STAMLite as torch optimizers: groups, closures, saving, refusals."""

import copy
import inspect
import io
import math
import pickle
import weakref
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness import models, optimizers
from harness.config import OptimizerConfig, from_dict
from harness.config.groups import load_group
from harness.optimizers.implementations.stam import STAM, STAMLite
from harness.research.beta1 import AUTHORS

Kind = type[STAM] | type[STAMLite]
each = pytest.mark.parametrize("kind", [STAM, STAMLite])


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """A matrix, a vector and a scalar, always the same."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7), (6,), ()]
    return [nn.Parameter(torch.randn(s, generator=generator).to(dtype)) for s in shapes]


def steps(params: list[nn.Parameter], optimizer: Any, first: int, last: int) -> None:
    for step in range(first, last):
        generator = torch.Generator().manual_seed(100 + step)
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        optimizer.step()


def assert_equal(mine: list[nn.Parameter], other: list[nn.Parameter]) -> None:
    for a, b in zip(mine, other, strict=True):
        assert torch.equal(a, b)


@each
def test_studies_run_with_the_authors_betas(kind: Kind) -> None:
    name = {STAM: "stam", STAMLite: "stam_lite"}[kind]
    betas = load_group("optimizer", name)["betas"]
    assert tuple(betas) == inspect.signature(kind).parameters["betas"].default
    assert betas == AUTHORS[name]


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_resume_is_exact(kind: Kind, dtype: torch.dtype) -> None:
    mine = parameters(dtype)
    optimizer = kind(mine, 0.01)
    steps(mine, optimizer, 0, 8)  # between two updates of STAMLite's beta1
    file = io.BytesIO()
    torch.save({"p": [p.detach().clone() for p in mine], "o": optimizer.state_dict()}, file)
    steps(mine, optimizer, 8, 20)

    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = [nn.Parameter(p) for p in saved["p"]]
    resumed = kind(other, 0.5)
    resumed.load_state_dict(saved["o"])
    assert resumed.param_groups[0]["lr"] == 0.01
    steps(other, resumed, 8, 20)
    assert_equal(mine, other)
    for p, q in zip(mine, other, strict=True):
        assert all(torch.equal(v, resumed.state[q][k]) for k, v in optimizer.state[p].items())
        assert {k: v.dtype for k, v in optimizer.state[p].items()} == {
            k: v.dtype for k, v in resumed.state[q].items()
        }


@each
def test_a_loaded_state_is_a_copy(kind: Kind) -> None:
    mine, other = parameters(), parameters()
    optimizer, loaded = kind(mine), kind(other)
    steps(mine, optimizer, 0, 2)
    before = copy.deepcopy(optimizer.state_dict())
    loaded.load_state_dict(optimizer.state_dict())
    steps(other, loaded, 2, 4)
    scalars = [s["step"] for s in optimizer.state_dict()["state"].values()]
    assert [float(s) for s in scalars] == [float(s["step"]) for s in before["state"].values()]


@each
def test_copies_and_pickles_go_on_alike(kind: Kind) -> None:
    mine = parameters()
    optimizer = kind(mine, 0.01)
    steps(mine, optimizer, 0, 3)
    copies = [
        copy.deepcopy((mine, optimizer)),
        pickle.loads(pickle.dumps((mine, optimizer))),
    ]
    steps(mine, optimizer, 3, 9)
    for other, duplicate in copies:
        steps(other, duplicate, 3, 9)
        assert_equal(mine, other)


@each
def test_groups_are_optimizers_of_their_own(kind: Kind) -> None:
    options: list[dict[str, Any]] = [
        {"lr": 0.1, "weight_decay": 0.0, "adapt_strength": 0.5},
        {"betas": (0.6, 0.9), "eps": 1e-4},
        {"maximize": True},
    ]
    mine, other = parameters(), parameters()
    together = kind([{"params": [p], **o} for p, o in zip(mine, options, strict=True)])
    steps(mine, together, 0, 12)
    for p, own in zip(other, options, strict=True):
        p_alone = kind([p], **own)
        for step in range(12):
            generator = torch.Generator().manual_seed(100 + step)
            gradients = [torch.randn(q.shape, generator=generator) for q in other]
            p.grad = gradients[[q is p for q in other].index(True)]
            p_alone.step()
    assert_equal(mine, other)


@each
def test_options_that_say_the_same_do_the_same(kind: Kind) -> None:
    """A tensor as rate; ascent on negated gradients; names; a closure; parameters without one."""
    reference = parameters()
    steps(reference, kind(reference, 0.25), 0, 7)
    by_tensor, upwards, named = parameters(), parameters(), parameters()
    steps(by_tensor, kind(by_tensor, torch.tensor([0.25])), 0, 7)
    steps(named, kind([(str(i), p) for i, p in enumerate(named)], 0.25), 0, 7)
    ascent = kind(upwards, 0.25, maximize=True)
    idle = nn.Parameter(torch.ones(3))
    ascent.add_param_group({"params": [idle]})
    for step in range(7):
        generator = torch.Generator().manual_seed(100 + step)
        gradients = [-torch.randn(p.shape, generator=generator) for p in upwards]

        def closure(gradients: list[Tensor] = gradients) -> float:
            assert torch.is_grad_enabled()
            for p, g in zip(upwards, gradients, strict=True):
                p.grad = g
            return 1.5

        assert ascent.step(closure) == 1.5
        assert all(torch.equal(p.grad, g) for p, g in zip(upwards, gradients, strict=True))
    assert idle not in ascent.state
    for other in (by_tensor, upwards, named):
        assert_equal(reference, other)


@each
def test_memory_layouts_and_empty_tensors(kind: Kind) -> None:
    plain = nn.Parameter(torch.arange(24.0).reshape(4, 6))
    turned = nn.Parameter(torch.arange(24.0).reshape(4, 6).T.contiguous().T)
    empty = nn.Parameter(torch.ones(0, 3))
    first, second = kind([plain]), kind([turned, empty])
    for step in range(6):
        grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        plain.grad, turned.grad = grad, grad.T.contiguous().T
        empty.grad = torch.ones(0, 3)
        first.step()
        second.step()
    torch.testing.assert_close(plain, turned)
    assert second.state[turned]["exp_avg"].stride() == turned.stride()
    assert all(bool(value.isfinite().all()) for value in second.state[empty].values())


@each
def test_a_step_reads_nothing_from_the_device(kind: Kind) -> None:
    # Tensors of the meta device hold no data: any read of a value raises.
    p = nn.Parameter(torch.ones(4, 4, device="meta", dtype=torch.bfloat16))
    optimizer = kind([p])
    for _ in range(2):
        p.grad = torch.ones_like(p)
        optimizer.step()
    assert optimizer.state[p]["step"].device.type == "meta"


def test_means_of_large_tensors_are_exact() -> None:
    p = nn.Parameter(torch.zeros(6_000_000))
    p.grad = torch.rand(p.shape, generator=torch.Generator().manual_seed(0)).add_(0.5)
    exact = p.grad.double()
    for kind, name, decay in ((STAM, "residual_abs", 0.99), (STAMLite, "grad_mean", 0.99)):
        optimizer = kind([p], 0.0)
        optimizer.step()
        mean = float(optimizer.state[p][name]) / (1 - decay)
        assert mean == pytest.approx(float(exact.mean()), rel=1e-6)


COMMON: list[tuple[dict[str, Any], str]] = [
    ({"lr": -1.0}, "Invalid learning rate: -1.0"),
    ({"lr": math.nan}, "Invalid learning rate: nan"),
    ({"lr": torch.ones(2)}, "Tensor lr must be 1-element"),
    ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
    ({"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
    ({"betas": (0.9,)}, r"betas must be two floats, not \(0.9,\)"),
    ({"eps": -1e-8}, "Invalid epsilon value: -1e-08"),
    ({"weight_decay": -0.1}, "Invalid weight_decay value: -0.1"),
    ({"adapt_strength": 0.6}, "adapt_strength must be from 0 to 0.5, not 0.6"),
]
OWN: list[tuple[Kind, dict[str, Any], str]] = [
    (STAM, {"tau_decay": 1.0}, r"tau_decay must be in \[0, 1\), not 1.0"),
    (STAM, {"fallback_threshold": 0.0}, "fallback_threshold must be above 0, not 0.0"),
    (STAMLite, {"beta1_update_interval": 0}, "must be an integer of at least 1, not 0"),
    (STAMLite, {"beta1_update_interval": 2.5}, "must be an integer of at least 1, not 2.5"),
]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [*((kind, *case) for kind in (STAM, STAMLite) for case in COMMON), *OWN],
)
def test_mistakes_are_named(kind: Kind, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(parameters(), **options)
    optimizer = kind(parameters())
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **options})
    assert len(optimizer.param_groups) == 1


@each
def test_what_cannot_be_updated_is_refused(kind: Kind) -> None:
    with pytest.raises(ValueError, match=r"not torch\.complex64 with layout torch\.strided"):
        kind([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    table, dense = nn.Embedding(4, 3, sparse=True), nn.Parameter(torch.ones(2))
    optimizer = kind([dense, table.weight])
    (table(torch.tensor([1])).sum() + dense.sum()).backward()
    with pytest.raises(RuntimeError, match=f"{kind.__name__} does not support sparse gradients"):
        optimizer.step()
    assert torch.equal(dense, torch.ones(2))
    assert not optimizer.state


@each
def test_a_state_that_does_not_fit_is_refused(kind: Kind) -> None:
    mine, adamw_params, wide = parameters(), parameters(), [nn.Parameter(torch.ones(2, 2))]
    optimizer, adamw, other = kind(mine), torch.optim.AdamW(adamw_params), kind(wide)
    for params, o in ((mine, optimizer), (adamw_params, adamw), (wide, other)):
        steps(params, o, 0, 1)
    before = copy.deepcopy(optimizer.state_dict())
    message = f"The state_dict has no '.*', which {kind.__name__} needs; it has exp_avg, exp_avg_sq"
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(adamw.state_dict())
    with pytest.raises(ValueError, match=r"'exp_avg' of shape \(5, 7\) for .* \(2, 2\)"):
        other.load_state_dict(kind.state_dict(_first_of(kind)))
    wrong = optimizer.state_dict()
    wrong["param_groups"] = [{**wrong["param_groups"][0], "adapt_strength": 0.7}]
    with pytest.raises(ValueError, match=r"adapt_strength must be from 0 to 0\.5, not 0\.7"):
        optimizer.load_state_dict(wrong)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, state in before["state"].items():
        assert all(torch.equal(v, after["state"][key][k]) for k, v in state.items())


def _first_of(kind: Kind) -> Any:
    params = parameters()[:1]
    optimizer = kind(params)
    steps(params, optimizer, 0, 1)
    return optimizer


class Live(TorchDispatchMode):
    """The most bytes alive at once of what operations return while it is active."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._seen = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            storage = leaf.untyped_storage() if isinstance(leaf, Tensor) else None
            if storage is not None and storage._cdata not in self._seen:
                self._seen.add(storage._cdata)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._release, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _release(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live -= size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["stam", "stam_lite"])
def test_a_step_holds_what_its_closed_form_says(name: str, dtype: torch.dtype) -> None:
    """Beside the largest tensor smaller ones, which come after it and take its room."""
    model = nn.Sequential(nn.Linear(512, 1024), nn.Linear(1024, 256)).to(dtype)
    config = from_dict(OptimizerConfig, load_group("optimizer", name), "optimizer.")
    optimizer = optimizers.build_optimizer(model, config)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    states = (v for s in optimizer.state.values() for v in s.values() if isinstance(v, Tensor))
    gradients = (p.grad for p in model.parameters() if p.grad is not None)
    with Live([*model.parameters(), *gradients, *states]) as live:
        optimizer.step()
    specs = models.specs_of(model)
    stated = optimizers.step_transient_bytes(config, specs, dtype.itemsize, "cpu")
    assert stated is not None
    assert live.peak == pytest.approx(stated, rel=0.02)
