"""Whether processes agree: states are told apart by what stands where."""

import pytest
import torch

from heldout.train.engines.processes import check_processes_agree

CPU = torch.device("cpu")


def compare(mine, other):
    """Compares the state of this process with that of a second one."""
    sent = []

    def alone(tensor):
        sent.append(tensor)
        return torch.stack([tensor, tensor])

    check_processes_agree("the other", {"weights": other}, alone, CPU)
    answers = iter(sent)
    check_processes_agree("mine", {"weights": mine}, lambda tensor: torch.stack([tensor, next(answers)]), CPU)


def test_equal_states_agree():
    compare(torch.tensor([0.25, 0.75]), torch.tensor([0.25, 0.75]))


@pytest.mark.parametrize("other", [[0.75, 0.25], [0.25, 0.7501], [0.25, 0.75, 0.0], [-0.25, 0.75]])
def test_other_values_other_places_and_other_numbers_of_them_do_not(other):
    with pytest.raises(ValueError, match="mine keeps a state of its own"):
        compare(torch.tensor([0.25, 0.75]), torch.tensor(other))
