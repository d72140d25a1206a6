"""Settings of the baseline and of each finalist, searched equally hard: the same number of trials for all.

The baseline's are the learning rate, the weight decay and the number of epochs, of which there may be fewer than the
recipe's and never more; a finalist's are the learning rate and what its ``space`` names. The first trials are the
recipe itself and a learning rate to either side; a best one at an end is followed by one further out; the others are
asked of Optuna where that is installed, and drawn at random around the best otherwise. What looks best must be better
than the recipe's own on further seeds, too: the best of several trials is often only the luckiest. There the baseline
is also tried at the learning rates of the finalists, so that no method wins by a rate that the baseline was not given.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from heldout.improve.plan import Plan
from heldout.improve.trials import Candidate, Search
from heldout.improve.verdict import BASELINE, SETTINGS
from heldout.methods import Space, default_settings, space, with_settings
from heldout.problem import Problem, undertrained
from heldout.report import Scale
from heldout.study import Results
from heldout.train import scaled_optimizer

STEP = math.sqrt(10)  # between neighbouring learning rates
WIDEST = 100.0  # times the recipe's learning rate, and its inverse
DECAY, EPOCHS = "weight_decay.value", "epochs"


@dataclass(frozen=True)
class Setting:
    """One trial: the learning rate as a multiple of the recipe's, and values by the names of a space."""

    rate: float = 1.0
    values: tuple[tuple[str, Any], ...] = ()

    def candidate(self, arm: str) -> Candidate:
        """Returns what is trained: an arm under this setting."""
        values = dict(self.values)
        if arm != BASELINE:
            return Candidate(with_settings(arm, values), self.rate)
        method = with_settings("weight_decay", {DECAY: values[DECAY]}) if DECAY in values else BASELINE
        return Candidate(method, self.rate, values.get(EPOCHS))

    def text(self, arm: str) -> str:
        """Returns it in words."""
        return f"{arm} at {', '.join([f'{self.rate:.3g} x', *(f'{key} {value}' for key, value in self.values)])}"


class _Asked(NamedTuple):
    """Who proposes settings: the next learning rate and values, and what is done with an outcome."""

    ask: Callable[[], tuple[float, dict[str, Any]]]
    tell: Callable[[Setting, float], None]


@dataclass
class Trials:
    """The trials of one arm, and what to try next.

    Attributes:
        arm: the baseline or a finalist.
        space: what is searched beside the learning rate.
        own: the values of the space that the recipe or the Method has by itself.
        scores: of each setting, more is better; -inf where it failed.
        losses: validation losses.
    """

    arm: str
    space: Space
    own: Mapping[str, Any]
    seed: int = 0
    scores: dict[Setting, float] = field(default_factory=dict)
    losses: dict[Setting, float] = field(default_factory=dict)
    _asked: _Asked | None = None

    def first(self) -> list[Setting]:
        """Returns the recipe itself, and its learning rate changed to either side."""
        return [Setting(), Setting(STEP), Setting(1 / STEP)]

    def best(self, step: float) -> Setting:
        """Returns the best setting, the recipe's own unless another one is better."""
        best = Setting()
        for setting in sorted(self.scores, key=lambda each: len(each.values)):
            gain = self.scores[setting] - self.scores[best]
            if better(gain, self.losses[setting], self.losses[best], step):
                best = setting
        return best

    def following(self, step: float) -> Setting:
        """Returns what to try next."""
        best = self.best(step)
        rates = [setting.rate for setting in self.scores]
        if best.rate != 1.0 and best.rate in (min(rates), max(rates)):
            further = best.rate * (STEP if best.rate > 1 else 1 / STEP)
            if 1 / WIDEST * 0.99 <= further <= WIDEST * 1.01:
                return Setting(further, best.values)
        if self._asked is None:
            self._asked = _optuna(self) or _random(self)
        rate, values = self._asked.ask()
        changed = {key: value for key, value in values.items() if value != self.own.get(key)}
        return Setting(rate, tuple(sorted(changed.items())))

    def tell(self, setting: Setting, score: float, loss: float) -> None:
        """Takes the outcome of a trial; a setting that was tried before keeps its first one."""
        if setting not in self.scores:
            self.scores[setting], self.losses[setting] = score, loss
        if self._asked:
            self._asked.tell(setting, score)


def tune(
    search: Search, plan: Plan, finalists: Sequence[str]
) -> tuple[dict[str, Setting], dict[str, Any] | None, list[dict[str, Any]]]:
    """Returns the setting of the baseline and of each finalist, the rung for the report, and the failed runs.

    Trainings are in full. Scores that differ by less than the resolution are told apart by the validation loss, where
    it is lower by two thousandths or more. Where the time ends within a round, this round counts for nobody.
    """
    names = [BASELINE, *finalists]
    if not plan.trials:
        return {name: Setting() for name in names}, None, []
    search.say(f"Searching settings of {', '.join(names)}")
    arms = [_trials(search.problem, name, number) for number, name in enumerate(names)]
    failed: list[dict[str, Any]] = []
    proposed = {trials.arm: trials.first() for trials in arms}
    for _ in range(max(1, plan.settings - 2)):
        asked = {setting.text(trials.arm): (trials, setting) for trials in arms for setting in proposed[trials.arm]}
        candidates = {label: setting.candidate(trials.arm) for label, (trials, setting) in asked.items()}
        results = search.screen(candidates, plan.epochs, plan.trials)
        failed += [run for run in results.failed if asked[run["arm"]][1] == Setting()]
        if results.pending:
            break
        for label, (trials, setting) in asked.items():
            trials.tell(setting, *_outcome(search, results, label, plan.trials))
        proposed = {trials.arm: [trials.following(search.step)] for trials in arms}
    baseline, *rest = arms
    found = {trials.arm: _proven(search, plan, trials) for trials in rest}
    found[BASELINE] = _proven(search, plan, baseline, [setting.rate for setting in found.values()])
    return found, _rung(search, plan, arms, found), failed


def better(gain: float, loss: float, other_loss: float, step: float) -> bool:
    """Returns whether a setting is better than another one: by its score, or where scores tie by its loss.

    Example:
        >>> better(0.02, 1.0, 0.9, step=0.01), better(0.0, 0.9, 1.0, step=0.01), better(-0.02, 0.1, 1.0, step=0.01)
        (True, True, False)
    """
    return gain > step or (abs(gain) <= step and loss < 0.998 * other_loss)


def baseline_space(problem: Problem) -> tuple[Space, dict[str, Any]]:
    """Returns what is searched of the recipe beside its learning rate, and what the recipe has of it.

    Weight decay: none, and the recipe's times 0.1, 1, 10 and 100 (where it has none, AdamW's default of 0.01, or 0.0005
    for optimizers that add it to the gradient); not in training loops of the user's own, which make their optimizer
    themselves. Epochs: all, three quarters, half.
    """
    epochs = problem.epochs
    fewer = sorted({max(1, round(share * epochs)) for share in (0.5, 0.75, 1.0)})
    found: Space = {EPOCHS: list(fewer)} if len(fewer) > 1 else {}
    own: dict[str, Any] = {EPOCHS: epochs}
    if problem.own_train is not None:  # its optimizer is not known before it runs
        return found, own
    optimizer = scaled_optimizer(problem.recipe.get("optimizer"), 1.0)(problem.model(0))
    decays = [group["weight_decay"] for group in optimizer.param_groups if "weight_decay" in group]
    if decays:
        own[DECAY] = max(decays)
        base = own[DECAY] or (0.01 if isinstance(optimizer, torch.optim.AdamW) else 5e-4)
        found[DECAY] = [0.0, *(float(f"{base * factor:.3g}") for factor in (0.1, 1.0, 10.0, 100.0))]
        if own[DECAY] not in found[DECAY]:
            found[DECAY] = [*found[DECAY], own[DECAY]]
    return found, own


def described(setting: Setting, problem: Problem) -> str:
    """Returns in words what of the recipe a setting of the baseline changes.

    Example:
        >>> described(Setting(0.316, (("weight_decay.value", 0.05),)), None)
        '0.316 times the learning rate, a weight decay of 0.05'
    """
    values, parts = dict(setting.values), []
    if setting.rate != 1.0:
        parts.append(f"{setting.rate:.3g} times the learning rate")
    if DECAY in values:
        parts.append(f"a weight decay of {values[DECAY]:g}")
    if EPOCHS in values:
        parts.append(f"{values[EPOCHS]} of the {problem.epochs} epochs")
    return ", ".join(parts)


def still_improving(search: Search, plan: Plan) -> str | None:
    """Returns a warning where the baseline trained for half of the epochs is clearly worse than for all, or None.

    Both are whole trainings under their own schedule: within one training, the end of a schedule always improves.
    Nothing is trained for it that the search has not trained already.
    """
    half, seeds = max(1, round(plan.epochs / 2)), max(1, min(plan.short_seeds, plan.long_seeds))
    if half == plan.epochs or not (plan.short_epochs or plan.trials):
        return None
    found = [search.screen([BASELINE], epochs, seeds) for epochs in (half, plan.epochs)]
    scores, losses = (
        [float(np.mean(list(each.metric(BASELINE, name).values()) or [math.nan])) for each in found]
        for name in ("validation", "validation loss")
    )
    if not undertrained(search.problem.metric, scores, losses, maximise=search.sign() > 0, resolution=search.step):
        return None
    scale = Scale(search.problem.metric)
    return (
        f"the baseline is still improving at the last epoch ({scale.score(scores[0])} on validation data after "
        f"{half} epochs, {scale.score(scores[1])} after {plan.epochs}): train longer before anything else"
    )


def _trials(problem: Problem, arm: str, seed: int) -> Trials:
    if arm == BASELINE:
        return Trials(arm, *baseline_space(problem), seed)
    return Trials(arm, space(arm, problem.own_methods), default_settings(arm, problem.own_methods), seed)


def _outcome(search: Search, results: Results, label: str, seeds: int) -> tuple[float, float]:
    """Mean score and loss of an arm; the worst there is where a run of it failed."""
    scores, losses = (list(results.metric(label, name).values()) for name in ("validation", "validation loss"))
    if len(scores) < seeds:
        return -math.inf, math.inf
    return search.sign() * float(np.mean(scores)), float(np.mean(losses))


def _proven(search: Search, plan: Plan, trials: Trials, others: Sequence[float] = ()) -> Setting:
    """The best setting, where further seeds agree that it is better than the recipe's own.

    Args:
        others: learning rates that were proven for other arms, which are tried, too.
    """
    own = Setting()
    if not math.isfinite(trials.scores.get(own, -math.inf)):
        return own
    rivals = [trials.best(search.step), *map(Setting, others)]
    rivals = [setting for setting in dict.fromkeys(rivals) if setting != own]
    if not rivals:
        return own
    seeds = 2 * plan.trials
    asked = {setting.text(trials.arm): setting for setting in [own, *rivals]}
    candidates = {label: setting.candidate(trials.arm) for label, setting in asked.items()}
    results = search.screen(candidates, plan.epochs, seeds)
    found = {}
    for label, setting in asked.items():
        scores, losses = (results.metric(label, name) for name in ("validation", "validation loss"))
        if len(scores) == seeds:
            new = sorted(scores)[plan.trials :]  # not those that it was chosen on
            means = [float(np.mean([each[seed] for seed in new])) for each in (scores, losses)]
            found[setting] = search.sign() * means[0], means[1]
    best = own
    for setting in rivals if own in found else []:
        if setting in found and better(
            found[setting][0] - found[best][0], found[setting][1], found[best][1], search.step
        ):
            best = setting
    return best


def _rung(search: Search, plan: Plan, arms: Sequence[Trials], found: Mapping[str, Setting]) -> dict[str, Any]:
    entries = []
    for trials in arms:
        plain = trials.scores.get(Setting(), -math.inf)
        for setting, score in trials.scores.items():
            if math.isfinite(plain) and math.isfinite(score):
                entries.append(
                    {"method": setting.text(trials.arm), "score": search.sign() * score, "gain": score - plain,
                     "loss_gain": 0.0, "seeds": plan.trials, "seconds": None, "kept": found[trials.arm] == setting}
                )  # fmt: skip
    plain = arms[0].scores.get(Setting(), -math.inf)
    return {
        "title": f"{SETTINGS} (gain over the recipe's own)",
        "epochs": plan.epochs,
        "baseline": search.sign() * plain if math.isfinite(plain) else None,
        "candidates": entries,
    }


def _optuna(trials: Trials) -> _Asked | None:
    """Optuna's ask and tell, which knows the trials so far; None where it is not installed."""
    try:
        import optuna
    except ImportError:
        return None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.TPESampler(seed=trials.seed, n_startup_trials=3)
    )
    best = trials.best(0.0).rate
    low, high = 0.99 * best / STEP, 1.01 * best * STEP
    distributions: dict[str, Any] = {"rate": optuna.distributions.FloatDistribution(low, high, log=True)}
    for key, values in trials.space.items():
        distributions[key] = (
            optuna.distributions.FloatDistribution(values[0], values[1], log=True)
            if isinstance(values, tuple)
            else optuna.distributions.CategoricalDistribution(values)
        )
    for setting, score in trials.scores.items():
        if math.isfinite(score) and low <= setting.rate <= high:
            params = {**{key: trials.own[key] for key in trials.space}, **dict(setting.values), "rate": setting.rate}
            study.add_trial(optuna.trial.create_trial(params=params, distributions=distributions, value=score))
    asked: list[Any] = []

    def ask() -> tuple[float, dict[str, Any]]:
        asked[:] = [study.ask(distributions)]
        params = dict(asked[0].params)
        return _rounded(params.pop("rate")), {key: _rounded(value) for key, value in params.items()}

    def tell(setting: Setting, score: float) -> None:
        if asked:
            failed = optuna.trial.TrialState.FAIL
            study.tell(asked.pop(), **({"values": score} if math.isfinite(score) else {"state": failed}))

    return _Asked(ask, tell)


def _random(trials: Trials) -> _Asked:
    """Draws a learning rate within a step of the best one, and values at random, from the seed of the arm."""
    generator = np.random.default_rng(trials.seed)

    def ask() -> tuple[float, dict[str, Any]]:
        rate = trials.best(0.0).rate * STEP ** generator.uniform(-1, 1)
        values = {
            key: math.exp(generator.uniform(math.log(each[0]), math.log(each[1])))
            if isinstance(each, tuple)
            else each[int(generator.integers(len(each)))]
            for key, each in trials.space.items()
        }
        return _rounded(rate), {key: _rounded(value) for key, value in values.items()}

    return _Asked(ask, lambda setting, score: None)


def _rounded(value: Any) -> Any:
    return float(f"{value:.3g}") if isinstance(value, float) else value
