"""What training took off the held-out loss, over how far seeds lie apart."""

import math

import pandas as pd

from reports.data.values import metric, setting


def falls(runs: pd.DataFrame) -> pd.Series:
    """What each cell's loss fell by, nats; nan where its first evaluation read another text.

    That is over `task.eval_tokens`, the last one over `task.final_eval_tokens` where that is set:
    the difference of two texts is no fall.
    """
    wanted = pd.to_numeric(setting(runs, "task", "eval_tokens")).astype("float64")
    final = pd.to_numeric(setting(runs, "task", "final_eval_tokens")).astype("float64")
    fall = metric(runs, "initial_eval_loss") - metric(runs, "final_eval_loss")
    return fall.where(final.isna() | (final == wanted))


def fall_over_spread(runs: pd.DataFrame) -> float:
    """The mean fall of finished cells over the standard deviation of their final losses.

    nan for fewer than two cells and where any cell's fall is not known; infinite where the losses
    are equal.
    """
    done = runs[runs["status"] == "done"]
    fall, spread = falls(done).mean(skipna=False), metric(done, "final_eval_loss").std()
    if math.isnan(fall) or math.isnan(spread):
        return math.nan
    return float(fall / spread) if spread > 0 else math.copysign(math.inf, fall)
