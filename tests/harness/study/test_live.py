"""What a sweep shows: a table at any width on a terminal, plain lines in a log."""

import io

import pytest
from rich.console import Console

from harness.study.live import Lines, Screen, Standing, view

STANDING = Standing(30, True, 12, 1, 2, "3 min so far, about 12 min left")
NAMES = [f"tune: gpt2_3m/{name}/128/fp32/lr0.000707/s100" for name in ("adamw", "stam_lite")]


def shown(width: int, height: int = 24, rows: int = 2) -> list[str]:
    """The lines of a screen with running cells, the first of which has not begun to train."""
    stream = io.StringIO()
    console = Console(file=stream, width=width, height=height)
    screen = Screen(console, lambda: STANDING)
    for number in range(rows):
        screen.update(str(number), "", NAMES[number % 2], {"phase": "loading data and model"})
    values = {"step": 120, "steps": 200, "loss": 5.12345, "tokens_per_second": 34567.8}
    screen.update("1", "", NAMES[1], {"phase": "training", **values})
    console.print(screen)
    return stream.getvalue().splitlines()


def test_80_columns_show_loss_and_speed_of_each_cell() -> None:
    lines = shown(80)
    assert max(map(len, lines)) <= 80
    text = " ".join(" ".join(lines).split())
    assert text.startswith("30+ cells: 12 done, 2 running, 15 waiting, 1 failed. 3 min so far")
    (row,) = [line for line in lines if "stam_lite" in line]
    assert row.split()[-3:] == ["120/200", "5.123", "34,568"]
    assert any("adamw" in line for line in lines)


@pytest.mark.parametrize("width", [40, 200])
def test_no_name_is_cut_at_any_width(width: int) -> None:
    lines = shown(width)
    assert max(map(len, lines)) <= width
    # The name's column alone; narrow ones fold it.
    begin = lines[-1 - next(i for i, x in enumerate(reversed(lines)) if "5.123" in x)].find("120/")
    column = "".join(line[:begin].strip() for line in lines)
    assert f"{NAMES[1]}".replace(" ", "") in column.replace(" ", "")


def test_more_cells_than_lines_are_counted() -> None:
    lines = shown(100, height=12, rows=20)
    assert len(lines) <= 12
    assert lines[-1].strip() == "and 13 more running"


def test_a_cell_that_ended_leaves_the_table() -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=True)
    screen = Screen(console, lambda: STANDING)
    screen.update("a", "", "p: first", {})
    screen.end("a")
    console.print(screen)
    assert "first" not in stream.getvalue()


def test_a_log_gets_lines_without_control_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with view(True, lambda: STANDING) as log:
        assert isinstance(log, Lines)
        log.line("2 cells, 2 to run.")
        for key in ("a", "b"):
            log.update(key, f"[1/2] p: {key}", f"p: {key}", {"phase": "starting"})
        log.update("a", "", "", {"step": 10, "steps": 10, "loss": 1.0})
        log.end("a")
        log.end("b")
    text = capsys.readouterr().err
    assert text.startswith("2 cells, 2 to run.\n")
    assert "[1/2] p: a:   0%|" in text
    assert "\x1b" not in text
    with view(False, lambda: STANDING) as silent:
        silent.line("nothing")
    assert capsys.readouterr().err == ""
