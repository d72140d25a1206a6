"""Every kind is told by outputs and targets, and is trained on and measured as what it is."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Subset, TensorDataset

import heldout
from heldout.data import gather
from heldout.improve import winner_code
from heldout.methods import parse
from heldout.problem import KINDS, ProblemError, check_problem, kind_of, load_problem
from heldout.problem.kinds import IGNORED, token_cross_entropy

ZEROS_AND_ONES = torch.tensor([0, 1, 1, 0, 1])
LABELS = torch.tensor([[0, 1, 1], [1, 0, 1], [0, 0, 0]])
# fmt: off
TOLD = [
    ((5,), ZEROS_AND_ONES, "binary"), ((5, 1), ZEROS_AND_ONES.bool(), "binary"),
    ((5, 1), ZEROS_AND_ONES.float(), "binary"), ((5, 1), ZEROS_AND_ONES.float()[:, None], "binary"),
    ((5, 2), ZEROS_AND_ONES, "classification"), ((5, 2), ZEROS_AND_ONES.int(), "classification"),
    ((5, 4), ZEROS_AND_ONES[:, None], "classification"),
    ((3, 3), torch.eye(3), "classification"), ((3, 3), LABELS, "multi-label"), ((3, 3), LABELS.float(), "multi-label"),
    ((3, 3), LABELS.bool(), "multi-label"), ((5, 1), torch.tensor([0.5, 1, 0, 0, 1]), "regression"),
    ((3, 3), LABELS + 0.5, "regression"), ((3, 7, 2), torch.randn(3, 7, 2), "regression"),
    ((3, 4, 5), torch.tensor([[0, 1, 4, IGNORED]] * 3), "tokens"),
]
WRONG = [
    ((5, 1), torch.tensor([0, 1, 2, 0, 0]), None, "at least 2 classes"),
    ((5, 3), torch.tensor([0, 1, 3, 0, 0]), None, r"0\.\.2 .* got 0\.\.3"),
    ((5, 3), torch.tensor([0, 1, -1, 0, 0]), None, r"got -1\.\.1"),
    ((3, 4, 5), torch.tensor([[0, 1, 5, 0]] * 3), None, r"0\.\.4 .* got 0\.\.5"),
    ((3, 4, 5), torch.full((3, 4), IGNORED), None, "none that counts"),
    ((3, 4, 5), torch.zeros(3, 7, dtype=torch.int64), None, r"got outputs \(batch, 4, 5\) and labels \(batch, 7\)"),
    ((5, 1), torch.tensor([0, 1, 2, 0, 0]), "binary", "from 0 to 2"),
    ((3, 3), LABELS * 2, "multi-label", "other values"),
    ((3, 4), LABELS, "multi-label", r"\(batch, 4\) and \(batch, 3\)"),
    ((5, 3), torch.tensor([0.5, 1, 1, 0, 0]), "classification", "real numbers"),
    ((5, 3), torch.tensor([0.0, 1, 2, 0, 0]), None, r"one real number: .* integers \(targets.long\(\)\)"),
    ((5, 2), torch.tensor([0.0, 1, 1, 0, 0]), None, r"gives 2 values for an example"),
    ((5, 3), ZEROS_AND_ONES, "ranking", "kind must be one of .* got 'ranking'"),
]
# fmt: on


@pytest.mark.parametrize(("shape", "targets", "name"), TOLD)
def test_outputs_and_targets_tell_the_kind(shape, targets, name):
    assert kind_of(torch.zeros(shape), targets).name == name


@pytest.mark.parametrize(("shape", "targets", "asked", "message"), WRONG)
def test_what_fits_no_kind_is_told(shape, targets, asked, message):
    with pytest.raises(ValueError, match=message):
        kind_of(torch.zeros(shape), targets, asked)


def test_an_own_loss_may_take_several_outputs_for_one_whole_number():
    def pinball(outputs, targets):
        wrong = targets[:, None] - outputs
        return torch.maximum(wrong, -wrong).mean()

    counts = torch.tensor([0.0, 3, 2, 7, 1])
    assert kind_of(torch.zeros(5, 3), counts, loss=pinball).name == "regression"


@pytest.mark.parametrize("said", [{"loss": nn.MSELoss()}, {"loss": F.l1_loss}, {"metric": "mae"}])
def test_a_real_loss_or_metric_says_that_zeros_and_ones_are_numbers(said):
    assert kind_of(torch.zeros(5, 1), ZEROS_AND_ONES.float(), **said).name == "regression"
    assert kind_of(torch.zeros(3, 3), LABELS.float(), **said).name == "regression"


def test_every_kind_can_be_asked_for():
    fits = {"classification": (2,), "binary": (1,), "multi-label": (3,), "regression": (1,), "tokens": (3, 4)}
    assert set(fits) == set(KINDS)
    for name, outputs in fits.items():
        targets = LABELS if name in ("multi-label", "tokens") else ZEROS_AND_ONES
        assert kind_of(torch.zeros(2, *outputs), targets, name).name == name


@pytest.mark.parametrize("shape", [(), (1,)])
def test_one_logit_is_trained_as_with_binary_cross_entropy(shape):
    inputs = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    targets = (inputs[:, 0] > 0).int()
    torch.manual_seed(1)
    own = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0) if shape == () else nn.Identity())
    kind = kind_of(own(inputs), targets)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.5)
    shared = kind.module(nn.Sequential(nn.Linear(3, 1), own[1]))
    shared.load_state_dict(own.state_dict())  # weights keep their names
    data = kind.data(TensorDataset(inputs, targets))
    fitted = heldout.fit(
        shared,
        data,
        epochs=5,
        batch_size=24,
        schedule="constant",
        optimizer=lambda m: torch.optim.SGD(m.parameters(), 0.5),
    )
    for _ in range(5):
        optimizer.zero_grad()
        F.binary_cross_entropy_with_logits(own(inputs).flatten(), targets.float()).backward()
        optimizer.step()
    torch.testing.assert_close(fitted.module[0].weight, own[0].weight)
    outputs, encoded = fitted.outputs(data)
    logits, given = kind.decode(outputs, encoded)
    torch.testing.assert_close(logits, own(inputs).detach())
    assert given.equal(targets)
    assert given.dtype == targets.dtype
    expected = F.binary_cross_entropy_with_logits(own(inputs).flatten(), targets.float()).item()
    assert kind.loss(outputs, encoded) == pytest.approx(expected, abs=1e-6)
    assert kind.score("accuracy", outputs, encoded) == ((own(inputs).flatten() > 0) == targets).double().mean().item()


def test_log_probabilities_of_an_adapter_decode_to_the_same_logit():
    kind = kind_of(torch.zeros(4, 1), torch.tensor([0, 1, 1, 0]))
    logits = torch.tensor([[0.0, 2.0], [0.0, -1.0]])
    once, _ = kind.decode(logits.log_softmax(1), torch.tensor([1, 0]))
    torch.testing.assert_close(once, torch.tensor([[2.0], [-1.0]]))


def test_weights_of_positives_in_the_users_loss_are_kept():
    kind = kind_of(torch.zeros(2, 1), ZEROS_AND_ONES)
    own = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0]))
    logit = torch.tensor([[0.5], [-1.0], [2.0]])
    two, targets = F.pad(logit, (1, 0)), torch.tensor([1, 0, 1])
    expected = own(logit, targets[:, None].float())
    torch.testing.assert_close(kind.objective(own)(two, targets), expected)
    assert kind.objective(nn.BCEWithLogitsLoss()) is None  # the kind's own: methods may replace it
    with pytest.raises(ValueError, match="must give logits"):
        kind.objective(nn.BCELoss())


def test_labels_are_trained_with_binary_cross_entropy():
    kind = kind_of(torch.zeros(3, 3), LABELS)
    logits = torch.randn(3, 3)
    _, encoded = gather(kind.data(TensorDataset(torch.zeros(3, 2), LABELS)), torch.arange(3))
    expected = F.binary_cross_entropy_with_logits(logits, LABELS.float())
    torch.testing.assert_close(kind.objective(None)(logits, encoded), expected)
    assert kind.decode(logits, encoded)[1].equal(LABELS)


def test_tokens_that_do_not_count_are_left_out_of_loss_and_metric():
    labels = torch.tensor([[0, 4, IGNORED, 2], [1, IGNORED, IGNORED, 3]])
    logits = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    kind = kind_of(logits, labels)
    encoded = kind.encode(labels)
    expected = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    torch.testing.assert_close(kind.objective(None)(logits, encoded), expected)
    (ours,) = torch.autograd.grad(token_cross_entropy(logits, encoded), logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(ours, theirs)
    counted = labels != IGNORED
    right = (logits.argmax(-1) == labels)[counted].double().mean().item()
    assert kind.score("token_accuracy", logits.detach(), encoded) == right
    assert kind.score("perplexity", logits.detach(), encoded) == pytest.approx(expected.exp().item(), rel=1e-5)
    assert kind.decode(logits, encoded)[1].equal(labels)


def test_one_hot_rows_are_classes():
    kind = kind_of(torch.zeros(2, 3), torch.eye(3))
    assert kind.encode(torch.eye(3)).tolist() == [0, 1, 2]
    assert kind.decode(torch.zeros(3, 3), torch.arange(3))[1].equal(torch.eye(3))


def test_data_sets_of_every_form_are_encoded():
    labels = torch.tensor([0, 1, 1, 0], dtype=torch.int32)
    kind = kind_of(torch.zeros(2, 2), labels)
    tensors = TensorDataset(torch.arange(4.0), labels)
    items = [{"x": torch.tensor(float(i)), "label": int(label)} for i, label in enumerate(labels)]
    for data in (tensors, Subset(tensors, [0, 1, 2, 3]), list(zip(torch.arange(4.0), labels, strict=True)), items):
        _, targets = gather(kind.data(data), torch.tensor([1, 3]))
        assert targets.dtype == torch.int64
        assert targets.tolist() == [1, 0]
    plain = TensorDataset(torch.zeros(4), labels.long())
    assert kind_of(torch.zeros(2, 2), labels.long()).data(plain) is plain


def test_targets_of_another_set_are_checked():
    kind = kind_of(torch.zeros(2, 1), ZEROS_AND_ONES)
    kind.check(ZEROS_AND_ONES, "val")
    with pytest.raises(ValueError, match=r"val: binary .* from 0 to 2"):
        kind.check(ZEROS_AND_ONES * 2, "val")
    with pytest.raises(ValueError, match="targets of val must be of the shape"):
        kind.check(ZEROS_AND_ONES.float(), "val")
    assert kind.defined("auroc", ZEROS_AND_ONES)
    assert not kind.defined("auroc", torch.ones(4, dtype=torch.int64))


KIND_FILE = """
import torch, heldout
epochs = 12
optimizer = lambda m: torch.optim.SGD(m.parameters(), lr=0.5)
batch_size = 16
def pair(n, seed):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    return x, {targets}
def model():
    return {model}
def data():
    return heldout.Splits(train=pair(96, 0), val=pair(60, 1), test={{"iid": pair(60, 2)}})
"""
TOKENS_MODEL = "torch.nn.Sequential(torch.nn.Unflatten(1, (4, 1)), torch.nn.Linear(1, 2))"
IN_FILES = {
    "binary": ("torch.nn.Linear(4, 1)", "(x[:, 0] > 0).float()", "auroc", 0.95),
    "multi-label": ("torch.nn.Linear(4, 3)", "x[:, :3] > 0", None, 0.9),
    "regression": ("torch.nn.Linear(4, 2)", "x[:, :2] - x[:, 2:]", "r2", 0.95),
    "tokens": (TOKENS_MODEL, "torch.where(torch.arange(4) < 3, (x > 0).int(), -100)", None, 0.95),
}


@pytest.mark.parametrize("kind", IN_FILES)
def test_a_file_of_each_kind_is_trained_and_scored(kind, tmp_path):
    model, targets, metric, least = IN_FILES[kind]
    file = tmp_path / "own.py"
    text = KIND_FILE.format(model=model, targets=targets) + (f"metric = {metric!r}\n" if metric else "")
    file.write_text(text)
    problem = load_problem(file)
    warnings = check_problem(problem)
    assert [text[:25] for text in warnings] == (["the model gives one logit"] if kind == "binary" else [])
    assert problem.kind.name == kind
    assert problem.maximise
    fitted = problem.fit(parse("sam"), seed=0)
    found = problem.score(fitted, problem.splits.test["iid"])
    assert least < found <= 1
    file = tmp_path / "own_metric.py"
    file.write_text(
        text + "seen = []\ndef metric(outputs, targets):\n    seen.append((outputs, targets))\n    return 0.5\n"
    )
    own = load_problem(file)
    assert own.score(fitted, own.splits.test["iid"]) == 0.5
    outputs, given = own.measure.__globals__["seen"][-1]
    as_written = own.given.test["iid"].tensors
    assert given.equal(as_written[1])  # the file's own metric sees targets as the file gives them
    assert given.dtype == as_written[1].dtype
    assert outputs.shape == own.make_model()(as_written[0]).shape


def test_a_ranking_metric_needs_both_classes_in_every_set(tmp_path):
    file = tmp_path / "one_sided.py"
    text = KIND_FILE.format(model="torch.nn.Linear(4, 1)", targets="(x[:, 0] > (9 if seed == 2 else 0)).float()")
    file.write_text(text + 'metric = "auroc"\n')
    with pytest.raises(ProblemError, match=r"auroc is not defined on test\['iid'\]"):
        check_problem(load_problem(file))


def test_the_winners_code_of_a_kind_trains_it_again(tmp_path, monkeypatch):
    file = tmp_path / "one_logit.py"
    file.write_text(KIND_FILE.format(model="torch.nn.Linear(4, 1)", targets="(x[:, 0] > 0).float()"))
    problem = load_problem(file)
    code = winner_code({"winner": "sam(rho=0.1)", "plan": {"epochs": 12}, "rates": {"sam(rho=0.1)": 0.5}}, problem)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    expected = problem.fit(parse("sam(rho=0.1)"), seed=0, rate=0.5).module.weight
    assert names["fitted"].module.weight.equal(expected)


@pytest.mark.parametrize(
    ("name", "outputs", "targets"),
    [
        ("classification", (3,), torch.tensor([0, 2, 1, 1])),
        ("binary", (1,), torch.tensor([0, 1, 1, 0])),
        ("multi-label", (3,), torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]])),
        ("regression", (2,), torch.randn(4, 2)),
        ("tokens", (5, 3), torch.tensor([[0, 2, 1, 0, 0]] * 4)),  # as many tokens in each: means of means agree
    ],
)
def test_the_losses_of_examples_average_to_the_loss(name, outputs, targets):
    made = kind_of(torch.randn(4, *outputs), targets, name)
    encoded = made.encode(targets)
    logits = torch.randn(4, 2 if made.one_logit else outputs[0], *outputs[1:])
    losses = made.losses(logits, encoded)
    assert losses.shape == (4,)
    assert losses.mean().item() == pytest.approx(made.loss(logits, encoded), rel=1e-5)
    alone = [made.loss(logits[i : i + 1], encoded[i : i + 1]) for i in range(4)]
    assert losses.tolist() == pytest.approx(alone, rel=1e-5)
