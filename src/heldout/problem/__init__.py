"""What did the user hand over? A FILE with a model and data, loaded and checked."""

from heldout.errors import ProblemError
from heldout.problem.checks import check_problem, inapplicable
from heldout.problem.loading import EXAMPLES, example_path, load_problem
from heldout.problem.problem import Problem

__all__ = [
    "EXAMPLES",
    "Problem",
    "ProblemError",
    "check_problem",
    "example_path",
    "inapplicable",
    "load_problem",
]
