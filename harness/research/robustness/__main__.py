"""`python -m harness.research.robustness --output FOLDER` writes robustness.json and .md."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from harness.cells.store import read_json, write_bytes_atomic, write_json_atomic
from harness.errors import UserError
from harness.research.robustness import figures, remedies
from harness.research.robustness.page import page

MOVEMENT_STEPS = 10_000
DRIFT_STEPS = 6_000

Part = Callable[[argparse.Namespace], dict[str, Any]]


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)


# Name of a part -> what it adds to the JSON file.
PARTS: dict[str, Part] = {
    "movements": lambda chosen: {
        "movement_steps": chosen.movement_steps,
        "movements": figures.movements(chosen.movement_steps, say),
    },
    "stops": lambda _: {"stops": remedies.stops(say)},
    "small_blocks": lambda _: {"small_blocks": remedies.small_blocks(say)},
    "two_tasks": lambda _: {"two_tasks": remedies.two_tasks(say)},
    "drifts": lambda chosen: {"drifts": figures.drifts(chosen.drift_steps, say)},
    "model_states": lambda _: {"model_states": figures.model_states(say)},
}


def main(arguments: list[str] | None = None) -> None:
    """Compute the figures on one thread (all: a few minutes) and write them."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.research.robustness", description=__doc__
    )
    parser.add_argument("--output", type=Path, required=True, help="folder, made where missing")
    parser.add_argument("--movement-steps", type=int, default=MOVEMENT_STEPS)
    parser.add_argument("--drift-steps", type=int, default=DRIFT_STEPS)
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=list(PARTS),
        default=list(PARTS),
        help="compute these alone and keep the others as the folder has them (default: all)",
    )
    chosen = parser.parse_args(arguments)
    try:
        content = _kept(chosen.output / "robustness.json", chosen.parts)
    except UserError as error:
        parser.error(str(error))
    torch.set_num_threads(1)  # the order of sums, and so every digit, depends on it
    for name in chosen.parts:
        content |= PARTS[name](chosen)
    chosen.output.mkdir(parents=True, exist_ok=True)
    write_json_atomic(chosen.output / "robustness.json", content)
    write_bytes_atomic(chosen.output / "robustness.md", page(content).encode())
    say(f"Written to {chosen.output}.")


def _kept(path: Path, parts: list[str]) -> dict[str, Any]:
    """The content to start from: what the file has where only some parts are computed."""
    fresh = {"torch": torch.__version__}
    if set(parts) == set(PARTS) or not path.exists():
        return fresh
    earlier: dict[str, Any] = read_json(path)
    if earlier["torch"] != fresh["torch"]:
        raise UserError(
            f"{path} was computed with torch {earlier['torch']}, not {fresh['torch']}; compute all "
            "parts."
        )
    return earlier


if __name__ == "__main__":
    main()
