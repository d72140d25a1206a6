"""How does a language model do by a published protocol? One file for each protocol."""

from heldout.evals.protocol import Protocol, options_from, plain_parameters
from heldout.evals.report import print_eval
from heldout.evals.run import EVALS, evaluate, language_model
from heldout.evals.scylla import ScyllaOptions
from heldout.evals.verbalizer import VerbalizerOptions

__all__ = [
    "EVALS",
    "Protocol",
    "ScyllaOptions",
    "VerbalizerOptions",
    "evaluate",
    "language_model",
    "options_from",
    "plain_parameters",
    "print_eval",
]
