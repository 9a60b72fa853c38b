"""Whether two processes a turn really took turns, from when each started and finished."""

import pandas as pd

LONGEST_GAP_SECONDS = 3600.0  # between the two processes of a turn; a machine changes over hours
SIDES = ("", "_base")


def not_in_turns(turns: pd.DataFrame) -> str:
    """Why these turns do not compare like with like; "" where they do.

    One row a turn; columns id, started_utc and finished_utc, each also with `_base`. Turns inside
    one process, and records without a start, are taken at their word.
    """
    if (turns["id"].str.contains("/") | turns["started_utc"].isna()).any() or len(turns) < 2:
        return ""
    processes = in_order(turns)
    before, after = processes.shift(1), processes
    second = processes["turn"].eq(before["turn"])
    if (processes["turn"].value_counts() != 2).any() or second.sum() != len(turns):
        return "a turn began before the one before it was over"
    if (after["started"] < before["finished"]).any():
        return "a process started before the one before it had finished"
    gap = (after["started"] - before["finished"])[second].dt.total_seconds().max()
    if gap > LONGEST_GAP_SECONDS:
        return f"{gap / 3600:,.1f} hours lie between the two processes of a turn"
    if processes.loc[second, "side"].nunique() == 1:
        return "the same side came first in every turn, so the order must alternate"
    return ""


def in_order(turns: pd.DataFrame) -> pd.DataFrame:
    """Every process by its start: turn, side, started, finished (its start where not recorded)."""
    frames = []
    for side in SIDES:
        started = pd.to_datetime(turns[f"started_utc{side}"], utc=True)
        name = f"finished_utc{side}"
        finished = pd.to_datetime(turns[name], utc=True) if name in turns else started
        frames.append(
            pd.DataFrame(
                {
                    "turn": turns.index,
                    "side": side,
                    "started": started,
                    "finished": finished.fillna(started),
                }
            )
        )
    return pd.concat(frames, ignore_index=True).sort_values("started", ignore_index=True)
