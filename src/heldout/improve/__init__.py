"""Which methods help the user's model? Tried within a budget, and proven on fresh seeds."""

from heldout.improve.report import print_improvement
from heldout.improve.search import Plan, improve, make_plan, run

__all__ = ["Plan", "improve", "make_plan", "print_improvement", "run"]
