"""What `heldout improve` finds within a third of the cost of trying everything, on problems whose answer is known.

The *table* of a problem: every applicable method of the catalog and the baseline, in full training on 10 seeds, scored
on the test sets. Its best entry is the truth that a search is measured against:

* `improve` with a budget of a third of an exhaustive search (every method on 5 seeds, and one start of a process, which
  loads libraries and data), methods alone. What a user would
  deploy is its winner, or the baseline where it announces none. Regret is what that entry of the table lacks, averaged
  over the given and the shifted test data: points of accuracy, percent of the baseline's error for regressions. A
  winner under other settings than its Method's own is looked up under its own.
* The same for who must choose now: under "not decided" the report names the best finalist by validation and its
  estimated gains. He takes it where its mean gain, over the given and the shifted test data and over the recipe as
  given or tuned, whichever is less, is above zero, and the baseline otherwise. Told beside, and no part of the limit.
* Optuna, if installed (TPE over the methods, one seed a trial, the same validation data and the same seconds, looked up
  in the table), which deploys the method of the best mean validation score.

The exit status is 1 where `improve` exceeds a mean regret of 1 point or costs more than a third.

    python benchmarks/improve_regret.py [--problems digits_clean,…] [--table-seeds 10] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from heldout.improve import improve
from heldout.improve import run as train_candidate
from heldout.improve.verdict import SHIFTED
from heldout.methods import available, on_request, parse
from heldout.problem import inapplicable, load_problem
from heldout.statistics import interval
from heldout.study import Study, higher_is_better, run_study

FOLDER = Path(__file__).parent / "problems"
FIRST_TABLE_SEED = 50_000  # seeds that neither screening nor confirmation uses


def table(file: Path, seeds: int, folder: Path) -> dict[str, dict[str, dict[int, float]]]:
    """Returns the metrics of every applicable method and the baseline: ``{method: {metric: {seed: value}}}``."""
    problem = load_problem(file)
    tried = [name for name in available() if name not in on_request()]
    names = [name for name in tried if inapplicable(problem, parse(name, {})) is None]
    study = study_of(file, ["baseline", *names], seeds)
    found = run_study(study, profile="confirm", first_seed=FIRST_TABLE_SEED, out=folder)
    return {arm: {metric: found.metric(arm, metric) for metric in study.metrics} for arm in found.arms}


def study_of(file: Path, names: list[str], seeds: int) -> Study:
    problem = load_problem(file)
    common = {"file": str(file.resolve()), "epochs": problem.epochs, "aim": "both", "rate": 1.0}
    metrics = ["validation", "training seconds", "inference seconds", *(f"test {name}" for name in problem.splits.test)]
    return Study(
        slug="table",
        arms={name: {"method": name, **common} for name in names},
        run=train_candidate,
        metrics=dict.fromkeys([*metrics, "validation loss", "seconds per epoch"], higher_is_better),
        seeds={"confirm": seeds},
        time_limit={"confirm": 600.0},
        source=[file.resolve()],
    )


def start_up(file: Path) -> float:
    """Returns the seconds of a first run: a process of its own, which loads the libraries and the data."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run_study(study_of(file, ["baseline"], 1), profile="confirm", first_seed=FIRST_TABLE_SEED, out=folder)
    return time.perf_counter() - start


def aims(entries: dict[str, dict[str, dict[int, float]]], tests: list[str], sign: float) -> dict[str, np.ndarray]:
    """Returns each method's score by seed: the mean of the given and the mean shifted score, more is better."""
    scores = {}
    for name, found in entries.items():
        sets = np.array([list(found[f"test {test}"].values()) for test in tests])
        if sets.shape[1]:
            scores[name] = sign * (sets[0] if len(sets) == 1 else (sets[0] + sets[1:].mean(0)) / 2)
    return scores


def by_optuna(entries: dict[str, dict[str, dict[int, float]]], seconds: float, sign: float) -> str:
    """Returns what TPE deploys after trials that would take as many seconds, looked up in the table."""
    try:
        import optuna
    except ImportError:
        sys.exit("install the peer first: pip install optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    names = [name for name in entries if entries[name]["validation"]]
    seen: dict[str, list[float]] = {name: [] for name in names}
    while True:
        trial = search.ask()
        name = trial.suggest_categorical("method", names)
        seed = FIRST_TABLE_SEED + len(seen[name])
        if seed not in entries[name]["validation"]:
            search.tell(trial, float(np.mean(seen[name])))
            if all(len(values) >= len(entries[name]["validation"]) for name, values in seen.items()):
                break
            seconds -= 0.01
        else:
            seconds -= entries[name]["training seconds"][seed] + entries[name]["inference seconds"][seed]
            seen[name].append(sign * entries[name]["validation"][seed])
            search.tell(trial, seen[name][-1])
        if seconds <= 0:
            break
    return max((name for name in names if seen[name]), key=lambda name: float(np.mean(seen[name])))


def looked_up(name: str | None, found: dict, scores: dict[str, np.ndarray]) -> str:
    """Returns the entry of the table for an arm of a search; the baseline for none."""
    base = found["settings"].get(name, {}).get("of", name)
    return base if base in scores else "baseline"


def best_guess(found: dict) -> str | None:
    """Returns what a user takes who must choose now: the best finalist by validation, if it seems to gain anything."""
    best = found["finalists"][0]
    tests = [best["tests"][found["test_sets"][0]], *([best["tests"][SHIFTED]] if len(found["test_sets"]) > 1 else [])]
    gains = [min(entry["gain"], entry.get("tuned_gain", entry["gain"])) for entry in tests]
    return best["method"] if np.mean(gains) > 0 else None


def judge(file: Path, seeds: int, folder: Path) -> dict:
    """Returns the regrets and costs of one problem."""
    problem = load_problem(file)
    entries = table(file, seeds, folder / f"table-{file.stem}")
    sign = 1.0 if problem.maximise else -1.0
    scores = aims(entries, list(problem.splits.test), sign)
    best = max(scores, key=lambda name: scores[name].mean())
    unit = 100.0 if problem.maximise else 100.0 / abs(scores["baseline"].mean())
    run_seconds = {
        name: sum(float(np.mean(list(entries[name][f"{part} seconds"].values()))) for part in ("training", "inference"))
        for name in scores
    }
    exhaustive = start_up(file) - run_seconds["baseline"] + 5 * sum(run_seconds.values())
    found = improve(file, budget=exhaustive / 3, combine=1, out=folder / f"improve-{file.stem}")
    deployed = looked_up(found["winner"], found, scores)
    at_once = deployed if found["winner"] or not found["finalists"] else looked_up(best_guess(found), found, scores)
    other = by_optuna(entries, exhaustive / 3, sign)
    gain = interval([unit * (scores[best] - scores["baseline"])])

    def regret(name: str) -> float:
        return float(unit * (scores[best] - scores[name]).mean())

    return {"problem": file.stem, "methods": len(scores) - 1, "best": best, "gain of the best": gain.estimate,
            "low": gain.low, "high": gain.high, "winner": found["winner"], "verdict": found["verdict"],
            "regret": regret(deployed), "regret at once": regret(at_once),
            "settings": found["settings"], "plan": found["plan"], "regret of the baseline": regret("baseline"),
            "optuna": other, "regret of optuna": regret(other), "exhaustive seconds": exhaustive,
            "seconds": found["seconds"]}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", default="", help="comma-separated; default: all of benchmarks/problems")
    parser.add_argument("--table-seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("heldout-runs/improve-regret"))
    arguments = parser.parse_args()
    wanted = arguments.problems.split(",") if arguments.problems else []
    files = [file for file in sorted(FOLDER.glob("*.py")) if not wanted or file.stem in wanted]
    rows = []
    for file in files:
        rows.append(judge(file, arguments.table_seeds, arguments.out))
        row = rows[-1]
        print(
            f"{row['problem']:<18} best {row['best']} {row['gain of the best']:+.1f} [{row['low']:+.1f}, "
            f"{row['high']:+.1f}]; improve: {row['winner'] or 'none'}, regret {row['regret']:.2f} "
            f"(at once {row['regret at once']:.2f}), "
            f"{row['seconds']:.0f} of {row['exhaustive seconds']:.0f} s; optuna: {row['optuna']}, regret "
            f"{row['regret of optuna']:.2f}; baseline: {row['regret of the baseline']:.2f}",
            flush=True,
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "regret.json").write_text(json.dumps(rows, indent=1))
    regret = float(np.mean([row["regret"] for row in rows]))
    cheaper = sum(row["exhaustive seconds"] for row in rows) / sum(row["seconds"] for row in rows)
    baseline = float(np.mean([row["regret of the baseline"] for row in rows]))
    at_once = float(np.mean([row["regret at once"] for row in rows]))
    optuna = float(np.mean([row["regret of optuna"] for row in rows]))
    print(
        f"mean regret {regret:.2f} (of who must choose at once {at_once:.2f}, optuna {optuna:.2f}, baseline "
        f"{baseline:.2f}); {cheaper:.1f} times cheaper than exhaustive search"
    )
    return int(regret > 1.0 or cheaper < 3.0)


if __name__ == "__main__":
    sys.exit(main())
