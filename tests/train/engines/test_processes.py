"""Whether processes agree: states are told apart by what stands where."""

import pytest
import torch

from heldout.train.engines.processes import check_processes_agree


def told(*states):
    """Compares this process, of the first state, with others, of the rest."""
    marks = []

    def gather(mine):
        marks.append(mine)
        return torch.stack([mine, *(mine if len(marks) == 1 else _marks(state) for state in states[1:])])

    def _marks(state):
        found = []

        def keep(mine):
            found.append(mine)
            return torch.stack([mine, mine])

        check_processes_agree("other", state, keep, torch.device("cpu"))
        return found[1]

    check_processes_agree("mine", states[0], gather, torch.device("cpu"))


def test_equal_states_agree_and_shares_in_another_order_do_not():
    one, other = torch.tensor([0.25, 0.75]), torch.tensor([0.75, 0.25])
    told({"weights": one}, {"weights": one.clone()})
    with pytest.raises(ValueError, match="mine keeps a state of its own"):
        told({"weights": one}, {"weights": other})
