"""Core: Deep ensembles: several trainings whose predictions are averaged, an upper line at n times the cost.

Source: arXiv:1612.01474.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from heldout.errors import check_at_least, checked
from heldout.method import Method, Run
from heldout.nn import LogitEnsemble
from heldout.train.plain import untrained
from heldout.train.supervised import seeded

SEED_STEP = 7919  # between members


@checked
def deep_ensemble(size: int = 5) -> Method:
    """Returns the Method that averages the predictions of ``size`` trainings: what more compute alone buys.

    Members start from other initial weights (every part with ``reset_parameters``) and see the data in another order;
    fine-tuned ones, ``Splits(initial_state=...)``, share the start. The first member is the training under all Methods
    that this is combined with, the others are the plain recipe's. Classification: the logarithm of the mean
    probability; regression: the mean output. Training costs ``size`` trainings, a prediction ``size`` forward passes.
    Not tried by ``heldout improve`` unless asked for.

    Args:
        size: members, at least 2.

    Raises:
        ValueError: fewer than 2 members.

    Source: arXiv:1612.01474, without adversarial examples.

    Example:
        >>> deep_ensemble(size=3).stages
        ('model', 'predict')
    """
    check_at_least(2, size=size)

    def model(run: Run, module: nn.Module) -> nn.Module:
        start = untrained(run, module)
        own = {name: value.clone() for name, value in start.state_dict().items()}
        seed, members = run.seed, []
        for number in range(1, size):
            run.seed = seed + SEED_STEP * number
            if run.splits.initial_state is None:
                with seeded(run.seed):
                    _start_anew(start)
            members.append(run.train_plain(run.splits.train, run.epochs)[0].eval())
        run.seed = seed
        start.load_state_dict(own)
        run.state["deep_ensemble"] = members
        return module

    def predict(run: Run, module: nn.Module) -> Callable[[Any], Tensor]:
        members = [module, *run.state["deep_ensemble"]]
        return LogitEnsemble(members, mode="logits" if run.task == "regression" else "probabilities").eval()

    return Method("deep_ensemble", model=model, predict=predict)


def _start_anew(module: nn.Module) -> None:
    for part in module.modules():
        if callable(reset := getattr(part, "reset_parameters", None)):
            reset()
