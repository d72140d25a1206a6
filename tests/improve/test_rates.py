"""How a learning rate is chosen."""

from heldout.improve.rates import best_power


def test_the_loss_tells_learning_rates_apart_that_scores_do_not():
    assert best_power({0: 0.3, 1: 0.3, -1: 0.3}, {0: 1.1, 1: 1.0, -1: 1.2}, 0.01) == 1
    assert best_power({0: 0.3, 1: 0.3, -1: 0.3}, {0: 1.1, 1: 1.099, -1: 1.2}, 0.01) == 0
    assert best_power({0: 0.3, 1: 0.2, -1: 0.5}, {0: 1.1, 1: 0.1, -1: 1.5}, 0.01) == -1
