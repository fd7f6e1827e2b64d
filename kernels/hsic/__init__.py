"""HSIC between sets of one-dimensional variables; the mathematics stand in README.md."""

from .api import HsicResult, hsic, hsic_planned, make_plan
from .estimators import ESTIMATORS
from .plan import Plan
from .score import released_score, size_matched_score

__all__ = [
    "ESTIMATORS",
    "HsicResult",
    "Plan",
    "hsic",
    "hsic_planned",
    "make_plan",
    "released_score",
    "size_matched_score",
]
