"""`python -m harness.robustness --output FOLDER` writes robustness.json and robustness.md."""

import argparse
from pathlib import Path

import torch

from harness.robustness.figures import drifts, model_states, movements
from harness.robustness.page import page
from harness.store import write_bytes_atomic, write_json_atomic

MOVEMENT_STEPS = 10_000
DRIFT_STEPS = 6_000


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Compute all figures on one thread (a few minutes) and write them."""
    parser = argparse.ArgumentParser(prog="python -m harness.robustness", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder, made where missing")
    parser.add_argument("--movement-steps", type=int, default=MOVEMENT_STEPS)
    parser.add_argument("--drift-steps", type=int, default=DRIFT_STEPS)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the order of sums, and so every digit, depends on it
    states = model_states(say)
    moved = movements(chosen.movement_steps, say)
    drifted = drifts(chosen.drift_steps, say)
    content = {
        "torch": torch.__version__,
        "movement_steps": chosen.movement_steps,
        "movements": moved,
        "drifts": drifted,
        "model_states": states,
    }
    chosen.output.mkdir(parents=True, exist_ok=True)
    write_json_atomic(chosen.output / "robustness.json", content)
    text = page(moved, chosen.movement_steps, drifted, states)
    write_bytes_atomic(chosen.output / "robustness.md", text.encode())
    say(f"Written to {chosen.output}.")


if __name__ == "__main__":
    main()
