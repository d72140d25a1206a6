import functools

import pytest
import torch
from torch import nn

import heldout
from heldout.adapt import AdaNPC
from heldout.losses import knn_nll, knn_training
from heldout.nn import KNNMemory, split_head
from heldout.optim import sam


def memory_of(z, y):
    memory = KNNMemory(z.shape[1])
    memory.add(z, y)
    return memory


def test_loss_is_the_negative_log_vote_for_the_label():
    generator = torch.Generator().manual_seed(0)
    z, y = torch.randn(20, 4, generator=generator), torch.randint(0, 3, (20,), generator=generator)
    query, labels = torch.randn(5, 4, generator=generator), torch.tensor([0, 1, 2, 0, 1])
    memory = memory_of(z, y)
    vote = memory.vote(query, 7, 0.2, 3)
    expected = -(vote[torch.arange(5), labels] + 1e-5).clamp(max=1).log().mean()
    torch.testing.assert_close(knn_nll(query, labels, memory, 7, 0.2), expected)


def test_gradient_reaches_the_query_and_not_the_memory():
    memory = memory_of(torch.eye(3), torch.arange(3))
    query = torch.tensor([[1.0, 0.9, 0.0]], requires_grad=True)
    knn_nll(query, torch.tensor([1]), memory, k=3, tau=0.5).backward()
    assert query.grad[0, 1] < 0 < query.grad[0, 0]
    assert not memory.features.requires_grad


def test_too_small_a_memory_and_wrong_labels_are_named():
    memory = memory_of(torch.eye(3), torch.arange(3))
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.3"):
        knn_nll(torch.ones(1, 3), torch.tensor([0]), memory, k=4, tau=0.1)
    with pytest.raises(ValueError, match=r"y must be \(1,\)"):
        knn_nll(torch.ones(1, 3), torch.tensor([0, 1]), memory, k=1, tau=0.1)


def test_knn_training_makes_features_whose_neighbours_share_the_label():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(300) % 3
    x = torch.randn(300, 8, generator=generator)
    x[:, 0] += 5 * (y == 1)
    x[:, 1] += 5 * (y == 2)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    fitted = heldout.fit(
        model,
        (x[:200], y[:200]),
        knn_training(k=5, queue=100, anneal_steps=50),
        epochs=15,
        batch_size=20,
        optimizer=functools.partial(torch.optim.Adam, lr=1e-2),
    )
    encoder, _ = split_head(fitted.module, x[:2])
    vote = AdaNPC(encoder, [(x[:200], y[:200])], 3, k=5, beta=2)
    assert (vote(x[200:]).argmax(1) == y[200:]).float().mean() > 0.9
    queue = fitted.run.state["knn-training"][1]
    assert len(queue) == 100


def test_tau_falls_linearly_from_the_first_to_the_last_and_stays_there(monkeypatch):
    import sys

    seen = []
    module = sys.modules["heldout.losses.knn"]
    loss = module.knn_nll

    def spied(z, y, memory, k, tau, **options):
        seen.append(tau)
        return loss(z, y, memory, k, tau, **options)

    monkeypatch.setattr(module, "knn_nll", spied)
    x, y = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    method = knn_training(k=5, queue=100, tau=0.2, first_tau=1.0, anneal_steps=4)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    heldout.fit(model, (x, y), method, epochs=2, batch_size=10)
    # step 0 fills the queue; then 1 - 0.8 * step / 4
    assert seen == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.2, 0.2, 0.2])


def test_a_batch_enters_the_queue_once_though_sam_evaluates_it_twice():
    x, y = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    fitted = heldout.fit(model, (x, y), knn_training(k=5, queue=100) + sam(), epochs=1, batch_size=10)
    queue = fitted.run.state["knn-training"][1]
    assert len(queue) == 40
    assert queue.labels.bincount().tolist() == [20, 20]
    single = heldout.fit(model, (x, y), knn_training(k=5, queue=100), epochs=1, batch_size=10)
    first = single.run.state["knn-training"][1].features[:10]
    assert torch.equal(queue.features[:10], first)  # those of the first evaluation, at the weights of the step
