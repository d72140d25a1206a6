"""Which methods help the user's model? Tried within a budget, and proven on fresh seeds."""

from heldout.improve.plan import Plan, least_seconds, make_plan
from heldout.improve.report import print_improvement
from heldout.improve.search import improve
from heldout.improve.shifts import made_shifts
from heldout.improve.trials import run
from heldout.improve.verdict import compare
from heldout.improve.winner import winner_code

__all__ = [
    "Plan",
    "compare",
    "improve",
    "least_seconds",
    "made_shifts",
    "make_plan",
    "print_improvement",
    "run",
    "winner_code",
]
