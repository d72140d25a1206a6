"""How does a language model do by a published protocol? One file for each protocol."""

from heldout.evals.run import EVALS, EvalOptions, evaluate, language_model, print_eval

__all__ = ["EVALS", "EvalOptions", "evaluate", "language_model", "print_eval"]
