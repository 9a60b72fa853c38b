"""What people type: flags anywhere, values that need quotes, mistakes told in one sentence."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.cli import bench
from harness.cli.command_line import read
from harness.config.groups import configs_dir
from harness.errors import UserError


def answer(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of gefen-bench in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stop,
    ):
        bench.main(arguments)
    return int(stop.value.code or 0), out.getvalue(), err.getvalue()


def value_of(printed: str, key: str) -> Any:
    """A value of the configuration that `--cfg job` printed."""
    found: Any = yaml.safe_load(printed)
    for name in key.split("."):
        found = found[name]
    return found


@pytest.mark.parametrize(
    ("arguments", "words", "described"),
    [
        (["study=tune", "--dry-run"], ["study=tune", "launch.dry_run=true"], ["study=tune"]),
        (["seed=0", "--limit", "3"], ["seed=0", "launch.limit=3"], ["seed=0"]),
        (["--limit=07"], ["launch.limit=7"], []),
        (
            ["--rerun", "oom", "--rerun=0123456789abcdef"],
            ["launch.rerun=['oom','0123456789abcdef']"],
            [],
        ),
        (["--time-budget", "2h"], ["launch.time_budget_minutes=120"], []),
        (["--time-budget=1h30m", "x=1"], ["x=1", "launch.time_budget_minutes=90"], ["x=1"]),
        (["--time-budget", "45s"], ["launch.time_budget_minutes=0.75"], []),
        (["launch.limit=2", "seed=0"], ["launch.limit=2", "seed=0"], ["seed=0"]),
        (["a=1,2", "-m", "b=3"], ["a=1,2", "b=3"], ["-m", "a=1,2", "b=3"]),
        (["-m", "a=1", "--multirun"], ["a=1"], ["-m", "a=1"]),
        (["--", "a=1"], ["a=1"], ["a=1"]),
        (["study.name=größe"], ["study.name='größe'"], ["study.name=größe"]),
        (["hydra/launcher=joblib", "a=1", "+hydra.launcher.x=1"], ["a=1"], ["a=1"]),
    ],
)
def test_flags_and_words_are_told_apart(
    arguments: list[str], words: list[str], described: list[str]
) -> None:
    line = read(arguments)
    assert (line.words, line.described, line.printing) == (words, described, [])


def test_the_launchers_words_are_apart_unless_hydra_only_prints() -> None:
    chosen = ["hydra/launcher=joblib", "+hydra.launcher.verbose=1"]
    assert read(["-m", chosen[0], "seed=0,1", chosen[1]]).launcher == chosen
    assert read([*chosen, "--cfg", "hydra"]).printing == ["--cfg=hydra", *chosen]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--limit"], "--limit: expected one argument"),
        (["--rerun", "o,m"], "--rerun 'o,m' needs a status or the id"),
        (["--limit", "0"], "--limit 0 needs a whole number"),
        (["--limit", "study=tune"], "--limit study=tune needs"),
        (["--time-budget", "2 hours"], "--time-budget 2 hours needs hours, minutes or seconds"),
        (["--time-budget=90"], "--time-budget 90 needs"),
        (["--time-budget", "0h"], "--time-budget 0h needs"),
        (["--dry-run=yes"], "--dry-run: ignored explicit argument 'yes'"),
    ],
)
def test_a_wrong_flag_is_one_sentence(arguments: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read(arguments)


@pytest.mark.parametrize(
    ("word", "key", "value"),
    [
        ("study.name=größe", "study.name", "größe"),
        ("study.title=\N{GRINNING FACE} ja", "study.title", "\N{GRINNING FACE} ja"),
        ("study.name=~x", "study.name", "~x"),
        ("data.path=~/texts", "data.path", os.path.expanduser("~/texts")),
        ("study.title=a=b", "study.title", "a=b"),
        ("study.title=hello (world", "study.title", "hello (world"),
        ("study.title=it's", "study.title", "it's"),
        ("study.title=back\\slash'", "study.title", "back\\slash'"),
        ("study.title='hello, world'", "study.title", "hello, world"),
        ("data.prompt_template=Q: {question}", "data.prompt_template", "Q: {question}"),
        ("data.path=C:\\x\\y", "data.path", "C:\\x\\y"),
        ("optimizer.options={rank: 4}", "optimizer.options.rank", 4),
        ("optimizer.options={rank:4}", "optimizer.options.rank", 4),
        ("optimizer.options.rank=4", "optimizer.options.rank", 4),
        ("+optimizer.options.fused=true", "optimizer.options.fused", True),
        ("seed= 1", "seed", 1),
    ],
)
def test_a_value_arrives_as_it_was_typed(word: str, key: str, value: Any) -> None:
    code, out, err = answer(word, "--cfg", "job", "seq_len=64")
    assert code == 0, err
    assert value_of(out, key) == value
    assert value_of(out, "seq_len") == 64


@given(
    st.text(st.characters(exclude_characters=",[]{}()'\"$", exclude_categories=("C",)), min_size=1)
)
@settings(max_examples=25, deadline=None)
def test_plain_text_without_brackets_and_quotes_needs_none(text: str) -> None:
    """Hydra strips blanks at the ends; all else is the text that was typed."""
    code, out, err = answer(f"study.title=x{text}x", "--cfg", "job")
    assert code == 0, err
    assert value_of(out, "study.title") == f"x{text}x"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["seed"], "'seed' is not key=value; keys are made of"),
        (["=5"], "'=5' is not key=value"),
        ([""], "'' is not key=value"),
        (["seed = 1"], "'seed = 1' is not key=value"),
        (["séed=1"], "'séed=1' is not key=value"),
        (["@@@"], "'@@@' is not key=value"),
        (["optimizer.=1"], "'optimizer.=1' is not key=value"),
        (["study.title={x"], "quote it: 'study.title=\"{x\"'."),
        (["study.title='unfinished"], "if its value is text, quote it: "),
        (["data.train=[numpy"], "data.train=[numpy cannot be read"),
        (["data.path=/tmp/a,b"], "add -m to run it, or quote it: 'data.path=\"/tmp/a,b\"'."),
        (["study.title=hello, wörld"], "quote it: 'study.title=\"hello, wörld\"'."),
        (["seed=0,1"], "seed=0,1 is a sweep; add -m to run it."),
        (["optimizer.lr=range(1,3)"], "optimizer.lr=range(1,3) is a sweep; add -m to run it."),
        (["-m", "seed=0,,1"], "seed=0,,1 cannot be read"),
        (["-m", "seed=interval(0,3)"], "list them, or write range(0,10)"),
        (["-m", "optimizer=glob(zzz*)"], "optimizer=glob(zzz*) stands for nothing that there is"),
        (["-m", "seed=0,x"], "seed='x' is not of type int"),
        (["optimizer=[adamw,gefen]"], "choose one, or sweep over them: -m optimizer=adamw,gefen."),
        (["optimizer="], "optimizer= names no option; allowed: adafactor, adam_mini, adamw, "),
        (["tracker=null"], "tracker=null names no option; allowed: none, trackio, wandb."),
        (["optimizer.options=null"], "optimizer.options=null is not of type dict"),
        (
            ["optimizer.options={nope: 1}"],
            "optimizer.options has 'nope', which adamw",
        ),
        (["optimizer.betas=0.9"], "optimizer.betas=0.9 is not of type list[float]."),
        (["seed=1.5"], "seed=1.5 is not of type int."),
        (["seed.x=1"], "Unknown key 'seed.x': seed is of type int."),
        (
            ["study.parts={a: 1}"],
            "add it with a plus: +study.parts.a=VALUE",
        ),
        (["+seed=1"], "seed is there already; leave out the plus."),
        (["~nothing"], "~nothing: there is no such key to leave out."),
        (["+study.parts.a.sweep={nothing: [1]}"], "Unknown key 'nothing'"),
        (["study.title=${nothing}"], "Interpolation key 'nothing' not found"),
        (["hydra.sweeper.params={seed: '0,1'}"], "Hydra cannot read this: "),
        (["--resolve"], "can only be used in conjunction with --cfg"),
        (["--nothing"], "unrecognized arguments: --nothing; `gefen-bench --help`"),
        (["--cfg"], "expected one argument"),
        (["--cfg", "nothing"], "invalid choice: 'nothing'"),
        (["--config-dir", "/nothing"], "--config-dir /nothing is no folder"),
        (["seed=4294967296"], "seed=4294967296 is too large"),
        (["optimizer.eps=inf"], "optimizer.eps=inf is not allowed; it must be a finite number"),
        (["study.name=../esc"], "study.name='../esc' is not allowed; it must be the name of one"),
        (["study.name="], "study.name='' is not allowed"),
        (["model.vocab_size=100", "data.tokenizer=bytes"], "model.vocab_size=100 is too small for"),
        (["data.path=/tmp/\udcff"], "data.path='/tmp/"),
        (["cache=/proc/nothing"], "/proc/nothing"),
        (["study.title={two\nlines"], "study.title={two lines cannot be read"),
        (["hydra/launcher=joblib", "hydra.launcher.n_jobs=x"], "hydra.launcher.n_jobs=x must be"),
        ([f"micro_batch={2**63}"], "micro_batch=9223372036854775808 is too large"),
        (["launch.timeout_seconds=1e300"], "launch.timeout_seconds=1e+300 is too large"),
        (["model=gpt2_4m", "seq_len=4096"], "longer than the 1024 positions of model gpt2_4m"),
        (["model=gpt2_4m", "-m", "seq_len=64,4096"], "seq_len=4096 is longer than the 1024"),
        (["seq_lne=64"], "Unknown key 'seq_lne' (did you mean 'seq_len'?)"),
        (["optimizer.lr=fast"], "optimizer.lr=fast is not of type float."),
        (["data=hub", "data.path=no-one/no-such-data"], "no-one/no-such-data"),
        (["study=nothing"], "study=nothing is not known; allowed: adhoc"),
        (["--limit", "none"], "--limit none needs a whole number above 0"),
        (["launch.limit=0"], "launch.limit=0 is too small; the least allowed is 1"),
        (["launch.time_budget_minutes=-1"], "must be a finite number above 0"),
        (["hydra/launcher=none"], "hydra/launcher=none is not known; allowed: basic, joblib, ray,"),
        (["precision=fp4"], "precision=fp4 is not known; allowed: fp32, bf16_mixed, bf16_pure"),
    ],
)
def test_a_mistake_is_one_sentence_of_ours(
    arguments: list[str], sentence: str, tmp_path: Path, text_folder: Path
) -> None:
    quick = ["model=gpt2_tiny", "data=text_files", f"data.path={text_folder}", "device=cpu"]
    root = tmp_path / "runs"
    code, out, err = answer(*quick, f"root={root}", f"cache={tmp_path}", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("gefen-bench: ")
    assert sentence in err
    assert err.strip().count("\n") == 0, err
    assert not root.exists()


WORDS = st.one_of(
    st.text(max_size=12),
    st.from_regex(r"[+~]{0,2}[a-z]{1,6}([./@][a-z_]{0,6}){0,2}=[^\x00]{0,10}", fullmatch=True),
    st.text("ab=,.:/~+-'\"\\\\(){}[]$ 01", max_size=14).map("study.title={}".format),
    st.sampled_from(["-m", "--limit", "--cfg", "job", "--", "-", "--info", "--rerun", "-h", "oom"]),
)


@given(st.lists(WORDS, max_size=5))
@settings(max_examples=150, deadline=None)
def test_any_line_is_read_or_refused(arguments: list[str]) -> None:
    try:
        line = read(arguments)
    except UserError:
        return
    if not line.printing:  # Hydra reads every word that was let through
        OverridesParser.create().parse_overrides([*line.words, *line.launcher])


def test_a_sweep_is_the_product_in_the_order_of_its_words() -> None:
    line = read(["optimizer=adamw,gefen", "-m", "seed=range(0,2)", "data.path=~/a,ö", "x=1"])
    with hydra.initialize_config_dir(str(configs_dir()), version_base="1.3"):
        engine = GlobalHydra.instance().hydra
        assert engine is not None
        shared, points = line.points(engine.config_loader)
    assert shared == ["x=1"]
    paths = [os.path.expanduser("~/a"), "'ö'"]
    assert [(p["optimizer"], p["seed"]) for p in points[::2]] == [
        (name, seed) for name in ("adamw", "gefen") for seed in (0, 1)
    ]
    assert [p["data.path"] for p in points[:2]] == paths


@pytest.mark.parametrize(
    ("words", "shared", "points"),
    [
        (["a=1", "b=2", "a=3,4"], ["b=2"], [{"a": 3}, {"a": 4}]),
        (["a=3,4", "b=2", "a=1"], ["b=2", "a=1"], [{}]),
        (["a=1,2", "a=3,4"], [], [{"a": 3}, {"a": 4}]),
    ],
)
def test_of_a_key_that_is_given_twice_the_last_counts(
    words: list[str], shared: list[str], points: list[dict[str, int]]
) -> None:
    line = read(["-m", *words])
    with hydra.initialize_config_dir(str(configs_dir()), version_base="1.3"):
        engine = GlobalHydra.instance().hydra
        assert engine is not None
        found = line.points(engine.config_loader)
    assert found[0] == shared
    assert [{key: int(value) for key, value in point.items()} for point in found[1]] == points
