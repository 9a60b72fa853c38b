"""STAM and STAMLite against the published formulas, transcribed in float64 with numpy."""

import math
from collections.abc import Callable
from typing import Any

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from harness.optimizers.implementations.stam import STAM, STAMLite

Array = NDArray[np.float64]
Kind = type[STAM] | type[STAMLite]
LR, EPS, DECAY = 0.01, 1e-8, 0.1


class Formulas:
    """One tensor `theta` (any shape) under the formulas, with the betas and `a` of the source."""

    def __init__(self, theta: Array, b: float, beta2: float, a: float) -> None:
        self.theta, self.b, self.beta2, self.a = theta.copy(), b, beta2, a
        self.m, self.v = np.zeros_like(theta), np.zeros_like(theta)
        self.t, self.product, self.beta1 = 0, 1.0, math.nan
        self.fallbacks = 0

    def adapted(self, z: float) -> float:
        """beta1 for a ratio of noise to signal."""
        value = self.b * (1 - self.a * z / (1 + z))
        return min(max(value, 0.5, self.b * (1 - self.a)), self.b)

    def descend(self, g: Array, denominator: Callable[[], Array | float]) -> None:
        """First moment, its correction, and the step with decoupled decay."""
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.product *= self.beta1
        update = self.m / (1 - self.product + EPS) / (denominator() + EPS)
        self.theta = self.theta - LR * update - LR * DECAY * self.theta


class StamFormulas(Formulas):
    """STAM with its averages sigma2 and tau."""

    sigma2 = tau = 0.0

    def step(self, g: Array) -> None:
        g = np.where(np.isfinite(g), g, 0.0)
        self.t += 1
        r = g - self.m
        self.sigma2 = self.beta2 * self.sigma2 + (1 - self.beta2) * np.mean(r**2)
        self.tau = 0.99 * self.tau + 0.01 * np.mean(np.abs(r))
        if not np.isfinite(self.sigma2) or self.sigma2 >= 100 * (self.tau**2 + 1e-8):
            self.beta1 = self.b
            self.fallbacks += 1
        else:
            self.beta1 = self.adapted(max(0.0, self.sigma2 / (self.tau**2 + 1e-8)))
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        self.descend(g, lambda: np.sqrt(self.v / (1 - self.beta2**self.t + EPS)))


class LiteFormulas(Formulas):
    """STAMLite with its averages M and Q; `beta2` is the moment_decay."""

    mean = square = 0.0

    def step(self, g: Array) -> None:
        g = np.where(np.isfinite(g), g, 0.0)
        self.t += 1
        d = self.beta2
        self.mean = d * self.mean + (1 - d) * np.mean(g)
        self.square = d * self.square + (1 - d) * np.mean(g**2)
        mean, square = self.mean / (1 - d**self.t), self.square / (1 - d**self.t)
        if self.t % 5 == 1:
            self.beta1 = self.adapted(max(square - mean**2, 0.0) / (square + EPS))
        self.descend(g, lambda: math.sqrt(square))


PAIRS: list[tuple[Kind, type[Formulas]]] = [(STAM, StamFormulas), (STAMLite, LiteFormulas)]
each = pytest.mark.parametrize("kind", [STAM, STAMLite])
both = pytest.mark.parametrize(("kind", "formulas"), PAIRS)


def gradients(shape: tuple[int, ...], steps: int, seed: int, scale: float = 1.0) -> list[Array]:
    """Gradients with a mean that drifts, a scale that changes by the element, and outliers."""
    rng = np.random.default_rng(seed)
    width = 10.0 ** rng.uniform(-2, 0, shape)
    found = []
    for step in range(steps):
        g = width * (rng.standard_normal(shape) + math.sin(step / 20))
        found.append(scale * g * (30 if step % 37 == 36 else 1))
    return found


def run(
    kind: Kind,
    formulas: type[Formulas],
    stream: list[Array],
    b: float = 0.9,
    a: float = 0.2,
    **o: Any,
) -> tuple[Any, Any, list[tuple[float, float]]]:
    """The optimizer in float64 and the formulas over a stream, compared after every step."""
    start = np.random.default_rng(9).standard_normal(stream[0].shape)
    beta2 = o.pop("beta2", 0.999 if kind is STAM else 0.99)
    definition: Any = formulas(start, b, beta2, a)
    parameter = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer: Any = kind(
        [parameter], LR, (b, beta2), EPS, weight_decay=DECAY, adapt_strength=a, **o
    )
    momenta = []
    for g in stream:
        definition.step(g)
        parameter.grad = torch.from_numpy(g.copy())
        optimizer.step()
        momenta.append((float(optimizer.state[parameter]["beta1"]), definition.beta1))
        np.testing.assert_allclose(
            parameter.detach().numpy(), definition.theta, rtol=1e-9, atol=1e-9
        )
        np.testing.assert_allclose(*momenta[-1], rtol=1e-10)
    np.testing.assert_allclose(optimizer.state[parameter]["exp_avg"], definition.m, atol=1e-12)
    return definition, optimizer.state[parameter], momenta


@both
@pytest.mark.parametrize("scale", [1.0, 3e-5])
def test_200_steps_are_those_of_the_formulas(
    kind: Kind, formulas: type[Formulas], scale: float
) -> None:
    definition, state, momenta = run(kind, formulas, gradients((7, 33), 200, 0, scale))
    assert float(state["step"]) == 200
    assert 1 - float(state["bias_correction1"]) == pytest.approx(definition.product, abs=1e-12)
    found = [mine for mine, _ in momenta]
    assert len(set(found)) == (200 if kind is STAM else 40)


@pytest.mark.parametrize("steps", [1, 10, 60])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 3e-5, 1e-6])
def test_momentum_follows_the_scale_of_gaussian_gradients(scale: float, steps: int) -> None:
    """Closed form: mean(|r|) is sqrt(2 / pi) of the root mean square; here m is small beside g."""
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.zeros(200, 200))
    optimizers = [STAM([parameter]), STAMLite([parameter])]
    for _ in range(steps):
        parameter.grad = scale * torch.randn(200, 200, generator=generator)
        for optimizer in optimizers:
            optimizer.step()
    sigma2 = (1 - 0.999**steps) * scale**2
    tau2 = (1 - 0.99**steps) ** 2 * scale**2 * 2 / math.pi
    ratios = sigma2 / (tau2 + 1e-8), scale**2 / (scale**2 + 1e-8)
    for optimizer, z in zip(optimizers, ratios, strict=True):
        found = float(optimizer.state[parameter]["beta1"])
        assert found == pytest.approx(0.9 * (1 - 0.2 * z / (1 + z)), abs=2e-3)
        assert found > 0.885 if scale <= 3e-5 else found < 0.86 or scale < 1


def test_outliers_fall_back_to_the_base_momentum() -> None:
    # One element in 400 moves: mean(r^2) is 400 times mean(|r|)^2.
    stream = [np.zeros((20, 20)) for _ in range(200)]
    for step, g in enumerate(stream):
        g.flat[7 if step < 100 else slice(None)] = 1 + 0.1 * math.sin(step)
    definition, _, momenta = run(STAM, StamFormulas, stream)
    assert 20 < definition.fallbacks < 180
    assert {mine for mine, _ in momenta[: definition.fallbacks]} == {0.9}
    assert momenta[-1][0] < 0.85


@both
def test_gradients_that_are_not_finite_count_as_zero(kind: Kind, formulas: type[Formulas]) -> None:
    stream = gradients((6, 5), 200, 1)
    for step, bad in ((0, math.nan), (3, math.inf), (4, -math.inf), (50, math.nan)):
        stream[step].flat[[0, 7]] = bad
    stream[120][:] = math.nan
    _, state, _ = run(kind, formulas, stream)
    assert all(bool(value.isfinite().all()) for value in state.values())


@each
def test_a_square_beyond_float32_takes_the_base_momentum(kind: Kind) -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = kind([parameter])
    parameter.grad = torch.tensor([1e30, -1e30, 1.0])  # squares are infinite in float32
    optimizer.step()
    assert float(optimizer.state[parameter]["beta1"]) == pytest.approx(0.9)
    assert bool(parameter.isfinite().all())


@settings(max_examples=40, deadline=None)
@given(
    pair=st.sampled_from(PAIRS),
    shape=hnp.array_shapes(min_dims=0, max_dims=4, max_side=5),
    b=st.sampled_from([0.0, 0.3, 0.5, 0.55, 0.9, 0.99]),
    beta2=st.sampled_from([0.0, 0.5, 0.95, 0.999]),
    a=st.floats(0, 0.5),
    exponent=st.integers(-6, 3),
    seed=st.integers(0, 99),
)
def test_any_shape_and_setting_follows_the_formulas(
    pair: tuple[Kind, type[Formulas]],
    shape: tuple[int, ...],
    b: float,
    beta2: float,
    a: float,
    exponent: int,
    seed: int,
) -> None:
    stream = [np.asarray(g) for g in gradients(shape, 12, seed, 10.0**exponent)]
    _, _, momenta = run(*pair, stream, b, a, beta2=beta2)
    assert all(min(b, max(0.5, b * (1 - a))) <= mine <= b for mine, _ in momenta)


@each
def test_without_adaptation_stam_is_adamw(kind: Kind) -> None:
    """adapt_strength 0: STAM is torch's AdamW; STAMLite is it for tensors of one element."""
    shape = (9, 4) if kind is STAM else ()
    parameters = [torch.nn.Parameter(torch.ones(shape, dtype=torch.float64)) for _ in range(2)]
    mine: Any = kind([parameters[0]], 0.01, (0.9, 0.99), weight_decay=0.1, adapt_strength=0.0)
    adamw = torch.optim.AdamW([parameters[1]], 0.01, (0.9, 0.99), weight_decay=0.1)
    for g in gradients(shape, 50, 3):
        for parameter, optimizer in zip(parameters, (mine, adamw), strict=True):
            parameter.grad = torch.as_tensor(g)
            optimizer.step()
    # eps stands inside the root and beside the corrections too: a difference of its size.
    torch.testing.assert_close(*parameters, rtol=0, atol=1e-6)


@each
def test_float32_and_bfloat16_stay_near_float64(kind: Kind) -> None:
    stream = gradients((8, 16), 60, 4)
    found = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        parameter = torch.nn.Parameter(torch.zeros(8, 16, dtype=dtype))
        optimizer = kind([parameter], 1e-3, (0.9, 0.95))
        for g in stream:
            parameter.grad = torch.from_numpy(g).to(dtype)
            optimizer.step()
        state = optimizer.state[parameter]
        assert all(value.dtype == dtype for value in (parameter, state["exp_avg"]))
        scalar = torch.float64 if dtype == torch.float64 else torch.float32
        assert {v.dtype for v in state.values() if v.ndim == 0} == {scalar}
        found[dtype] = (parameter.detach().double(), float(state["beta1"]))
    theta, beta1 = found[torch.float64]
    for dtype, near in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        assert float((found[dtype][0] - theta).norm() / theta.norm()) < near
        assert found[dtype][1] == pytest.approx(beta1, rel=near)
