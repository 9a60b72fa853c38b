"""Options of optimizers have a type and a range, checked in one sentence before a run starts."""

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import optimizers
from harness.config import OptimizerConfig
from harness.config.groups import load_group
from harness.errors import UserError
from harness.optimizers.options import Option, choice, flag, integer, number, text

CONFIGS = Path(__file__).parents[3] / "configs/optimizer"
PUBLISHED = ("gefen_upstream", "gefen_x")
ENTRIES = optimizers.entries() | optimizers.instruments()


def load(name: str, **options: Any) -> OptimizerConfig:
    config = OptimizerConfig(**load_group("optimizer", name))
    config.options.update(options)
    return config


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        (
            "adamw",
            {"fused": "no"},
            "fused='no' is not possible for adamw; it must be true or false",
        ),
        ("adamw", {"foreach": 1}, "foreach=1 is not possible for adamw; it must be true or false"),
        ("adamw", {"amsgrad": None}, "amsgrad=null is not possible for adamw; it must be true or"),
        ("adamw", {"fused": [True]}, "fused=[True] is not possible for adamw; it must be true or"),
        ("gefen", {"skip_nonfinite": "no"}, "skip_nonfinite='no' is not possible for gefen"),
        (
            "gefen",
            {"first_moment_bits": "4"},
            "bits='4' is not possible for gefen; it must be 8, 4",
        ),
        (
            "gefen",
            {"first_moment_bits": 16},
            "bits=16 is not possible for gefen; it must be 8, 4 or",
        ),
        (
            "gefen",
            {"first_moment_bits": 8.0},
            "bits=8.0 is not possible for gefen; it must be 8, 4",
        ),
        ("gefen", {"second_moment": "column"}, "it must be factored, block"),
        ("gefen", {"group_size": 0}, "it must be an integer, at least 1, or null"),
        (
            "galore",
            {"rank": 0},
            "rank=0 is not possible for galore; it must be an integer, at least",
        ),
        ("galore", {"rank": 2.5}, "rank=2.5 is not possible for galore; it must be an integer, at"),
        ("galore", {"rank": True}, "rank=true is not possible for galore; it must be an integer"),
        ("galore", {"rank": "64"}, "rank='64' is not possible for galore; it must be an integer"),
        ("galore", {"update_proj_gap": 0}, "update_proj_gap=0 is not possible for galore"),
        (
            "galore",
            {"scale": math.nan},
            "scale=nan is not possible for galore; it must be a finite",
        ),
        (
            "apollo",
            {"scale": math.inf},
            "scale=inf is not possible for apollo; it must be a finite",
        ),
        (
            "apollo",
            {"scale": -1},
            "scale=-1 is not possible for apollo; it must be a finite number,",
        ),
        ("apollo_mini", {"scale_type": "row"}, "it must be channel or tensor."),
        ("muon", {"ns_steps": 100}, "ns_steps=100 is not possible for muon; it must be an integer"),
        ("muon", {"momentum": 1}, "it must be a finite number, at least 0 and below 1."),
        ("muon", {"adjust_lr_fn": "rms"}, "it must be original or match_rms_adamw."),
        ("adafactor", {"beta2_decay": 0.8}, "it must be a finite number, at most 0."),
        (
            "adafactor",
            {"d": 0.5},
            "d=0.5 is not possible for adafactor; it must be a finite number",
        ),
        ("adam_mini", {"whole_values": "yes"}, "whole_values='yes' is not possible for adam_mini"),
        ("adamw8bit", {"min_8bit_size": 4096.0}, "it must be an integer, at least 0."),
        (
            "lion8bit",
            {"is_paged": 0},
            "is_paged=0 is not possible for lion8bit; it must be true or",
        ),
        (
            "stam",
            {"adapt_strength": 0.6},
            "it must be a finite number, at least 0 and at most 0.5.",
        ),
        ("stam", {"tau_decay": 1}, "it must be a finite number, at least 0 and below 1."),
        ("stam_lite", {"beta1_update_interval": 2.0}, "it must be an integer, at least 1."),
        ("gefen_ablation", {"rounding": "up"}, "it must be stochastic or nearest."),
        ("gefen_ablation", {"relative": "no"}, "relative='no' is not possible for gefen_ablation"),
        ("gefen_ablation", {"cap": 0}, "cap=0 is not possible for gefen_ablation; it must be a"),
        ("planted/slow", {"slowdown": 0.5}, "it must be a finite number, at least 1."),
        ("lamb", {"rank": 4}, "options has 'rank', which lamb does not know; allowed: foreach."),
        ("gefen_paper", {"fused": True}, "'fused', which gefen_paper does not know; it has none."),
    ],
)
def test_a_wrong_option_is_refused_before_anything_starts(
    name: str, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError) as refused:
        optimizers.check(load(name, **options))
    said = str(refused.value)
    assert sentence in said
    assert said.startswith("optimizer.options")
    assert said.endswith(".")
    assert ". " not in said


def test_the_published_packages_refuse_too_where_they_are_not_there() -> None:
    with pytest.raises(UserError, match=r"options\.version=1\.2 is not possible for gefen_up"):
        optimizers.check(load("gefen_upstream", version=1.2))
    with pytest.raises(UserError, match=r"options\.factored_v_2d='on' is not possible"):
        optimizers.check(load("gefen_x", factored_v_2d="on"))


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_no_option_takes_text_for_a_flag_or_a_number(name: str) -> None:
    for key, option in ENTRIES[name].options.items():
        wrong: list[Any] = ["", "no", "off", "0", "4", [], {}, (1,), math.nan, math.inf, -math.inf]
        wrong += [] if option.kind is str else ["stochastic "]
        wrong += [0, 1] if option.kind is bool else [True, False]
        for value in wrong:
            if option.kind is str and not option.choices and isinstance(value, str):
                continue  # free text
            assert not option.allows(value), (key, value)


@pytest.mark.parametrize("file", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_configuration_and_every_default_is_allowed(file: Path) -> None:
    config = load(str(file.relative_to(CONFIGS).with_suffix("")))
    entry = optimizers.find(config.name)
    bare = entry.filled(OptimizerConfig(name=config.name)).options
    for key, value in (*config.options.items(), *bare.items()):
        assert entry.options[key].allows(value), key


def test_a_value_that_is_given_wins_over_the_default() -> None:
    entry = optimizers.find("galore")
    assert entry.filled(OptimizerConfig(name="galore", options={"rank": 7})).options == {
        "rank": 7,
        "update_proj_gap": 200,
        "scale": 0.25,
        "foreach": False,
    }


SEVERAL = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.binary(max_size=2)
)


@given(SEVERAL, st.integers(-3, 3), st.integers(0, 4), st.booleans())
def test_a_range_is_the_range(value: Any, least: int, width: int, null: bool) -> None:
    """Against the definition, written out: numbers are int or float, never bool, and finite."""
    whole = integer(least, most=least + width, null=null)
    real = number(above=least, below=least + width, null=null)
    is_int = isinstance(value, int) and not isinstance(value, bool)
    is_real = is_int or (isinstance(value, float) and math.isfinite(value))
    empty = null and value is None
    assert whole.allows(value) == (empty or (is_int and least <= value <= least + width))
    assert real.allows(value) == (empty or (is_real and least < value < least + width))
    assert flag(null=null).allows(value) == (empty or isinstance(value, bool))
    assert text().allows(value) == isinstance(value, str)
    assert choice("a", "b", null=null).allows(value) == (empty or value in ("a", "b"))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (flag(), "true or false"),
        (flag(null=True), "true or false, or null"),
        (integer(1, most=99), "an integer, at least 1 and at most 99"),
        (number(above=0, null=True), "a finite number, above 0, or null"),
        (choice(8, 4, 32), "8, 4 or 32"),
        (choice("a"), "a"),
        (choice("a", "b", null=True), "a, b or null"),
        (text(), "text"),
    ],
)
def test_what_is_allowed_in_words(option: Option, words: str) -> None:
    assert option.allowed() == words
