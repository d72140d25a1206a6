import pytest
import torch

from heldout.tasks import NETWORK_FAMILIES, MeasuredArchitectures, build_network, measured_architectures


@pytest.mark.parametrize("family", NETWORK_FAMILIES)
def test_the_table_holds_networks_of_one_size_that_differ_and_four_accuracies_of_each(family):
    found = measured_architectures(family)
    assert len(found.designs) == len(found.accuracies) >= 60
    assert all(design["family"] == family for design in found.designs)
    assert len({str(design) for design in found.designs}) == len(found.designs)
    torch.testing.assert_close(found.accuracies, found.by_training.mean(1))
    assert found.by_training.shape[1] == 4
    assert found.accuracies.std() > 0.04
    assert all(design["norm"] for design in found.designs)
    for design in found.designs[:10]:
        assert sum(p.numel() for p in build_network(design).parameters()) == pytest.approx(4000, rel=0.15)


def test_a_draw_is_part_of_the_table_and_a_matter_of_the_seed():
    first, again, other = (measured_architectures("cells", 20, seed=seed) for seed in (1, 1, 2))
    assert first.designs == again.designs != other.designs
    whole = measured_architectures("cells")
    assert whole.accuracies[whole.designs.index(first.designs[3])] == first.accuracies[3]


def test_reliability_compares_the_ranks_of_two_halves_of_the_trainings():
    trainings = torch.tensor([[0.1, 0.5, 0.2, 0.2], [0.3, 0.1, 0.4, 0.6], [0.4, 0.4, 0.3, 0.5], [0.9, 0.7, 0.9, 0.7]])
    ranks = torch.tensor([[1.0, 0.0, 2.0, 3.0], [0.0, 2.0, 1.0, 3.0]])  # of .3 .2 .4 .8, and of .2 .5 .4 .8
    found = MeasuredArchitectures([], trainings.mean(1), trainings).reliability
    assert found == pytest.approx(torch.corrcoef(ranks)[0, 1].item())
    assert all(measured_architectures(family).reliability > 0.5 for family in NETWORK_FAMILIES)


def test_what_is_not_in_the_table_is_refused_by_name():
    with pytest.raises(ValueError, match="family"):
        measured_architectures("resnets")
    for n in (0, 1000):
        with pytest.raises(ValueError, match=r"\bn\b"):
            measured_architectures("cells", n)
