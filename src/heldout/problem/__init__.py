"""What did the user hand over? A FILE with a model and data, loaded and checked."""

from heldout.problem.user_file import (
    EXAMPLES,
    Problem,
    ProblemError,
    check_problem,
    example_path,
    inapplicable,
    load_problem,
    settle_metric,
)

__all__ = [
    "EXAMPLES",
    "Problem",
    "ProblemError",
    "check_problem",
    "example_path",
    "inapplicable",
    "load_problem",
    "settle_metric",
]
