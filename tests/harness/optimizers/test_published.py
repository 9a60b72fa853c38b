"""The published packages beside our own, and the table of all optimizers."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gefen
from harness import optimizers
from harness.cli.bench import main
from harness.config import OptimizerConfig
from harness.config.groups import load_group
from harness.errors import UserError
from harness.meters.memory import optimizer_state_bytes
from harness.optimizers.wheels import Published, load
from harness.optimizers.wheels.__main__ import main as fetch

NAMES = ["gefen_upstream", "gefen_x"]


def config_of(name: str, **options: Any) -> OptimizerConfig:
    config = OptimizerConfig(**load_group("optimizer", name))
    config.options.update(options)
    return config


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A package named as ours that imports a part of itself late, and that part another."""
    folder = tmp_path / "gefen"
    folder.mkdir()
    late = "def late():\n    from gefen import part\n    return part\n"
    (folder / "__init__.py").write_text(late)
    (folder / "part.py").write_text("import gefen\nowner = gefen\n")
    return tmp_path


def test_a_package_of_the_same_name_lives_beside_ours(other: Path) -> None:
    package = Published(other)
    with package.active() as module:
        assert module is not gefen
        assert sys.modules["gefen"] is module
    path = list(sys.path)
    for _ in range(2):
        with package.active() as again:
            assert again is module
            part = module.late()
    assert part.owner is module
    assert Path(part.__file__).parent == other / "gefen"
    # Ours is back, with every part of it, and the path is as it was.
    assert sys.modules["gefen"] is gefen
    assert "gefen.part" not in sys.modules
    assert sys.path == path
    from gefen import Gefen

    assert gefen.Gefen is Gefen


def test_an_error_inside_gives_ours_back(other: Path) -> None:
    with pytest.raises(KeyError), Published(other).active():
        raise KeyError
    assert sys.modules["gefen"] is gefen


@pytest.mark.parametrize("name", NAMES)
def test_an_absent_package_names_the_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEFEN_BENCH_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=f"python -m harness.optimizers.wheels {name} ") as raised:
        optimizers.check(config_of(name))
    assert str(raised.value).count(". ") == 0
    assert optimizers.state_bytes(config_of(name), [], 4) is None


def test_fetching_an_unknown_package_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(["gefen_y"]) == 2
    expected = "harness.optimizers.wheels: gefen_y is unknown; allowed: gefen_upstream, gefen_x.\n"
    assert capsys.readouterr().err == expected


def perceptron() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 16))


def train(
    model: nn.Module, step: Callable[[], Any], optimizer: torch.optim.Optimizer, steps: range
) -> list[float]:
    """Losses of a network that learns to give zeros."""
    losses = []
    for number in steps:
        loss = model(torch.randn(32, 32, generator=torch.Generator().manual_seed(number)))
        loss = loss.square().mean()
        loss.backward()
        step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def train_alone(model: nn.Module, config: OptimizerConfig) -> list[float]:
    """The same with the published class itself, its modules active throughout."""
    with load(config.name, config.options["version"]).active() as module:
        named = list(model.named_parameters())
        groups = [
            {"params": [(n, p) for n, p in named if p.ndim == 2]},
            {"params": [(n, p) for n, p in named if p.ndim == 1], "weight_decay": 0.0},
        ]
        optimizer = module.Gefen(
            groups, lr=config.lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=False
        )
        return train(model, optimizer.step, optimizer, range(20))


@pytest.mark.parametrize("name", NAMES)
def test_the_published_package_trains_and_resumes(name: str) -> None:
    """A small network: with a whole model the first step takes half a minute."""
    config = config_of(name)
    try:
        load(name, config.options["version"])
    except UserError as error:
        pytest.skip(str(error))

    model, twin, fresh = (perceptron() for _ in range(3))
    optimizer = optimizers.build_optimizer(model, config)
    losses = train(model, optimizer.step, optimizer, range(20))
    assert losses == train_alone(twin, config)
    assert losses[-1] < 0.9 * losses[0]
    elements = sum(p.numel() for p in model.parameters())
    # At least a byte for each element, at most what AdamW holds.
    assert elements < optimizer_state_bytes(optimizer) < 8 * elements
    assert sys.modules["gefen"] is gefen
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    losses = train(model, optimizer.step, optimizer, range(20, 25))
    file.seek(0)
    with torch.serialization.safe_globals(optimizers.checkpoint_classes(config)):
        saved = torch.load(file, weights_only=True)
    fresh.load_state_dict(saved["model"])
    resumed = optimizers.build_optimizer(fresh, config)
    resumed.load_state_dict(saved["optimizer"])
    assert train(fresh, resumed.step, resumed, range(20, 25)) == losses


def test_the_list_names_every_optimizer_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["optimizer=list"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[1 : lines.index("")]}
    assert {*optimizers.entries(), "adamw_foreach", "adamw_loop"} == set(rows)
    assert len(rows) == lines.index("") - 1
    # By hand: Lion holds one float an element, Adan four; the first column with a number is B.
    assert rows["lion"].split()[1:4] == ["pytorch_optimizer.Lion", "4.00", "0.0002"]
    assert rows["adan"].split()[2] == "16.00"
    assert " - " in rows["gefen_x"]
