"""What is kept of a trained model is whole: every Method's predictions come back, bit for bit, in another process."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import heldout
from heldout import Method
from heldout.adapt import DRM, ITTA, AdaNPCBN, PseudoLabel, SteerConfig, Stream, Tent
from heldout.methods import available, parse
from heldout.nn import LogitEnsemble, split_head
from heldout.problem import load_problem
from heldout.saved import Loaded, digest_of, load

# A convolutional model with BatchNorm, dropout and a pretrained start; domains, unlabelled data, unequal classes;
# Methods of its own.
FILE = """
import copy, torch, heldout
from torch import nn
from heldout import Method, Splits
from heldout.adapt import Stream, Tent

epochs, batch_size = 1, 16

def pair(n, seed):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 4 % 3
    return torch.randn(n, 1, 8, 8, generator=g) + y.view(-1, 1, 1, 1), y

def model():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()), nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU()), nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))

def pretrained_state():
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return model().state_dict()

def data():
    return Splits(train=pair(48, 0), val=pair(24, 1), test={"iid": pair(30, 2), "bright": pair(30, 3)},
                  domains=torch.arange(48) % 3 % 2, unlabeled=pair(40, 4)[0])

class Centred(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module
        self.gain = nn.Parameter(torch.ones(()))
    def forward(self, x):
        return self.gain * self.module(x - x.mean((1, 2, 3), keepdim=True))

class Shifted:
    def __init__(self, module):
        self.module, self.shift = module, torch.zeros(3)
    def __call__(self, inputs):
        self.shift = self.shift + 1
        return self.module(inputs) + self.shift
    def reset(self):
        self.shift = torch.zeros(3)
    def state_dict(self):
        return {"shift": self.shift}
    def load_state_dict(self, state):
        self.shift = state["shift"]

def noisy(run, module):
    bias = torch.randn(3)
    return lambda inputs: module(inputs) + bias

methods = {
    "centre": Method("centre", model=lambda run, module: Centred(module)),
    "own_tent": Method("own_tent", predict=lambda run, module: Stream(Tent(module, lr=0.05, steps=2), 7)),
    "shifted": Method("shifted", predict=lambda run, module: Shifted(module)),
    "noisy": Method("noisy", predict=noisy),
}
"""

OPTIONS = {
    "repeated_data": "repeated_data(repeats=2)",
    "adanpc": "adanpc(k=5)",
    "tent": "tent(lr=0.05)",
    "itta": "itta(lr=0.05)",
    "t3a": "t3a(filter_k=4)",
}
COMBINED = [
    "drm(estimate='discriminator')", "drm(estimate='prototype')", "drm(gamma=2.0)+ghost_batch_norm(ghost_size=4)",
    "itta(size='channel',depth=2)", "ghost_batch_norm(ghost_size=4)+tent(lr=0.05)", "pego+t3a", "centre+adanpc(k=3)",
    "centre", "own_tent", "shifted",
]  # fmt: skip
# They need a language model, a transformer, graphs, or a stream of tasks.
OF_OTHERS = {"position_offsets", "drop_edge", "eerm", "teddy", "virtual_node"}
OF_OTHERS |= {"awq"}  # tests/weights/quantization/test_methods.py
OF_OTHERS |= {"in_order", "replay", "ewc", "si", "rwalk", "agem", "lwf"}
EXPRESSIONS = ["baseline", *(OPTIONS.get(name, name) for name in available() if name not in OF_OTHERS), *COMBINED]


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """Every Method fitted and saved; what was predicted before, and what a fresh process predicts and scores."""
    folder = tmp_path_factory.mktemp("kept")
    (folder / "mine.py").write_text(FILE)
    problem = load_problem(folder / "mine.py")
    torch.set_num_threads(1)
    x = problem.splits.test["bright"].tensors[0]
    before = {}
    for number, expression in enumerate(EXPRESSIONS):
        method = None if expression == "baseline" else parse(expression, problem.own_methods)
        if method and method.check and method.check(problem.model(0), problem.splits):
            before[expression] = None
            continue
        fitted = problem.fit(method, seed=3)
        score = fitted.evaluate(problem.splits.test["iid"])  # an adapter has learnt something since
        reset = getattr(fitted.predictor, "reset", lambda: None)
        reset()
        about = {"method": None if method is None else expression, "iid": score}
        heldout.save(fitted, folder / str(number), about)
        before[expression] = fitted.predict(x)
    code = """
import json, torch, heldout
from pathlib import Path
from safetensors.torch import save_file
torch.set_num_threads(1)
answers, scores = {}, {}
for folder in sorted(Path('.').iterdir()):
    if folder.is_dir():
        model = heldout.load(folder, "mine.py")
        answers[folder.name] = model.predict(model.problem.splits.test["bright"].tensors[0]).contiguous()
        model.reset()
        scores[folder.name] = model.evaluate(model.problem.given.test["iid"])
save_file(answers, "answers.safetensors")
Path("scores.json").write_text(json.dumps(scores))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, before, load_file(folder / "answers.safetensors"), json.loads((folder / "scores.json").read_text())


def number_of(expression):
    return str(EXPRESSIONS.index(expression))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_a_fresh_process_predicts_and_scores_as_the_fitted_model_did(kept, expression):
    folder, before, answers, scores = kept
    assert before[expression] is not None, "the file must have what every Method needs"
    assert torch.equal(answers[number_of(expression)], before[expression])
    recipe = json.loads((folder / number_of(expression) / "recipe.json").read_text())
    assert scores[number_of(expression)] == recipe["iid"]
    files = {file.name for file in (folder / number_of(expression)).iterdir()}
    assert files <= {"module.safetensors", "predictor.safetensors", "recipe.json"}


@pytest.mark.parametrize("expression", [e for e in EXPRESSIONS if e != "shifted" and "centre" not in e])
def test_no_training_data_and_no_file_are_needed(kept, expression):
    folder, before, _, _ = kept
    problem = load_problem(folder / "mine.py")
    model = load(folder / number_of(expression), problem.make_model)
    assert torch.equal(model.predict(problem.splits.test["bright"].tensors[0].numpy()), before[expression])


@pytest.mark.parametrize("expression", ["shifted", "centre"])
def test_what_only_the_file_can_build_says_so(kept, expression):
    folder, *_ = kept
    problem = load_problem(folder / "mine.py")
    with pytest.raises(ValueError, match=r"give module=FILE|must be built like"):
        load(folder / number_of(expression), problem.make_model)


def test_a_predictor_of_ones_own_can_be_given(kept):
    folder, before, _, _ = kept
    problem = load_problem(folder / "mine.py")
    shifted = problem.own_methods["shifted"].predict
    model = load(folder / number_of("shifted"), problem.make_model(), predict=lambda module: shifted(None, module))
    assert torch.equal(model.predict(problem.splits.test["bright"].tensors[0]), before["shifted"])


def test_a_predict_stage_that_answers_otherwise_when_it_is_run_again_is_refused(kept, tmp_path):
    folder, *_ = kept
    problem = load_problem(folder / "mine.py")
    fitted = problem.fit(problem.own_methods["noisy"], seed=0)
    fitted.save(tmp_path / "kept", {"method": "noisy"})
    with pytest.raises(ValueError, match=r"noisy, run again, answers otherwise .*state_dict\(\)"):
        load(tmp_path / "kept", folder / "mine.py")


def test_it_tells_what_it_needs_at_test_time(kept):
    folder, *_ = kept
    notes = {e: json.loads((folder / number_of(e) / "recipe.json").read_text())["note"] for e in EXPRESSIONS}
    assert [e for e in ("baseline", "lines", "sam", "ghost_batch_norm", "divdis", "centre") if notes[e]] == []
    assert "whole batches, not single examples" in notes["tent(lr=0.05)"]
    assert "64 at a time" in notes["tent(lr=0.05)"]
    assert "one forward pass" in notes["adanpc(k=5)"]
    assert "two views" in notes["itta(lr=0.05)"]
    assert "logits of all heads" in notes["drm"]
    assert "2 training steps" in notes["own_tent"]
    assert "predict stage of its Method" in notes["shifted"]
    assert load(folder / number_of("drm"), folder / "mine.py").note == notes["drm"]


def tiny(predict, **options):
    x = torch.randn(24, 5, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    data = (x, torch.arange(24) % 3)
    return heldout.fit(model, data, Method("own", predict=predict), epochs=1), model, x, data


def pseudo_label(run, module):
    encoder, head = split_head(module, run.splits.train.tensors[0][:2])
    return PseudoLabel(encoder, head, lr=0.1, threshold=0.3, steps=2)


def standardised(run, module):
    encoder, _ = split_head(module, run.splits.train.tensors[0][:2])
    return Stream(AdaNPCBN(encoder, [run.splits.train.tensors], 3, k=4, lr=0.1, max_added=6), 5)


def ensemble(run, module):
    other = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()
    return LogitEnsemble([module, other], mode="probabilities").eval()


@pytest.mark.parametrize("predict", [pseudo_label, standardised, ensemble])
@pytest.mark.parametrize("learnt", [False, True])
def test_adapters_without_a_method_come_back_in_the_state_that_they_were_in(tmp_path, predict, learnt):
    fitted, model, x, _ = tiny(predict)
    if learnt:
        fitted.predict(x + 1)
    fitted.save(tmp_path / "own")
    again = load(tmp_path / "own", model)
    assert torch.equal(again.predict(x), fitted.predict(x))
    if hasattr(fitted.predictor, "reset"):
        again.reset(), fitted.predictor.reset()
        assert torch.equal(again.predict(x), fitted.predict(x))


def test_a_steered_drm_comes_back(tmp_path):
    x = torch.randn(24, 5, generator=torch.Generator().manual_seed(1))
    splits = heldout.Splits(train=(x, torch.arange(24) % 3), domains=torch.arange(24) % 2)
    model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    method = heldout.methods.drm(steer=SteerConfig(confidence=0.1, lr=0.05, encoder=True), batch_size=8)
    fitted = heldout.fit(model, splits, method, epochs=1)
    assert isinstance(fitted.predictor.adapter, DRM)
    recipe = fitted.save(tmp_path / "drm")
    assert "1 training step and a forward pass" in recipe["note"]
    assert torch.equal(load(tmp_path / "drm", model).predict(x), fitted.predict(x))


def test_a_predictor_around_another_model_is_not_taken_for_one_around_this(tmp_path):
    other = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    fitted, model, _, _ = tiny(lambda run, module: Tent(other, lr=0.1))
    assert fitted.save(tmp_path / "own")["predictor"] is None
    with pytest.raises(ValueError, match="predict stage of its own"):
        load(tmp_path / "own", model)


def test_itta_without_layers_comes_back(tmp_path):
    from heldout.adapt import ITTAState
    from heldout.nn import small_cnn

    x = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(1))

    def predict(run, module):
        return ITTA(
            ITTAState.of(module, x[:2], depth=3), lr=0.01, parameters="backbone", reset="batch", steps=2, seed=5
        )

    model = small_cnn(1, 3)
    fitted = heldout.fit(model, (x, torch.arange(12) % 3), Method("own", predict=predict), epochs=1)
    fitted.save(tmp_path / "own")
    assert torch.equal(load(tmp_path / "own", model).predict(x), fitted.predict(x))


def test_double_precision_and_dict_inputs_come_back(tmp_path):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, values, scale):
            return self.head(self.first(values).relu() * scale)

    x, scale = torch.randn(12, 3).double(), torch.rand(12, 1).double()
    examples = [{"values": a, "scale": b, "labels": torch.tensor(i % 2)} for i, (a, b) in enumerate(zip(x, scale))]
    fitted = heldout.fit(Named().double(), examples, heldout.methods.t3a(), epochs=1)
    fitted.save(tmp_path / "own")
    again = load(tmp_path / "own", Named)
    inputs = {"values": x, "scale": scale}
    answers = again.predict({name: value.numpy() for name, value in inputs.items()})
    assert answers.dtype == torch.float64
    assert torch.equal(answers, fitted.predict(inputs))


def test_evaluate_takes_the_forms_that_a_file_does_and_gives_its_metric(tmp_path):
    (tmp_path / "yes.py").write_text(
        "import torch, heldout, numpy as np\n"
        "metric, epochs = 'auroc', 3\n"
        "def pair(seed):\n    r = np.random.default_rng(seed)\n    x = r.normal(size=(40, 3))\n"
        "    return x, x[:, 0] > 0\n"
        "model = lambda: torch.nn.Linear(3, 1)\n"
        "data = lambda: heldout.Splits(train=pair(0), val=pair(1), test={'iid': pair(2)})\n"
    )
    problem = load_problem(tmp_path / "yes.py")
    fitted = problem.fit(None, seed=0)
    heldout.save(fitted, tmp_path / "kept", {"one_logit": True})
    model = load(tmp_path / "kept", tmp_path / "yes.py")
    x = np.random.default_rng(2).normal(size=(40, 3))
    assert model.evaluate((x, x[:, 0] > 0))["auroc"] == problem.score(fitted, problem.splits.test["iid"])
    alone = load(tmp_path / "kept", nn.Linear(3, 1))
    assert torch.equal(alone.predict(x), fitted.predict(torch.from_numpy(x)))
    assert alone.predict(x).shape == (40, 2)
    assert sorted(alone.evaluate((torch.from_numpy(x), torch.from_numpy(x[:, 0] > 0).long()))) == ["accuracy", "loss"]


def test_soft_labels_have_no_squared_error_after_loading_either(tmp_path):
    x, soft = torch.randn(12, 4), torch.randn(12, 3).softmax(1)
    fitted = heldout.fit(lambda: nn.Linear(4, 3), (x, soft), epochs=1, loss=nn.functional.cross_entropy)
    fitted.save(tmp_path / "soft")
    with pytest.raises(ValueError, match="soft labels"):
        load(tmp_path / "soft", nn.Linear(4, 3)).evaluate((x, soft))


def test_what_a_training_loop_of_the_files_own_has_trained_is_kept(tmp_path):
    (tmp_path / "own.py").write_text(
        FILE + "\n"
        "def train(model, splits, stages, seed):\n"
        "    optimizer = stages.optimizer(torch.optim.SGD(model.parameters(), lr=0.1))\n"
        "    for _ in range(stages.epochs):\n"
        "        for inputs, targets, index in stages.batches():\n"
        "            stages.step(optimizer, inputs, targets, index)\n"
        "    return model\n"
    )
    problem = load_problem(tmp_path / "own.py")
    assert problem.own_train is not None
    fitted = problem.fit(parse("tent(lr=0.05)"), seed=0)
    fitted.save(tmp_path / "kept", {"method": "tent(lr=0.05)"})
    x = problem.splits.test["iid"].tensors[0]
    assert torch.equal(load(tmp_path / "kept", problem).predict(x), fitted.predict(x))


def test_a_changed_file_is_told(kept, tmp_path):
    folder, *_ = kept
    problem = load_problem(folder / "mine.py")
    heldout.save(problem.fit(None, seed=0), tmp_path / "kept", {"file_digest": digest_of(folder / "mine.py")})
    assert isinstance(load(tmp_path / "kept", folder / "mine.py"), Loaded)
    (tmp_path / "other.py").write_text(FILE + "\n")
    with pytest.warns(UserWarning, match="other.py has changed since"):
        load(tmp_path / "kept", tmp_path / "other.py")


def test_bad_input_is_told(kept, tmp_path):
    folder, *_ = kept
    with pytest.raises(ValueError, match=r"must be one that heldout.save or improve wrote"):
        load(tmp_path, nn.Linear(2, 2))
    with pytest.raises(ValueError, match="module must be built like the one that was kept"):
        load(folder / "0", nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"module must build an nn\.Module, got int"):
        load(folder / "0", lambda: 3)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "recipe.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        load(broken, nn.Linear(2, 2))
    (broken / "recipe.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="must be of format 1, got 99"):
        load(broken, nn.Linear(2, 2))
    recipe = json.loads((folder / "0" / "recipe.json").read_text())
    (broken / "recipe.json").write_text(json.dumps(recipe))
    with pytest.raises(ValueError, match="is not whole"):
        load(broken, folder / "mine.py")
    (broken / "module.safetensors").write_bytes(Path(folder / "0" / "module.safetensors").read_bytes()[:-8])
    with pytest.raises(ValueError, match=r"module\.safetensors"):
        load(broken, folder / "mine.py")
