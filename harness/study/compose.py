"""From Hydra's configuration to the typed one, also for the cells that a search adds later."""

import json
from dataclasses import replace
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, flag_override

from harness.config import RunConfig, from_dict
from harness.study.parts import override_list
from harness.study.search import Point

# Set on a composed configuration directly: Hydra takes a fifth of a second for each composition,
# and a study's cells differ mostly in these. The YAML files derive nothing from them.
PLAIN_KEYS = ("seed", "optimizer.lr", "optimizer.lr_factor")


def typed(config: DictConfig) -> RunConfig:
    """The dataclasses of a composed configuration; UserError for a wrong key or type."""
    plain: Any = OmegaConf.to_container(config, resolve=True)
    return from_dict(RunConfig, plain)


class Composer:
    """Composes cells as Hydra does with the command line's own overrides, which win.

    Made inside Hydra's job, whose engine and search path it keeps; usable after it.
    """

    def __init__(self, extra: list[str]) -> None:
        engine = GlobalHydra.instance().hydra
        assert engine is not None
        self._engine, self._extra = engine, extra
        self._composed: dict[str, RunConfig] = {}

    def __call__(self, point: Point) -> RunConfig:
        """The configuration of a cell; raises as Hydra, or UserError."""
        given = {text.partition("=")[0].lstrip("+") for text in self._extra}
        plain = {key: point[key] for key in PLAIN_KEYS if key in point and key not in given}
        rest = {key: value for key, value in point.items() if key not in plain}
        text = json.dumps(rest)
        if text not in self._composed:
            self._composed[text] = self._compose(rest)
        config: Any = self._composed[text]
        for key, value in plain.items():
            group, _, name = key.rpartition(".")
            part: Any = getattr(config, group) if group else config
            checked = from_dict(type(part), {name: value}, f"{group}." if group else "")
            part = replace(part, **{name: getattr(checked, name)})
            config = replace(config, **{group: part}) if group else part
        composed: RunConfig = config
        return composed

    def _compose(self, point: Point) -> RunConfig:
        composed = self._engine.compose_config(
            config_name="config",
            overrides=override_list(point, self._extra),
            run_mode=RunMode.RUN,
            from_shell=False,
            with_log_configuration=False,
        )
        with flag_override(composed, ["struct", "readonly"], [False, False]):
            del composed["hydra"]
        return typed(composed)
