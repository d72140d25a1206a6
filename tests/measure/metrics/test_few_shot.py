"""Few-shot probes: against ridge regression by hand, and what is shown is never asked."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from heldout.measure import few_shot_accuracy, prototype_episodes, ridge_probe


def drawn(classes: int, each: int, spread: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, 8, generator=generator)
    y = torch.arange(classes).repeat_interleave(each)
    return centres[y] + spread * torch.randn(len(y), 8, generator=generator), y


def by_hand(z: Tensor, y: Tensor, support: Tensor, query: Tensor, alpha: float) -> float:
    """One against the rest, targets -1 and 1, an intercept that is not penalised."""
    x, wanted = z[support].double(), 2.0 * (y[support][:, None] == y[support].unique()[None]).double() - 1
    centre, shift = x.mean(0), wanted.mean(0)
    ridge = (x - centre).T @ (x - centre) + alpha * torch.eye(x.shape[1]).double()
    weight = torch.linalg.solve(ridge, (x - centre).T @ (wanted - shift))
    guess = y[support].unique()[((z[query].double() - centre) @ weight + shift).argmax(1)]
    return float((guess == y[query]).double().mean())


@pytest.mark.parametrize("alpha", [0.01, 1.0, 100.0])
def test_it_is_ridge_regression_on_one_against_the_rest(alpha):
    z, y = drawn(5, 12, 2.0)
    y = 3 * y + 7  # labels need not begin at 0
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    assert ridge_probe(z, y, order[:20], order[20:], alpha=alpha) == by_hand(z, y, order[:20], order[20:], alpha)


def test_the_draws_show_so_many_of_each_class_and_ask_the_rest():
    z, y = drawn(4, 10, 1.0)
    rows = torch.arange(40)
    scores = []
    for draw in range(3):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(11 + draw)).tolist()
        shown = {i for c in range(4) for i in [i for i in order if y[i] == c][:2]}
        support = torch.tensor([i for i in order if i in shown])
        asked = torch.tensor([i for i in range(40) if i not in shown])
        scores.append(by_hand(z, y, support, asked, 0.5))
    found = few_shot_accuracy(z, y, 2, pool=rows, query=rows, alpha=0.5, draws=3, seed=11)
    assert found == pytest.approx(sum(scores) / 3)
    assert 0.3 < found < 1


def test_other_pictures_of_a_shown_thing_are_not_asked():
    """Each thing has two pictures that are the same: asked about, they would make a memory look like knowledge."""
    y = torch.tensor([0, 1, 0, 1]).repeat_interleave(2)
    z = torch.eye(4).repeat_interleave(2, 0)
    rows, things = torch.arange(8), torch.arange(4).repeat_interleave(2)
    known = few_shot_accuracy(z, y, 1, pool=rows, query=rows, things=things, draws=20)
    assert few_shot_accuracy(z, y, 1, pool=rows, query=rows, draws=20) > known + 0.1


def test_classes_that_are_not_shown_are_not_asked():
    z, y = drawn(3, 6, 0.01)
    assert few_shot_accuracy(z, y, 2, pool=torch.arange(12), query=torch.arange(18)) == 1.0


def test_bad_input_is_refused():
    z, y = drawn(3, 6, 0.1)
    rows = torch.arange(18)
    with pytest.raises(ValueError, match="support"):
        ridge_probe(z, y, torch.arange(6), rows)
    with pytest.raises(ValueError, match="query"):
        ridge_probe(z, y, rows, rows + 1)
    with pytest.raises(ValueError, match="alpha"):
        ridge_probe(z, y, rows, rows, alpha=0.0)
    with pytest.raises(ValueError, match="shots"):
        few_shot_accuracy(z, y, 0, pool=rows, query=rows)
    with pytest.raises(ValueError, match="things"):
        few_shot_accuracy(z, y, 1, pool=rows, query=rows, things=rows[1:])
    with pytest.raises(ValueError, match="query must hold things"):
        few_shot_accuracy(z, y, 6, pool=rows, query=rows)


def test_episodes_of_perfect_embeddings_are_right_and_of_noise_are_chance():
    y = torch.arange(9).repeat_interleave(30)
    exact = prototype_episodes(torch.eye(9)[y], y, episodes=50)
    assert (exact.estimate, exact.low, exact.high) == (1.0, 1.0, 1.0)
    noise = torch.randn(270, 16, generator=torch.Generator().manual_seed(0))
    found = prototype_episodes(noise, y, ways=4, episodes=300)
    assert found.estimate == pytest.approx(0.25, abs=0.02)
    assert found.low < found.estimate < found.high


def test_episodes_follow_a_naive_loop():
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(5).repeat(8)
    z = torch.randn(5, 3, generator=generator)[y] + torch.randn(40, 3, generator=generator)
    ours = prototype_episodes(z, y, ways=5, shots=1, queries=7, episodes=400).estimate
    right = total = 0
    for _ in range(400):  # other draws: all classes, one shown and the seven others asked
        shown = torch.stack([(y == c).nonzero().flatten()[torch.randint(8, (), generator=generator)] for c in range(5)])
        for row in range(40):
            if row not in shown.tolist():
                cosines = [float(F.cosine_similarity(z[row], z[each], dim=0)) for each in shown]
                right, total = right + (cosines.index(max(cosines)) == int(y[row])), total + 1
    assert ours == pytest.approx(right / total, abs=0.02)


def test_episodes_show_and_ask_different_examples_from_where_they_may():
    y = torch.arange(3).repeat_interleave(4)
    z = torch.eye(3)[y]
    z[[3, 7, 11]] = torch.eye(3)[[1, 2, 0]]  # the last of each class would be told wrong, and is never asked
    z[[2, 6, 10]] = 0.0
    pool, query = torch.tensor([0, 1, 4, 5, 8, 9]), torch.tensor([0, 1, 4, 5, 8, 9])
    options = {"ways": 3, "shots": 1, "queries": 1, "episodes": 30}
    assert prototype_episodes(z, y, **options, pool=pool, query=query).estimate == 1.0
    assert prototype_episodes(z, y, **options, pool=pool, query=torch.tensor([3, 7, 11])).estimate == 0.0
    with pytest.raises(ValueError, match="queries"):
        prototype_episodes(z, y, ways=3, shots=1, queries=2, episodes=3, pool=pool, query=query)


def test_episodes_are_those_of_their_seed():
    z, y = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6).repeat(10)
    first, again, other = (prototype_episodes(z, y, queries=5, episodes=20, seed=s).estimate for s in (0, 0, 1))
    assert first == again != other
    assert prototype_episodes(z * 5, y, queries=5, episodes=20).estimate == first


def test_episodes_refuse_bad_input():
    z, y = torch.randn(40, 4), torch.arange(4).repeat(10)
    for options, named in (
        ({"ways": 5}, "ways"),
        ({"ways": 1}, "ways"),
        ({"shots": 0}, "shots"),
        ({"shots": 11}, "shots"),
        ({"shots": 5, "queries": 6}, "queries"),
        ({"episodes": 0}, "episodes"),
        ({"pool": torch.tensor([40])}, "pool"),
        ({"seed": -1}, "seed"),
    ):
        with pytest.raises(ValueError, match=named):
            prototype_episodes(z, y, **({"ways": 4, "queries": 3} | options))
    with pytest.raises(ValueError, match="z must"):
        prototype_episodes(z * torch.nan, y, ways=4, queries=3)


def test_the_length_of_an_embedding_does_not_matter_to_an_episode():
    z, y = drawn(6, 12, 2.0)
    longer = z * torch.logspace(-2, 2, len(z)).unsqueeze(1)[torch.randperm(len(z), generator=torch.Generator())]
    assert prototype_episodes(longer, y, queries=5).estimate == prototype_episodes(z, y, queries=5).estimate < 1
