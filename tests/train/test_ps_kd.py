import copy
import io
import warnings

import pytest
import torch
import torch.multiprocessing
import torch.nn.functional as F
from torch import nn

import heldout
from heldout.losses import soft_cross_entropy
from heldout.optim import SAM
from heldout.train import ProgressiveSelfDistillation, ps_kd

INDEX, LABELS = torch.tensor([4, 0, 2]), torch.tensor([1, 2, 0])


def logits_of(seed, n=3, classes=3):
    return 2 * torch.randn(n, classes, generator=torch.Generator().manual_seed(seed))


def distillation(epochs=4, **options):
    return ProgressiveSelfDistillation(num_examples=6, num_classes=3, epochs=epochs, **options)


def problem(n=40):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    return model, (x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long())


def test_alpha_grows_linearly_to_its_full_value_in_the_last_epoch():
    assert [distillation().alpha(epoch) for epoch in (1, 2, 3, 4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert distillation(growth="constant").alpha(1) == 0.8


@pytest.mark.parametrize("storage", ["memory", "topk"])
def test_first_epoch_trains_on_hard_labels(storage):
    targets = distillation(storage=storage, top_k=2).targets(INDEX, LABELS, epoch=1)
    assert torch.equal(targets, F.one_hot(LABELS, 3).float())


def test_targets_mix_labels_with_the_prediction_of_the_previous_epoch():
    d = distillation()
    for epoch in (1, 2, 3):
        d.targets(INDEX, LABELS, epoch)
        d.update(INDEX, logits_of(epoch))
    expected = 0.2 * F.one_hot(LABELS, 3) + 0.8 * logits_of(3).softmax(1)
    torch.testing.assert_close(d.targets(INDEX, LABELS, epoch=4), expected)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(d.targets(INDEX[order], LABELS[order], epoch=4), expected[order])


def test_an_example_drawn_twice_in_an_epoch_reads_the_previous_epoch_both_times():
    d = distillation()
    d.targets(INDEX, LABELS, 1)
    d.update(INDEX, logits_of(1))
    first = d.targets(INDEX, LABELS, 2)
    d.update(INDEX, logits_of(2))
    assert torch.equal(d.targets(INDEX, LABELS, 2), first)
    d.update(INDEX, logits_of(3))
    assert torch.equal(d.targets(INDEX, LABELS, 2), first)
    torch.testing.assert_close(d.targets(INDEX, LABELS, 3), 0.4 * F.one_hot(LABELS, 3) + 0.6 * logits_of(3).softmax(1))


def test_an_example_left_out_of_an_epoch_keeps_its_latest_prediction():
    d = distillation()
    d.targets(INDEX, LABELS, 1)
    d.update(INDEX, logits_of(1))
    torch.testing.assert_close(d.targets(INDEX, LABELS, 4), 0.2 * F.one_hot(LABELS, 3) + 0.8 * logits_of(1).softmax(1))


def test_tokens_have_targets_of_their_own():
    d, index, labels = distillation(), INDEX.repeat(2, 1) + torch.tensor([[0], [1]]), LABELS.repeat(2, 1)
    d.targets(index, labels, 1)
    logits = torch.stack([logits_of(1), logits_of(2)])
    d.update(index, logits)
    expected = 0.6 * F.one_hot(labels, 3) + 0.4 * logits.softmax(-1)
    torch.testing.assert_close(d.targets(index, labels, 2), expected)


def test_topk_storage_keeps_the_largest_and_spreads_the_rest():
    d = distillation(storage="topk", top_k=1, alpha_T=1.0, epochs=2)
    d.targets(INDEX, LABELS, 1)
    d.update(INDEX, logits_of(1))
    targets, probs = d.targets(INDEX, LABELS, 2), logits_of(1).softmax(1)
    top, best = probs.max(1)
    torch.testing.assert_close(targets.gather(1, best.unsqueeze(1)).squeeze(1), top)
    torch.testing.assert_close(targets.sum(1), torch.ones(3))
    torch.testing.assert_close(targets.min(1).values, (1 - top) / 2)


def test_half_precision_table_agrees_within_its_precision():
    tables = [distillation(), distillation(dtype=torch.float16)]
    for d in tables:
        d.targets(INDEX, LABELS, 1)
        d.update(INDEX, logits_of(1))
    full, half = (d.targets(INDEX, LABELS, 2) for d in tables)
    torch.testing.assert_close(half, full, atol=1e-3, rtol=0)


def test_snapshot_storage_asks_the_model_of_the_previous_epoch():
    model, (x, y) = problem()
    d = ProgressiveSelfDistillation(len(x), 3, epochs=2, storage="snapshot", alpha_T=1.0)
    hard = d.targets(torch.arange(40), y, 1, x)
    assert torch.equal(hard, F.one_hot(y, 3).float())
    d.begin_epoch(model)
    expected = copy.deepcopy(model).eval()(x).softmax(1)
    nn.init.zeros_(model[0].weight)
    torch.testing.assert_close(d.targets(torch.arange(40), y, 2, x), expected.detach())
    other = ProgressiveSelfDistillation(len(x), 3, epochs=2, storage="snapshot", alpha_T=1.0)
    other.load_state_dict(d.state_dict(), module=model)
    torch.testing.assert_close(other.targets(torch.arange(40), y, 2, x), expected.detach())


def test_gradient_is_rescaled_by_the_past_and_present_confidence():
    logits = logits_of(5).double().requires_grad_()
    past, alpha = logits_of(6).double().softmax(1), 0.3
    onehot = F.one_hot(LABELS, 3).double()
    soft = soft_cross_entropy(logits, onehot.lerp(past, alpha), "sum")
    (soft_gradient,) = torch.autograd.grad(soft, logits, retain_graph=True)
    (hard_gradient,) = torch.autograd.grad(F.cross_entropy(logits, LABELS, reduction="sum"), logits)
    true = (torch.arange(3), LABELS)
    ratio = 1 - alpha * (1 - past[true]) / (1 - logits.softmax(1)[true])
    torch.testing.assert_close(soft_gradient[true], hard_gradient[true] * ratio.detach())


def fit(method, **options):
    model, data = problem()
    options = {"epochs": 3, "batch_size": 8, "seed": 0} | options
    return heldout.fit(model, data, method, **options)


def same_weights(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.module.parameters(), b.module.parameters(), strict=True))


def test_zero_alpha_is_plain_cross_entropy():
    plain, soft = fit(None), fit(ps_kd(alpha_T=0.0))
    for p, q in zip(plain.module.parameters(), soft.module.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)


def test_a_method_can_be_fitted_again_from_a_clean_state():
    method = ps_kd()
    assert same_weights(fit(method), fit(method))
    assert not same_weights(fit(method), fit(None))


def test_snapshot_and_memory_storage_both_train():
    for storage in ("memory", "snapshot"):
        assert fit(ps_kd(storage=storage), epochs=10).history[-1]["loss"] > 0


def test_the_method_stores_the_predictions_of_the_training_pass_as_they_are():
    seen, state = {}, {}

    def record(run, batch):
        seen.update(zip(batch.index.tolist(), batch.logits.detach().softmax(1), strict=True))
        state["distillation"] = run.state["ps-kd"]
        return torch.zeros(())

    model, (x, y) = problem()
    spy = heldout.Method("spy", loss=heldout.method.Added(record))
    heldout.fit(model, (x, y), ps_kd(alpha_T=0.5, growth="constant") + spy, epochs=1, batch_size=10)
    index = torch.arange(len(x))
    state["distillation"].epochs = 2
    targets = state["distillation"].targets(index, y, 2)
    predicted = torch.stack([seen[i] for i in index.tolist()])
    torch.testing.assert_close(targets, 0.5 * F.one_hot(y, 3) + 0.5 * predicted)


def test_the_teacher_of_snapshot_storage_is_taken_once_an_epoch(monkeypatch):
    taken, begin = [], ProgressiveSelfDistillation.begin_epoch
    monkeypatch.setattr(
        ProgressiveSelfDistillation, "begin_epoch", lambda self, module: (taken.append(self.epoch), begin(self, module))
    )
    fit(ps_kd(storage="snapshot"), epochs=4)
    assert taken == [1, 2, 3]


def test_examples_of_a_subset_keep_their_places_in_the_whole_set():
    model, data = problem()
    half = heldout.Method("half", data=lambda run, train_set: torch.utils.data.Subset(train_set, range(20, 40)))
    fitted = heldout.fit(model, data, half + ps_kd(), epochs=2)
    assert fitted.run.state["ps-kd"].num_examples == 40


def test_second_evaluation_of_a_step_reuses_the_targets_and_stores_nothing():
    seen = []
    method = ps_kd()

    def spy(run, batch):
        loss = method.loss(run, batch)
        d = run.state["ps-kd"]
        targets = d.targets(batch.index, batch.targets, run.epoch)
        seen.append((run.evaluation, targets, d.state_dict()["probabilities"].clone()))
        return loss

    fit(
        heldout.Method("spy", loss=spy),
        optimizer=lambda module: SAM(torch.optim.SGD(module.parameters(), lr=0.1), rho=0.05),
    )
    pairs = list(zip(seen[::2], seen[1::2], strict=True))
    assert len(pairs) == 15
    for (first, targets, table), (second, targets_again, table_again) in pairs:
        assert (first, second) == (0, 1)
        assert torch.equal(targets, targets_again)
        assert torch.equal(table, table_again)


def train_by_hand(epochs, stop=None, saved=None):
    model, (x, y) = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    d = ProgressiveSelfDistillation(len(x), 3, epochs)
    first = 1
    if saved is not None:
        state = torch.load(io.BytesIO(saved), weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        d.load_state_dict(state["ps-kd"])
        first = state["epoch"] + 1
    for epoch in range(first, (stop or epochs) + 1):
        for index in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(8):
            logits = model(x[index])
            targets = d.targets(index, y[index], epoch)
            d.update(index, logits)
            optimizer.zero_grad()
            soft_cross_entropy(logits, targets).backward()
            optimizer.step()
    buffer = io.BytesIO()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ps-kd": d.state_dict()}
    torch.save(state | {"epoch": epoch}, buffer)
    return model, buffer.getvalue()


def test_resumed_training_equals_the_uninterrupted_one_bit_for_bit():
    whole, _ = train_by_hand(5)
    _, saved = train_by_hand(5, stop=2)
    resumed, _ = train_by_hand(5, saved=saved)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))


def _update_from_one_rank(rank, address, folder):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    d = distillation()
    index = (torch.tensor([4, 0, 2]), torch.tensor([1]))[rank]
    d.targets(index, torch.zeros_like(index), 1)
    d.all_gather_update(index, logits_of(rank, n=len(index)))
    torch.save(d.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_gather_each_others_predictions(tmp_path):
    address = (tmp_path / "rendezvous").as_uri()
    torch.multiprocessing.spawn(_update_from_one_rank, args=(address, str(tmp_path)), nprocs=2)
    alone = distillation()
    for rank, index in enumerate((torch.tensor([4, 0, 2]), torch.tensor([1]))):
        alone.targets(index, torch.zeros_like(index), 1)
        alone.all_gather_update(index, logits_of(rank, n=len(index)))
    for rank in (0, 1):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name in ("probabilities", "written"):
            assert torch.equal(state[name], alone.state_dict()[name])


def test_an_index_twice_in_a_batch_warns_in_the_first_epoch():
    with pytest.warns(UserWarning, match="whole training set"):
        distillation().targets(torch.tensor([1, 1]), torch.tensor([0, 0]), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        distillation().targets(torch.tensor([1, 2]), torch.tensor([0, 0]), 1)


def test_regression_is_refused_with_the_reason():
    x = torch.randn(8, 2)
    with pytest.raises(ValueError, match="ps-kd cannot act here: it needs class labels"):
        heldout.fit(nn.Linear(2, 1), (x, x[:, 0]), ps_kd(), epochs=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: distillation(alpha_T=1.2), r"alpha_T must lie in \[0, 1\]"),
        (lambda: distillation(storage="disk"), "storage"),
        (lambda: distillation(growth="fast"), "growth"),
        (lambda: distillation(storage="topk", top_k=3), r"top_k must lie in 1\.\.2"),
        (lambda: ProgressiveSelfDistillation(0, 3, 1), r"at least 1 example|num_examples must be at least 1"),
        (lambda: distillation().targets(INDEX, LABELS, 0), r"epoch must lie in 1\.\.4"),
        (lambda: distillation().targets(INDEX + 2, LABELS, 1), r"index must lie in 0\.\.5"),
        (lambda: distillation().targets(INDEX.float(), LABELS, 1), "index must hold integers"),
        (lambda: distillation().targets(INDEX, LABELS + 1, 1), r"labels must lie in 0\.\.2"),
        (lambda: distillation().targets(INDEX, LABELS[:2], 1), "labels must be class indices"),
        (lambda: distillation().update(INDEX, logits_of(0, classes=4)), "logits must be"),
        (lambda: distillation().load_state_dict(ProgressiveSelfDistillation(5, 3, 4).state_dict()), "must be"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
