"""Plain flags become Hydra overrides in their place, and leave the recorded command."""

import pytest

from harness.cli.flags import translate
from harness.errors import UserError


@pytest.mark.parametrize(
    ("given", "translated", "described"),
    [
        (["study=tune", "--dry-run"], ["study=tune", "launch.dry_run=true"], ["study=tune"]),
        (["--limit", "3", "-m", "a=1,2"], ["launch.limit=3", "-m", "a=1,2"], ["-m", "a=1,2"]),
        (["--limit=07"], ["launch.limit=7"], []),
        (["--time-budget", "2h"], ["launch.time_budget_minutes=120"], []),
        (["--time-budget=1h30m", "x=1"], ["launch.time_budget_minutes=90", "x=1"], ["x=1"]),
        (["--time-budget", "45s"], ["launch.time_budget_minutes=0.75"], []),
        (["launch.limit=2", "seed=0"], ["launch.limit=2", "seed=0"], ["seed=0"]),
        (["--cfg", "job", "x=1"], ["--cfg", "job", "x=1"], ["--cfg", "job", "x=1"]),
    ],
)
def test_flags_are_translated_in_place(
    given: list[str], translated: list[str], described: list[str]
) -> None:
    assert translate(given) == (translated, described)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--limit"], "--limit needs a whole number above 0"),
        (["--limit", "0"], "--limit 0 needs a whole number"),
        (["--limit", "study=tune"], "--limit study=tune needs"),
        (["--time-budget", "2 hours"], "--time-budget 2 hours needs hours, minutes or seconds"),
        (["--time-budget=90"], "--time-budget 90 needs"),
        (["--time-budget", "0h"], "--time-budget 0h needs"),
        (["--dry-run=yes"], "takes no value"),
    ],
)
def test_a_wrong_flag_is_one_sentence(given: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        translate(given)
