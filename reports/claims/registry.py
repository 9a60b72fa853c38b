"""The estimators that judge claims: each file of claims/estimators/ is found by itself.

Such a file lists its estimators in `ESTIMATORS`; a claim's YAML file names one of these functions.
"""

from collections.abc import Callable

from reports.claims import estimators
from reports.claims.claim import Claim, Verdict
from reports.data.load import StudyData
from reports.data.modules import offering

Estimator = Callable[[Claim, str, str, StudyData], Verdict]  # claim, subject, its optimizer, study


def all_estimators() -> dict[str, Estimator]:
    """Every estimator by its name."""
    found = offering(estimators, "ESTIMATORS")
    return {each.__name__: each for module in found for each in module.ESTIMATORS}
