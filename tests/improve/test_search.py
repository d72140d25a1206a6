"""The search: what it plans, how it chooses, that it is fair, and that it goes on where it stood."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from heldout.improve import Plan, improve, make_plan, winner_code
from heldout.improve.search import at_chance
from heldout.problem import ProblemError, load_problem
from heldout.study import StudyError

# Inputs with a label-independent offset under shift: only a model that removes it does well there.
FILE = """
import torch, heldout
from functools import partial
from heldout import Method, Splits

epochs = 4
batch_size = 16
optimizer = partial(torch.optim.SGD, lr=0.2)

def pair(n, seed, offset=0.0):
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    return torch.randn(n, 6, generator=g) + 2 * torch.nn.functional.one_hot(y, 6) + offset, y

class Centred(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module
    def forward(self, x):
        return self.module(x - x.mean(0, keepdim=True))

def model():
    return torch.nn.Linear(6, 3)

def data():
    shifted = pair(60, 3, torch.tensor([0.0, 9, 0, 0, 0, 0]))
    return Splits(train=pair(90, 0), val={"given": pair(60, 1), "shifted": shifted},
                  test={"iid": pair(90, 2), "moved <b>": pair(90, 4, torch.tensor([9.0, 0, 0, 0, 0, 0]))})

methods = {
    "centre": Method("centre", model=lambda run, module: Centred(module)),
    "forget": Method("forget", weights=lambda run, module: module.requires_grad_(False).apply(
        lambda m: m.weight.zero_() if hasattr(m, "weight") else None)),
    "explode": Method("explode", weights=lambda run, module: 1 / 0),
    "never": Method("never", check=lambda module, splits: "it is never of use"),
}
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "offset.py"
    path.write_text(FILE)
    return path


def search(file, **options):
    return improve(file, **{"on": "in-process", "budget": 600.0, "seeds": 3, "out": file.parent / "out", **options})


def test_the_helpful_method_wins_and_is_confirmed_on_unseen_tests(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    report = search(Path(file.name), methods=["centre", "forget", "never"])
    assert report["winner"] == "centre"
    assert report["finalists"][0]["method"] == "centre"
    gains = report["finalists"][0]["tests"]
    assert gains["moved <b>"]["low"] > 0.2
    assert abs(gains["iid"]["gain"]) < 0.05
    assert report["not_applicable"] == [{"method": "never", "reason": "it is never of use"}]
    assert report["verdict"].startswith("centre helps: ")
    assert "on shifted data" in report["verdict"]
    assert report["complete"]


def test_everything_it_promises_is_written(file):
    report = search(file, methods=["centre"])
    out = file.parent / "out"
    assert json.loads((out / "improve.json").read_text())["verdict"] == report["verdict"]
    page = (out / "report.html").read_text()
    assert "moved &lt;b&gt;" in page
    assert "moved <b>" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    weights = load_file(out / "winner" / "module.safetensors")
    assert weights["module.weight"].shape == (3, 6)
    assert not list(out.glob("*.tmp"))


def test_it_tells_every_phase_run_and_gain_as_events_and_keeps_the_finalists_curves(file):
    events = []
    report = search(file, methods=["centre"], on_event=events.append)
    assert events[0].kind == "phase"
    assert events[-1].kind == "verdict"
    assert events[-1].text == report["verdict"]
    gains = {event.name: event.values["gain"] for event in events if event.kind == "gain"}
    assert gains["centre/iid"] == report["finalists"][0]["tests"]["iid"]["gain"]
    points = [event for event in events if event.kind == "curve" and event.name.startswith("confirm/centre/seed")]
    assert {event.step for event in points} == {1, 2, 3, 4}
    for name in ("training loss", "training error"):
        last = [event.values[name] for event in points if event.step == 4 and name in event.values]
        row = next(v for v in report["curves"][name] if (v["arm"], v["step"]) == ("centre", 4))
        assert len(last) == 3
        assert row["mean"] == pytest.approx(sum(last) / 3)
        assert (row["low"], row["high"]) == (min(last), max(last))
    assert "Training loss by epoch" in (file.parent / "out" / "report.html").read_text()


def test_the_winners_code_runs_and_gives_the_winner(file):
    report = search(file, methods=["centre"])
    check = "\nimport torch, safetensors.torch as s\n"
    check += f"w = s.load_file({str(file.parent / 'out' / 'winner' / 'module.safetensors')!r})\n"
    check += "assert all(w[k].equal(v) for k, v in fitted.module.state_dict().items())\n"
    code = "import torch; torch.set_num_threads(1)\n" + report["code"] + check
    done = subprocess.run([sys.executable, "-c", code], cwd=file.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_says_plainly_when_a_method_hurts(file):
    report = search(file, methods=["forget"])
    assert report["winner"] is None
    assert report["verdict"].startswith("No method is shown to help: forget, the best by validation: it hurts, -")
    assert report["verdict"].endswith("on iid; no difference beyond 1 point on shifted data.")
    assert not (file.parent / "out" / "winner").exists()


def test_a_method_that_fails_is_reported_and_does_not_stop_the_others(file):
    report = search(file, methods=["explode", "centre"])
    assert report["winner"] == "centre"
    assert any("ZeroDivisionError" in run["error"] for run in report["failed"])


def test_confirmation_seeds_are_not_screening_seeds_and_tests_are_seen_last(file, monkeypatch):
    import heldout.improve.trials as module

    calls = []
    original = module.run

    def spy(arm, seed, profile):
        calls.append((profile, seed))
        return original(arm, seed, profile)

    monkeypatch.setattr(module, "run", spy)
    search(file, methods=["centre"])
    screening = {seed for profile, seed in calls if profile == "screen"}
    confirming = {seed for profile, seed in calls if profile == "confirm"}
    assert screening
    assert not screening & confirming
    first = [profile for profile, _ in calls].index("confirm")
    assert {profile for profile, _ in calls[first:]} == {"confirm"}


def test_the_same_command_goes_on_where_it_stood(file):
    first = search(file, methods=["centre", "forget"])
    again = search(file, methods=["centre", "forget"])
    assert again["verdict"] == first["verdict"]
    assert again["finalists"] == first["finalists"]
    assert again["screening"] == first["screening"]


def test_seeds_are_as_many_as_time_allows_and_stay_so_when_a_search_is_resumed(file):
    first = search(file, methods=["centre"], seeds=None)
    assert first["plan"]["seeds"] == 10
    assert first["finalists"][0]["seeds"] == 10
    kept = json.loads((file.parent / "out" / "plan.json").read_text())
    kept["confirmation"]["seeds"] = 4  # as if there had been less time then
    (file.parent / "out" / "plan.json").write_text(json.dumps(kept))
    assert search(file, methods=["centre"], seeds=None)["finalists"][0]["seeds"] == 4


def test_seeds_that_time_did_not_allow_are_done_without_unless_they_were_asked_for(file, monkeypatch):
    from heldout.improve.trials import Search

    confirm = Search.confirm

    def out_of_time(self, candidates, epochs, seeds):
        if seeds > 4:
            confirm(self, candidates, epochs, 4)
            self.stop = 0.0
        return confirm(self, candidates, epochs, seeds)

    monkeypatch.setattr(Search, "confirm", out_of_time)
    report = search(file, methods=["centre"], seeds=None)
    assert (report["plan"]["seeds"], report["winner"], report["complete"]) == (4, "centre", True)
    report = search(file, methods=["centre"], seeds=5, out=file.parent / "asked")
    assert report["verdict"].startswith("No verdict: the confirmation of centre is not finished")


def test_a_search_that_ran_out_of_time_says_so_and_is_completed_later(file):
    finished = []

    def interrupt(event):
        finished.extend([event] * (event.kind == "finished"))
        if len(finished) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(file, methods=["centre", "forget"], progress=interrupt)
    report = search(file, methods=["centre", "forget"])
    assert report["winner"] == "centre"
    fresh = search(file, methods=["centre", "forget"], out=file.parent / "other")
    assert fresh["finalists"][0]["tests"] == report["finalists"][0]["tests"]


def test_combinations_are_tried_and_methods_that_clash_are_not_combined(file):
    report = search(file, methods=["centre", "ps_kd", "sam(rho=0.1)"], combine=2)
    combined = [entry["method"] for rung in report["screening"] if rung["title"] == "combinations"
                for entry in rung["candidates"]]  # fmt: skip
    assert any("+" in name for name in combined)
    text = FILE.replace("epochs = 4", "epochs = 4\nloss = torch.nn.MultiMarginLoss()")
    file.with_name("own_loss.py").write_text(text)
    skipped = search(file.with_name("own_loss.py"), methods=["centre", "ps_kd"], out=file.parent / "b")
    assert skipped["not_applicable"][0]["reason"].startswith("it replaces the loss, and the file defines its own")


OBSERVED = """
autocast = torch.float16
class Seen(torch.nn.Linear):
    def forward(self, x):
        precision = str(torch.get_autocast_dtype("cpu")) if torch.is_autocast_enabled("cpu") else "none"
        with open(LOG, "a") as log:
            log.write(f"{precision} {self.training}\\n")
        return super().forward(x)
class Rows(torch.utils.data.Dataset):
    def __init__(self, pair):
        self.pair = pair
    def __len__(self):
        return len(self.pair[0])
    def __getitem__(self, i):
        worker = torch.utils.data.get_worker_info()
        with open(LOG, "a") as log:
            log.write(f"worker {None if worker is None else worker.num_workers}\\n")
        return self.pair[0][i], self.pair[1][i]
def model():
    return Seen(6, 3)
def data():
    return Splits(train=Rows(pair(30, 0)), val=pair(30, 1), test={"iid": pair(30, 2)})
"""


def test_precision_compilation_and_loading_are_as_asked_for_and_reach_training(file, monkeypatch):
    compiled = []
    monkeypatch.setattr("torch.nn.Module.compile", lambda module, **options: compiled.append(options))
    log = file.with_name("log.txt")
    file.write_text(f"{FILE}\nLOG = {str(log)!r}\n{OBSERVED}")
    asked = {"autocast": "bfloat16", "compile": True, "num_workers": 1}
    report = search(file, methods=["sam"], screen_only=True, **asked)
    seen = set(log.read_text().splitlines())
    assert {"torch.bfloat16 True", "worker 1"} <= seen
    assert "torch.float16 True" not in seen
    assert "none True" not in seen
    assert compiled
    assert "autocast is bfloat16, as asked for, in place of the file's float16" in report["warnings"]
    log.unlink()
    compiled.clear()
    search(file, methods=["sam"], screen_only=True, out=file.parent / "as given")
    assert "torch.float16 True" in log.read_text()
    assert "worker 1" not in log.read_text()
    assert not compiled
    problem = load_problem(file, **asked)
    code = winner_code({"winner": "sam", "plan": {"epochs": 4}, "rates": {}}, problem)
    assert "load_problem('offset.py', autocast='bfloat16', compile=True, num_workers=1)" in code


def test_processes_give_the_same_result(file):
    alone = search(file, methods=["centre"])
    together = search(file, methods=["centre"], workers=2, on="processes", out=file.parent / "two")
    assert alone["finalists"][0]["tests"] == together["finalists"][0]["tests"]


def test_a_lower_is_better_metric_is_minimised(file):
    file.write_text(FILE + "\nmetric = 'loss'\n")
    report = search(file, methods=["centre", "forget"])
    assert report["metric"] == {"name": "loss", "higher_is_better": False}
    assert report["finalists"][0]["method"] == "centre"
    assert report["finalists"][0]["tests"]["moved <b>"]["gain"] > 0


def test_bad_requests_are_refused_before_training(file):
    with pytest.raises(ProblemError, match="no method 'nonsense'"):
        search(file, methods=["nonsense"])
    with pytest.raises(ProblemError, match="cannot exclude 'nonsense'"):
        search(file, exclude=["nonsense"])
    with pytest.raises(ProblemError, match="no method applies: never: it is never of use"):
        search(file, methods=["never"])
    with pytest.raises(ProblemError, match="seeds at least 3, got 2 and 2"):
        search(file, seeds=2)
    with pytest.raises(ProblemError, match="the aim must be one of iid, shift, both, got 'speed'"):
        search(file, aim="speed")


def test_a_baseline_that_does_not_train_is_an_error_and_no_result(file):
    file.write_text(
        FILE.replace("return torch.nn.Linear(6, 3)", "return Bad()")
        + """
class Bad(torch.nn.Linear):
    def __init__(self):
        super().__init__(6, 3)
    def forward(self, x):
        if self.training:
            raise RuntimeError("cannot be trained")
        return super().forward(x)
"""
    )
    with pytest.raises(ProblemError, match="the baseline itself does not train: RuntimeError: cannot be trained"):
        search(file, methods=["centre"])


def test_two_searches_in_one_folder_are_refused(file):
    from heldout.study import Store

    with Store.open(file.parent / "out"), pytest.raises(StudyError):
        search(file, methods=["centre"])


def test_a_plan_never_shortens_the_confirmation_and_spends_at_most_the_budget():
    assert make_plan(20, 5, 7, 3, affordable=1e9) == Plan(7, 10, 2, 20, 2, 1, 20, 5, 3, settings=8)
    screened = []
    for affordable in (5000, 2000, 1000, 700, 400, 250, 200):
        plan = make_plan(20, 5, 7, 3, affordable)
        assert plan.epochs == 20
        assert plan.seeds >= 3
        assert plan.cost(3 if plan.long_epochs else 0) <= affordable
        screened.append(plan.screened)
    assert screened[0] == 7
    assert screened[-1] < 7
    assert make_plan(20, 5, 7, 3, affordable=150) is None


def test_a_budget_that_buys_no_confirmation_tries_nothing_and_says_what_it_takes(file):
    slow = FILE.replace("return self.module(x", "import time; time.sleep(0.01); return self.module(x").replace(
        "return torch.nn.Linear(6, 3)", "return Slow(6, 3)"
    )
    slow += """
class Slow(torch.nn.Linear):
    def forward(self, x):
        import time
        time.sleep(0.05)
        return super().forward(x)
"""
    file.write_text(slow)
    report = search(file, methods=["centre", "forget"], budget=4.0)
    assert report["winner"] is None
    assert report["finalists"] == []
    assert not report["complete"]
    assert report["verdict"].startswith("No verdict: 4 epochs take about ")
    assert "Nothing was tried." in report["verdict"]
    assert {row["status"] for row in report["methods"]} == {"not tried"}
    assert not (file.parent / "out" / "winner").exists()


def test_screening_alone_ends_without_a_verdict(file):
    report = search(file, methods=["centre", "forget"], screen_only=True)
    assert report["verdict"].startswith("No verdict: only screened. Best so far: centre")
    assert report["winner"] is None
    assert {row["status"] for row in report["methods"]} == {"screened"}


def test_a_report_with_a_verdict_is_not_overwritten_by_one_without(file):
    search(file, methods=["centre", "forget"])
    page = (file.parent / "out" / "report.html").read_text()
    unfinished = search(file, methods=["centre", "forget"], screen_only=True)
    assert (file.parent / "out" / "report.html").read_text() == page
    assert unfinished["report"].endswith("report-unfinished.html")


def test_an_undertrained_baseline_is_tuned_before_it_is_beaten(file):
    file.write_text(FILE.replace("lr=0.2", "lr=0.002"))
    report = search(file, methods=["ps_kd"])
    assert report["rates"]["baseline"] > 3
    assert report["tuned"]["tests"]["iid"]["score"] > report["baseline"]["tests"]["iid"]["score"] + 0.1
    assert any("times the learning rate" in warning for warning in report["warnings"])


def test_domains_that_are_left_out_select_and_are_trained_on_in_the_end(file):
    text = FILE.replace('val={"given": pair(60, 1), "shifted": shifted}', "val=pair(60, 1)")
    text = text.replace("pair(90, 4, torch.tensor([9.0, 0, 0, 0, 0, 0]))}", "pair(90, 4, offset(4))}, domains=DOMAINS")
    text = text.replace("train=pair(90, 0)", "train=by_domain()")
    text += """
DOMAINS = torch.arange(90) // 30

def offset(number):
    return 9.0 * torch.nn.functional.one_hot(torch.as_tensor(number), 6)

def by_domain():
    x, y = pair(90, 0)
    return x + offset(DOMAINS + 1), y
"""
    file.write_text(text)
    report = search(file, methods=["centre", "forget"])
    assert report["selected_on"] == ["val", "left-out domain"]
    assert report["winner"] == "centre"
    assert any("left out of training in turn" in warning for warning in report["warnings"])


def test_one_method_is_confirmed_without_screening(file):
    report = search(file, methods=["centre"])
    assert report["plan"]["short_epochs"] == 0
    assert [rung["title"] for rung in report["screening"]] == ["settings (gain over the recipe's own)"]


def test_code_of_a_catalog_method_imports_it():
    problem = load_problem("digits")
    code = winner_code({"winner": "useful+sam(rho=0.1)", "plan": {"epochs": 20}}, problem)
    assert "from heldout.examples import digits" in code
    assert "from heldout.methods import sam, useful" in code
    assert "method = useful() + sam(rho=0.1)" in code
    compile(code, "winner.py", "exec")


def test_a_baseline_that_has_not_learned_is_told(file):
    problem = load_problem(file)
    name = next(iter(problem.splits.test))
    assert at_chance(problem, {name: {"score": 0.99}}) == []
    (warning,) = at_chance(problem, {name: {"score": 0.34}})
    assert f"no better on {name} than the most frequent class alone" in warning


@pytest.mark.parametrize(
    ("form", "direct"),
    [
        ("heldout.Splits(train=(x, y), val=(x, y), test={'iid': (x, y)})", True),
        ("heldout.Splits(train=TensorDataset(x, y), val=(x, y), test={'iid': (x, y)})", True),
        ("heldout.Splits(train=(x.numpy(), y.numpy()), val=(x, y), test={'iid': (x, y)})", False),
        ("dict(train=(x.numpy(), y.numpy()), val=(x, y), test={'iid': (x, y)})", False),
    ],
)
def test_the_code_of_a_winner_trains_it_on_data_of_any_form(tmp_path, monkeypatch, form, direct):
    text = f"""
import heldout, torch
from torch.utils.data import TensorDataset

epochs = 1


def model():
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2))


def data():
    x, y = torch.randn(20, 4), torch.arange(20) % 2
    return {form}
"""
    (tmp_path / "wanted.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    code = winner_code({"winner": "t3a", "plan": {"epochs": 1}}, load_problem(tmp_path / "wanted.py"))
    assert ("heldout.fit(wanted.model" in code) is direct
    names = {}
    exec(compile(code, "winner.py", "exec"), names)
    assert names["fitted"].module is not None
    sys.modules.pop("wanted", None)
