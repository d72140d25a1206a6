"""Which methods help the user's model? Tried within a budget, and proven on fresh seeds."""

from heldout.improve.plan import Plan, make_plan
from heldout.improve.report import print_improvement
from heldout.improve.search import improve
from heldout.improve.trial import run

__all__ = ["Plan", "improve", "make_plan", "print_improvement", "run"]
