"""The verdict on what an optimizer says of itself: counted against stated state bytes."""

from reports.claims.failed_cells import failed
from reports.claims.judge import Claim, Verdict, answer
from reports.data.load import StudyData
from reports.data.pairing import counted
from reports.data.text import number_text


def stated_state(claim: Claim, subject: str, optimizer: str, data: StudyData) -> Verdict:
    """Counted state bytes against the closed form that the registry states for the optimizer.

    The estimate is the largest |counted / stated - 1| over cells, in percent; the threshold is a
    fraction. A deviation in either direction counts: then the statement is wrong. Tables outside
    the state are no part of the closed form, so they are left out here. Bytes do not depend on the
    seed: n is the number of models and precisions.
    """
    if claim.threshold is None:
        raise ValueError(f"Claim {claim.id} needs a threshold.")
    mine = data.runs[data.runs["optimizer"] == optimizer]
    cells = counted(mine)
    cells = cells[cells["optimizer_state_predicted_bytes"] > 0]
    if cells.empty:
        sentence = f"No cell of {optimizer} has both counted and stated state bytes."
        return answer(claim, subject, data, "not tested", " ".join([sentence, *failed(mine)]))
    ratio = cells["optimizer_state_bytes"] / cells["optimizer_state_predicted_bytes"]
    ordered = cells.assign(ratio=ratio, off=(ratio - 1).abs()).sort_values("off")
    worst = ordered.iloc[-1]
    off = float(worst["off"])
    sentence = (
        f"State of {optimizer}: counted bytes are {number_text(worst['ratio'], 4)} times the "
        f"stated ones where they are furthest apart ({worst['model']}); the claim allows "
        f"{claim.threshold:.1%} of difference."
    )
    low, high = (100 * (float(bound) - 1) for bound in (ratio.min(), ratio.max()))
    return answer(
        claim, subject, data, "reproduced" if off <= claim.threshold else "refuted",
        " ".join([sentence, *failed(mine)]), estimate=100 * off, interval=(low, high),
        interval_kind="signed range over cells", margin=100 * claim.threshold,
        unit="% off the stated bytes",
        n=len(cells[["model", "precision"]].drop_duplicates()), n_of="models and precisions",
        cells=tuple(cells["id"]),
    )  # fmt: skip
