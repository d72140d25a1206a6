import pytest
import torch

from heldout.nn import SCORERS, candidate_scores, score_complex, score_distmult, score_simple, score_transe

H, R, T = (torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in range(3))


def test_transe_is_zero_where_the_tail_is_head_plus_relation():
    assert score_transe(H, R, H + R).abs().max() == 0
    expected = [-sum(abs(h + r - t) for h, r, t in zip(*row)) for row in zip(H.tolist(), R.tolist(), T.tolist())]
    assert torch.allclose(score_transe(H, R, T), torch.tensor(expected, dtype=torch.float64))


def test_distmult_is_a_sum_of_products():
    expected = [sum(h * r * t for h, r, t in zip(*row)) for row in zip(H.tolist(), R.tolist(), T.tolist())]
    assert torch.allclose(score_distmult(H, R, T), torch.tensor(expected, dtype=torch.float64))


def test_complex_is_the_real_part_of_the_product_with_the_conjugate():
    h, r, t = (torch.complex(each[:, :3], each[:, 3:]) for each in (H, R, T))
    assert torch.allclose(score_complex(H, R, T), (h * r * t.conj()).real.sum(-1))
    assert not torch.allclose(score_complex(H, R, T), score_complex(T, R, H))


def test_complex_with_real_vectors_is_distmult():
    zero = torch.zeros(5, 3, dtype=torch.float64)
    h, r, t = (torch.cat([each[:, :3], zero], 1) for each in (H, R, T))
    assert torch.allclose(score_complex(h, r, t), score_distmult(H[:, :3], R[:, :3], T[:, :3]))


def test_simple_is_the_mean_of_two_distmults():
    forth = score_distmult(H[:, :3], R[:, :3], T[:, 3:])
    back = score_distmult(T[:, :3], R[:, 3:], H[:, 3:])
    assert torch.allclose(score_simple(H, R, T), (forth + back) / 2)


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("end", ["head", "tail"])
def test_all_candidates_at_once_have_the_scores_of_each(scorer, end):
    candidates = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    found = candidate_scores(scorer, H, R, candidates, end)
    score = SCORERS[scorer]
    for row in range(5):
        for place in range(7):
            ends = (H[row], candidates[place]) if end == "tail" else (candidates[place], H[row])
            assert torch.allclose(found[row, place], score(ends[0], R[row], ends[1]))


@pytest.mark.parametrize("scorer", SCORERS)
def test_scorers_broadcast_and_pass_gradients_on(scorer):
    h = H[:, None].clone().requires_grad_()
    found = SCORERS[scorer](h, R[:, None], T[None])
    assert found.shape == (5, 5)
    found.sum().backward()
    assert bool(torch.isfinite(h.grad).all())
    assert h.grad.abs().max() > 0


def test_bad_vectors_are_refused():
    for score in (score_complex, score_simple):
        with pytest.raises(ValueError, match="even length"):
            score(H[:, :5], R[:, :5], T[:, :5])
    with pytest.raises(ValueError, match="one length"):
        score_transe(H, R[:, :3], T)
    with pytest.raises(ValueError, match="scorer"):
        candidate_scores("rescal", H, R, T, "tail")
    with pytest.raises(ValueError, match="end"):
        candidate_scores("transe", H, R, T, "middle")
    with pytest.raises(ValueError, match="even length"):
        candidate_scores("simple", H[:, :5], R[:, :5], T[:, :5], "tail")
    with pytest.raises(ValueError, match="equally long"):
        candidate_scores("transe", H, R[:3], T, "tail")
