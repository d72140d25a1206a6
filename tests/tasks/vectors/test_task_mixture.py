import pytest
import torch

from heldout.tasks import ContextPairs, TaskMixture, interleaved, linear_regression, noisy_classification, urns


def test_urns_are_uniform_over_the_simplex():
    tasks = urns(4, tasks=20_000, context=1).tasks
    assert tasks.dtype == torch.float64
    torch.testing.assert_close(tasks.sum(1), torch.ones(20_000, dtype=torch.float64))
    torch.testing.assert_close(tasks.mean(0), torch.full((4,), 0.25, dtype=torch.float64), atol=0.01, rtol=0)
    # The variance of a coordinate of Dirichlet(1, 1, 1, 1) is (1/4)(3/4)/5.
    torch.testing.assert_close(tasks.var(0), torch.full((4,), 0.0375, dtype=torch.float64), atol=0.002, rtol=0)


def test_a_sequence_of_an_urn_is_of_one_task_of_training():
    world = urns(5, tasks=3, context=4000, seed=1)
    found = torch.stack([tokens.bincount(minlength=5) / 4000 for tokens in world.sample(60, seed=2)]).double()
    apart = torch.cdist(found, world.tasks)
    assert float(apart.amin(1).max()) < 0.06
    counts = apart.argmin(1).bincount(minlength=3)
    assert int(counts.min()) >= 8  # 20 expected of each
    fresh = torch.stack([tokens.bincount(minlength=5) / 4000 for tokens in world.sample(60, "ood", seed=2)]).double()
    assert float(torch.cdist(fresh, world.tasks).amin(1).median()) > 0.1
    assert float(torch.cdist(fresh, fresh).fill_diagonal_(1).min()) > 0.02  # each of its own


def test_targets_of_linear_regression_are_of_one_weight_vector_with_the_asked_noise():
    world = linear_regression(dim=3, tasks=2, context=500, noise_var=0.25, seed=3)
    x, y = world.sample(8, seed=4)
    found = torch.linalg.lstsq(x, y.unsqueeze(2)).solution.squeeze(2).double()
    assert float(torch.cdist(found, world.tasks).amin(1).max()) < 0.2
    residual = y - (x @ found.float().unsqueeze(2)).squeeze(2)
    assert float(residual.var()) == pytest.approx(0.25, rel=0.1)
    quiet = linear_regression(dim=4, tasks=1, context=2000)
    x, y = quiet.sample(4)
    assert float((y - x @ quiet.tasks[0].float()).var()) == pytest.approx(4 / 256, rel=0.1)


def test_interleaved_tokens_hold_inputs_and_targets_in_turn():
    x, y = linear_regression(dim=3, tasks=2, context=5).sample(2)
    tokens = interleaved(ContextPairs(x, y))
    assert tokens.shape == (2, 10, 4)
    for t in range(5):
        assert tokens[:, 2 * t, :3].equal(x[:, t])
        assert tokens[:, 2 * t + 1, 3].equal(y[:, t])
        assert not tokens[:, 2 * t, 3].any()
        assert not tokens[:, 2 * t + 1, :3].any()


def test_copies_of_an_item_are_as_noisy_as_asked_and_keep_its_label():
    dim, context = 400, 5
    world = noisy_classification(dim=dim, tasks=6, context=context, noise_var=0.5, seed=5)
    items, labels = world.tasks[:, :-1].float(), world.tasks[:, -1].long()
    x, y = world.sample(200, seed=6)
    assert float(x.square().sum(2).mean()) == pytest.approx(1, rel=0.05)
    nearest = torch.cdist(x, items.expand(200, -1, -1)).argmin(2)
    assert y.equal(labels[nearest])
    assert float(((x * 1.5**0.5 - items[nearest]) * dim**0.5).var()) == pytest.approx(0.5, rel=0.05)
    assert bool((nearest[:, :-1] == nearest[:, -1:]).any(1).all())  # the query's item is in the context
    assert len(nearest[:, :-1].unique()) == 6


def test_items_out_of_distribution_are_fresh_and_the_query_is_one_of_the_context():
    world = noisy_classification(dim=400, tasks=6, context=5)
    x, y = world.sample(50, "ood", seed=7)
    near = torch.einsum("nd,nkd->nk", x[:, -1], x[:, :-1])  # 2/3 for a copy of the same item
    assert bool((near.amax(1) > 0.5).all())
    assert y[:, -1].equal(y[torch.arange(50), near.argmax(1)])
    assert bool((near.argmax(1).bincount(minlength=4) > 3).all())
    assert float(torch.einsum("nkd,td->nkt", x, world.tasks[:, :-1].float()).abs().max()) < 0.4


@pytest.mark.parametrize("make", [urns, linear_regression, noisy_classification])
def test_a_seed_gives_the_same_world_and_a_generator_goes_on(make):
    one, other = make(tasks=5, seed=1), make(tasks=5, seed=1)
    assert one.tasks.equal(other.tasks)
    assert not one.tasks.equal(make(tasks=5, seed=2).tasks)
    for first, second in zip(one.sample(3, seed=4), other.sample(3, seed=4), strict=True):
        assert first.equal(second)
    generator = torch.Generator().manual_seed(4)
    first, second = one.sample(8, seed=generator), one.sample(8, seed=generator)
    assert not torch.as_tensor(first[0]).equal(torch.as_tensor(second[0]))


def test_a_world_of_ones_own_is_sampled_alike():
    world = TaskMixture(
        tasks=torch.tensor([[1.0], [2.0]]),
        prior=lambda count, generator: torch.full((count, 1), 9.0),
        sequences=lambda tasks, generator: tasks,
        shown=3,
    )
    assert world.sample(4).shape == (4, 3, 1)
    assert set(world.sample(50).unique().tolist()) == {1.0, 2.0}
    assert world.sample(4, "ood").unique().tolist() == [9.0]


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda: urns(categories=1), "categories must be at least 2"),
        (lambda: urns(tasks=0), "tasks must be at least 1"),
        (lambda: urns(context=0), "context must be at least 1"),
        (lambda: urns().sample(0), "n must be at least 1"),
        (lambda: urns().sample(1, "test"), "split"),
        (lambda: linear_regression(noise_var=0.0), "noise_var must be positive"),
        (lambda: noisy_classification(context=1), "context must be at least 2"),
        (lambda: noisy_classification(noise_var=-1.0), "noise_var must be positive"),
        (lambda: interleaved(ContextPairs(torch.ones(2, 3, 4), torch.ones(2, 4))), "pairs must be"),
    ],
)
def test_worlds_that_make_no_sense_are_refused(call, what):
    with pytest.raises(ValueError, match=what):
        call()
