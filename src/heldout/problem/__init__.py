"""What did the user hand over? A FILE with a model and data, loaded and checked."""

from heldout.errors import ProblemError
from heldout.problem.checks import check_problem, inapplicable
from heldout.problem.differences import no_difference, resolution, undertrained
from heldout.problem.graphs import GraphProblem, Graphs, Nodes, call_on_graph
from heldout.problem.inputs import as_examples
from heldout.problem.kinds import KINDS, Kind, kind_of
from heldout.problem.language_methods import LANGUAGE_METHODS
from heldout.problem.loading import EXAMPLES, example_path, load_problem
from heldout.problem.problem import Problem
from heldout.problem.texts import Texts, text_losses

__all__ = [
    "EXAMPLES",
    "KINDS",
    "LANGUAGE_METHODS",
    "GraphProblem",
    "Graphs",
    "Kind",
    "Nodes",
    "Problem",
    "ProblemError",
    "Texts",
    "as_examples",
    "call_on_graph",
    "check_problem",
    "example_path",
    "inapplicable",
    "kind_of",
    "load_problem",
    "no_difference",
    "resolution",
    "text_losses",
    "undertrained",
]
