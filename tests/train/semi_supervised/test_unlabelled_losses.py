import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heldout.optim import SAM
from heldout.train import FixMatch, MeanTeacher, PseudoLabelLoss, SemiSupervised

SGD = functools.partial(torch.optim.SGD, lr=0.1)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


X = torch.randn(40, 4, generator=generator())
Y = torch.arange(8) % 3


def network(seed=0, outputs=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, outputs))


def test_pseudo_labels_are_the_models_own_sure_predictions():
    model = network().eval()
    found = PseudoLabelLoss(0.4)(model, X, generator()).item()
    logits = model(X)
    confidence, labels = logits.softmax(1).max(1)
    sure = confidence >= 0.4
    assert 0 < sure.sum() < 40
    assert found == pytest.approx(F.cross_entropy(logits[sure], labels[sure]).item() * sure.float().mean().item())


def test_fixmatch_learns_the_strong_view_under_the_label_of_the_weak_one():
    model = network().eval()
    loss = FixMatch(0.4, weak=lambda x, _: x + 0.1, strong=lambda x, _: 2 * x)
    found = loss(model, X, generator())
    confidence, labels = model(X + 0.1).softmax(1).max(1)
    losses = F.cross_entropy(model(2 * X), labels, reduction="none")
    assert found.item() == pytest.approx((losses * (confidence >= 0.4)).mean().item())
    found.backward()
    given = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    (F.cross_entropy(model(2 * X), labels, reduction="none") * (confidence.detach() >= 0.4)).mean().backward()
    for ours, expected in zip(given, [p.grad for p in model.parameters()], strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_teacher_is_the_moving_average_in_evaluation_mode():
    model = network().train()
    loss = MeanTeacher(decay=0.6, view=lambda x, _: x)
    optimizer = SGD(model.parameters())
    expected = None
    for step in range(1, 5):
        if expected is not None:
            teacher = network().eval()
            teacher.load_state_dict({**copy.deepcopy(model.state_dict()), **expected})
            state = copy.deepcopy(model.state_dict())
            rng = torch.get_rng_state()
            found = loss(model, X, generator()).item()
            model.load_state_dict(state)
            torch.set_rng_state(rng)
            assert found == pytest.approx(F.mse_loss(model(X).softmax(1), teacher(X).softmax(1)).item(), rel=1e-5)
        else:
            before = {k: v.clone() for k, v in model.named_parameters()}
            loss(model, X, generator())
            expected = {k: v.detach().clone() for k, v in before.items()}
        optimizer.zero_grad()
        F.cross_entropy(model(X[:8]), Y).backward()
        optimizer.step()
        loss.after_step(model)
        now = min(0.6, 1 - 1 / (step + 1))  # 1/2, then 0.6
        expected = {k: now * expected[k] + (1 - now) * v.detach() for k, v in model.named_parameters()}
        assert model.training
    result = loss.result(model)
    assert not result.training
    for name, value in result.named_parameters():
        torch.testing.assert_close(value.detach(), expected[name])
        assert value.requires_grad
    torch.testing.assert_close(result[1].running_mean, model[1].running_mean)


def test_no_gradient_enters_the_teacher():
    model, loss = network().train(), MeanTeacher()
    loss(model, X, generator()).backward()
    assert all(p.grad is None for p in loss.result(model).parameters())


def test_a_step_is_one_of_the_sum_of_both_losses():
    own, reference = network().eval(), network().eval()
    loss = PseudoLabelLoss(0.4, weight=2.5)
    log = SemiSupervised(own, loss, optimizer=SGD).step((X[:8], Y), (X[8:], "what comes behind"))
    labelled, unlabelled = F.cross_entropy(reference(X[:8]), Y), loss(reference, X[8:], generator())
    (labelled + 2.5 * unlabelled).backward()
    SGD(reference.parameters()).step()
    assert log.labelled_loss == pytest.approx(labelled.item())
    assert log.unlabelled_loss == pytest.approx(unlabelled.item())
    for ours, expected in zip(own.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


def test_labelled_batches_may_be_augmented():
    own, reference = network().eval(), network().eval()
    trainer = SemiSupervised(own, PseudoLabelLoss(1.0), optimizer=SGD, augment=lambda x, _: x + 1)
    log = trainer.step((X[:8], Y), X)
    assert log.labelled_loss == pytest.approx(F.cross_entropy(reference(X[:8] + 1), Y).item())


def test_either_batch_may_be_missing_but_not_both():
    trainer = SemiSupervised(network(), PseudoLabelLoss(0.0))
    assert trainer.step((X[:8], Y), None).unlabelled_loss is None
    assert trainer.step(None, X).labelled_loss is None
    with pytest.raises(ValueError, match="labelled or unlabelled must be a batch"):
        trainer.step(None, None)


def test_optimizers_that_evaluate_twice_are_served():
    model = network()
    trainer = SemiSupervised(model, FixMatch(0.0), optimizer=SAM(SGD(model.parameters()), rho=0.05))
    assert trainer.step((X[:8], Y), X).labelled_loss > 0


@pytest.mark.parametrize("loss", [PseudoLabelLoss(0.7), FixMatch(0.7), MeanTeacher(0.9, 1.0)])
def test_fit_learns_from_few_labels_of_two_clouds(loss):
    centres = torch.tensor([[2.0, 0, 0, 0], [-2.0, 0, 0, 0]])
    y = torch.arange(200) % 2
    x = centres[y] + torch.randn(200, 4, generator=generator())
    trainer = SemiSupervised(network(outputs=1), loss, optimizer=functools.partial(torch.optim.Adam, lr=0.02))
    history = trainer.fit([(x[:6], y[:6].float())], list(x[6:].split(32)), epochs=15)
    assert history[-1]["labelled_loss"] < history[0]["labelled_loss"]
    assert "zero_rewards" not in history[0]
    with torch.no_grad():
        assert ((trainer.result()(x).squeeze(1) > 0).long() == y).float().mean() > 0.9


def test_transformers_classifiers_are_trained_on_dicts():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    trainer = SemiSupervised(transformers.BertForSequenceClassification(config), PseudoLabelLoss(0.0))
    batch = {"input_ids": torch.ones(4, 5, dtype=torch.long), "labels": torch.tensor([0, 1, 0, 1])}
    log = trainer.step(batch, {"input_ids": torch.ones(3, 7, dtype=torch.long)})
    assert math.isfinite(log.labelled_loss + log.unlabelled_loss)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PseudoLabelLoss(1.5), "threshold must be between"),
        (lambda: FixMatch(weight=-1.0), "weight must be at least 0"),
        (lambda: MeanTeacher(decay=1.0), "decay must be between"),
        (lambda: SemiSupervised(network(), FixMatch(), seed=-1), "seed must be"),
        (lambda: SemiSupervised(network(), FixMatch()).step((X[:8], Y + 5), X), r"labels must lie in 0\.\.2"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_loss_that_is_not_finite_stops():
    with pytest.raises(FloatingPointError, match="training loss is nan"):
        SemiSupervised(network(), PseudoLabelLoss()).step((X[:8] * math.nan, Y), None)
