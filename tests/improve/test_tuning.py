"""How settings are chosen: equally many trials for all, and no lucky ones."""

import functools
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from heldout import Splits
from heldout.improve import Plan
from heldout.improve.trials import Candidate
from heldout.improve.tuning import DECAY, EPOCHS, STEP, Setting, Trials, baseline_space, better, still_improving, tune
from heldout.improve.verdict import BASELINE
from heldout.methods import default_settings, space
from heldout.problem import Problem

PLAN = Plan(3, 10, 1, 0, 0, 1, 10, 5, 2, settings=6)


class Fake:
    """A search whose runs are scored by a function of candidate, epochs and seed: (score, loss), or None for failed."""

    def __init__(self, score, seconds=math.inf, maximise=True):
        self.score, self.ran, self.step, self.left = score, [], 0.01, seconds
        self.maximise = maximise
        x, y = torch.randn(8, 3), torch.arange(8) % 2
        splits = Splits(train=(x, y), val=(x, y), test={"iid": (x, y)})
        sgd = functools.partial(torch.optim.SGD, lr=0.1, weight_decay=5e-4)
        recipe = {"epochs": 10, "optimizer": sgd}
        self.problem = Problem(Path("mine.py"), lambda: torch.nn.Linear(3, 2), splits, recipe)

    def say(self, text):
        pass

    def sign(self):
        return 1.0 if self.maximise else -1.0

    def screen(self, candidates, epochs, seeds):
        if not isinstance(candidates, dict):
            candidates = {name: Candidate(name) for name in candidates}
        found, failed, pending = {}, [], []
        for label, each in candidates.items():
            for seed in range(seeds):
                if self.left <= 0:
                    pending.append((label, seed))
                    continue
                self.left -= 1
                self.ran.append((label, seed))
                outcome = self.score(each, each.epochs or epochs, seed)
                if outcome is None:
                    failed.append({"arm": label, "seed": seed, "error": "it diverged"})
                else:
                    found[label, seed] = outcome

        def metric(label, name):
            return {seed: v[name != "validation"] for (arm, seed), v in found.items() if arm == label}

        return SimpleNamespace(metric=metric, failed=failed, pending=pending)


def test_the_loss_tells_settings_apart_that_scores_do_not():
    assert better(0.0, 1.0, 1.1, 0.01)
    assert not better(0.0, 1.099, 1.1, 0.01)
    assert better(0.2, 1.5, 1.1, 0.01)
    assert not better(-0.1, 0.1, 1.1, 0.01)


@pytest.mark.parametrize("optuna", [True, False])
def test_the_baseline_and_all_finalists_get_the_same_number_of_trials(monkeypatch, optuna):
    if not optuna:
        monkeypatch.setitem(sys.modules, "optuna", None)
    search = Fake(lambda candidate, epochs, seed: (0.5, 1.0))
    settings, rung, failed = tune(search, PLAN, ["sam", "t3a"])
    counts = {arm: sum(label.startswith(f"{arm} at") for label, _ in search.ran) for arm in (BASELINE, "sam", "t3a")}
    assert set(counts.values()) == {6}
    assert set(settings.values()) == {Setting()}
    assert rung["baseline"] == 0.5
    assert failed == []


@pytest.mark.parametrize("optuna", [True, False])
def test_the_search_is_the_same_each_time(monkeypatch, optuna):
    if not optuna:
        monkeypatch.setitem(sys.modules, "optuna", None)
    searches = [Fake(lambda candidate, epochs, seed: (-abs(math.log(candidate.rate) - 0.3), 1.0)) for _ in range(2)]
    for search in searches:
        tune(search, PLAN, ["sam"])
    assert searches[0].ran == searches[1].ran


def test_a_learning_rate_far_off_is_found_step_by_step():
    search = Fake(lambda candidate, epochs, seed: (-abs(math.log10(candidate.rate) - 1.5), 1.0))
    settings, rung, _ = tune(search, PLAN, ["ps_kd"])
    assert settings[BASELINE].rate == pytest.approx(STEP**3)
    assert settings["ps_kd"].candidate("ps_kd") == Candidate("ps_kd", settings["ps_kd"].rate)
    kept = [entry["method"] for entry in rung["candidates"] if entry["kept"]]
    assert kept == ["baseline at 31.6 x", "ps_kd at 31.6 x"]


def test_what_was_only_lucky_is_not_kept():
    def score(candidate, epochs, seed):
        return (0.6 if candidate.rate > 1 and seed == 0 else 0.5, 1.0)

    assert tune(Fake(score), PLAN, ["sam"])[0] == {BASELINE: Setting(), "sam": Setting()}


def test_the_baseline_is_tried_at_the_rates_of_the_finalists():
    def score(candidate, epochs, seed):
        lucky = candidate.method == BASELINE and seed == 0 and candidate.rate == 1.0  # hides the better rate
        return 0.9 if lucky else 0.6 if candidate.rate == pytest.approx(STEP) else 0.5, 1.0

    settings = tune(Fake(score), PLAN, ["sam"])[0]
    assert settings[BASELINE].rate == settings["sam"].rate == pytest.approx(STEP)


def test_a_setting_that_fails_is_no_failure_of_the_method():
    search = Fake(lambda candidate, epochs, seed: None if candidate.rate > 1 else (0.5, 1.0))
    settings, _, failed = tune(search, PLAN, ["sam"])
    assert settings["sam"] == Setting()
    assert failed == []


def test_a_round_that_time_did_not_allow_counts_for_nobody():
    search = Fake(lambda candidate, epochs, seed: (candidate.rate, 1.0), seconds=5)  # the first round takes six
    settings, rung, _ = tune(search, PLAN, ["sam"])
    assert set(settings.values()) == {Setting()}
    assert rung["candidates"] == []


def test_without_trials_everything_stays_as_it_is():
    search = Fake(None)
    assert tune(search, Plan(3, 10, 1, 0, 0, 0, 10, 5, 2), ["sam"]) == (
        {BASELINE: Setting(), "sam": Setting()},
        None,
        [],
    )


def test_the_baseline_is_searched_within_the_cost_of_its_recipe():
    found, own = baseline_space(Fake(None).problem)
    assert found[EPOCHS] == [5, 8, 10]
    assert found[DECAY] == [0.0, 5e-05, 5e-04, 5e-03, 5e-02]
    assert own == {EPOCHS: 10, DECAY: 5e-04}
    looped = Fake(None).problem
    looped.own_train = lambda *_: None
    assert set(baseline_space(looped)[0]) == {EPOCHS}
    candidate = Setting(0.1, ((EPOCHS, 5), (DECAY, 0.05))).candidate(BASELINE)
    assert candidate == Candidate("weight_decay(value=0.05)", 0.1, 5)


def test_a_finalist_is_tried_under_its_own_parameters():
    trials = Trials("sam", space("sam"), default_settings("sam"))
    for setting, score in zip(trials.first(), (0.9, 0.5, 0.4), strict=True):
        trials.tell(setting, score, 1.0)
    following = trials.following(0.01)
    assert dict(following.values).keys() == {"sam.rho"}
    assert following.candidate("sam").method == f"sam(rho={dict(following.values)['sam.rho']})"


def test_a_baseline_that_still_improves_is_told():
    search = Fake(lambda candidate, epochs, seed: (epochs / 20, 1 / epochs))
    assert "still improving at the last epoch" in still_improving(search, PLAN)
    assert search.ran == [(BASELINE, 0), (BASELINE, 0)]
    assert still_improving(Fake(lambda candidate, epochs, seed: (0.5, 1 / epochs)), PLAN) is None
    flat = Fake(lambda candidate, epochs, seed: (epochs / 20, 1.0))
    assert still_improving(flat, PLAN) is None  # the loss has to fall, too


def test_of_a_metric_to_minimise_less_is_better():
    def error(candidate, epochs, seed):
        return 1.0 + abs(math.log10(candidate.rate) - 0.5), 1.0

    settings, rung, _ = tune(Fake(error, maximise=False), PLAN, ["sam"])
    assert [setting.rate for setting in settings.values()] == pytest.approx([STEP, STEP])
    best = max(rung["candidates"], key=lambda entry: entry["gain"])
    assert best["score"] == pytest.approx(1.0)
    assert rung["baseline"] == pytest.approx(1.5)
    falling = Fake(lambda candidate, epochs, seed: (10 / epochs, 1 / epochs), maximise=False)
    assert "still improving at the last epoch" in still_improving(falling, PLAN)
    rising = Fake(lambda candidate, epochs, seed: (epochs / 20, 1 / epochs), maximise=False)
    assert still_improving(rising, PLAN) is None


def test_what_fails_on_one_seed_has_failed():
    plan = Plan(3, 10, 1, 0, 0, 2, 10, 5, 2, settings=6)

    def score(candidate, epochs, seed):
        if candidate.rate > 1 and seed == 1:
            return None
        return (-0.1 if candidate.rate > 1 else -0.5, 1.0)

    settings, rung, _ = tune(Fake(score), plan, ["sam"])
    assert set(settings.values()) == {Setting()}
    assert all("x" in entry["method"] and entry["score"] == -0.5 for entry in rung["candidates"])


def test_learning_rates_end_at_a_hundred_times_the_recipes():
    trials = Trials(BASELINE, {}, {})
    for rate in (1.0, STEP, 10.0, 10 * STEP, 100.0):
        trials.tell(Setting(rate), rate, 1.0)
    assert trials.following(0.01).rate < 100 * STEP * 0.99
    trials = Trials(BASELINE, {}, {})
    for rate in (1.0, STEP, 10.0):
        trials.tell(Setting(rate), rate, 1.0)
    assert trials.following(0.01).rate == pytest.approx(10 * STEP)
