"""Benchmark of what comparisons say and take: ``python -m tests.benchmarks.comparison``.

It has three parts:

- ``words`` simulates tables of which the truth is known, and counts how often the words are wrong.
- ``evaluation`` trains the twenty networks of experiments/digits.yaml, and compares the time for
  evaluating all of them with that for training them.
- ``runs`` compares ten thousand runs (see `tests.benchmarks.summary`).

They take about 1, 15 and 4 minutes. ``--part`` chooses one. The benchmark prints a table, and exits
0 if all bounds hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import chdir
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from pipeline.__main__ import main as tune
from pipeline.jobs.evaluate import evaluate_runs
from pipeline.jobs.summary import summarise
from pipeline.scores.intervals import rate_interval
from pipeline.scores.significance import TestResults, Word, judge
from pipeline.tracking.workspace import open_workspace
from tests.benchmarks import summary
from tests.benchmarks.measure import Results, seconds

NUM_CONFIGURATIONS = 20
NUM_TEST, NUM_VALIDATION = 350, 165
SEED_DEVIATION = 0.02
"""Standard deviation of the accuracy between trainings of one configuration."""
DIFFICULTY = 1.5
"""Standard deviation of the images' difficulty, as log odds: trainings err on the same images."""
ACCURACY = 0.9
WORSE_BY = 0.12

MOST_FALSE = 0.05
LEAST_FOUND = 0.8
LEAST_COVERAGE = 0.92
MOST_OF_TRAINING = 0.1
EXPERIMENT = Path(__file__).resolve().parents[2] / "experiments" / "digits.yaml"


class Simulation:
    """Draws tables of trainings whose answers depend on image and seed."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        difficulties = np.random.default_rng(0).normal(scale=DIFFICULTY, size=20_000)
        self._levels = {
            accuracy: self._level(accuracy, difficulties)
            for accuracy in (ACCURACY, ACCURACY - WORSE_BY)
        }

    @staticmethod
    def _level(accuracy: float, difficulties: NDArray[np.float64]) -> tuple[float, float]:
        """Return the log odds that give an accuracy, and their deviation between seeds."""
        low, high = logit(accuracy), logit(accuracy) + 5
        for _ in range(50):
            middle = (low + high) / 2
            if expit(middle + difficulties).mean() < accuracy:
                low = middle
            else:
                high = middle
        shares = expit(middle + difficulties)
        return middle, SEED_DEVIATION / float((shares * (1 - shares)).mean())

    def table(self, repeats: int, accuracies: list[float]) -> list[TestResults]:
        """Return the configurations of a table, the leader on validation first."""
        difficulties = {
            "test": self._rng.normal(scale=DIFFICULTY, size=NUM_TEST),
            "val": self._rng.normal(scale=DIFFICULTY, size=NUM_VALIDATION),
        }
        scored = []
        for accuracy in accuracies:
            level, deviation = self._levels[accuracy]
            levels = level + self._rng.normal(scale=deviation, size=(repeats, 1))
            right = {
                split: self._rng.random((repeats, len(hard))) < expit(levels + hard)
                for split, hard in difficulties.items()
            }
            result = TestResults(right["test"].mean(axis=1).tolist(), NUM_TEST, right["test"])
            scored.append((float(right["val"].mean()), result))
        scored.sort(key=lambda pair: -pair[0])
        return [result for _, result in scored]

    def words(self, repeats: int, accuracies: list[float]) -> tuple[list[TestResults], list[Any]]:
        """Return a table and the word for each of its configurations."""
        table = self.table(repeats, accuracies)
        return table, [verdict.word for verdict in judge(table)]


def share_with_false_word(tables: int, repeats: int, word: Word) -> float:
    """Return in which share of tables of equal configurations any of them gets a word."""
    simulation = Simulation(repeats)
    equal = [ACCURACY] * NUM_CONFIGURATIONS
    return float(np.mean([word in simulation.words(repeats, equal)[1] for _ in range(tables)]))


def share_found(tables: int) -> float:
    """Return how often the one configuration that is worse is called so."""
    simulation = Simulation(7)
    found = 0
    for _ in range(tables):
        accuracies = [ACCURACY] * (NUM_CONFIGURATIONS - 1) + [ACCURACY - WORSE_BY]
        table, words = simulation.words(2, accuracies)
        # It has by far the lowest accuracy.
        worst = min(range(len(table)), key=lambda place: table[place].accuracy)
        found += words[worst] == "worse"
    return found / tables


def mean_coverage(rounds: int) -> float:
    """Return how often the interval of grouped images holds the truth, over 20 to 200 groups."""
    rng = np.random.default_rng(0)
    scale = 1 / 0.3 - 1
    hits = []
    for num_groups in (20, 30, 50, 80, 120, 200):
        for accuracy in (0.7, 0.85, 0.95):
            for each in (2, 10, 30):
                for _ in range(rounds):
                    shares = rng.beta(accuracy * scale, (1 - accuracy) * scale, num_groups)
                    correct = rng.random(num_groups * each) < np.repeat(shares, each)
                    groups = np.repeat(np.arange(num_groups), each)
                    interval = rate_interval(correct, groups)
                    assert interval is not None
                    hits.append(interval[0] <= accuracy <= interval[1])
    return float(np.mean(hits))


def measure_words(results: Results, tables: int) -> None:
    """Add the rows of tables that are simulated."""
    false = share_with_false_word(tables, 2, "worse")
    results.add(
        "equal configurations, two repeats: any is called worse",
        f"{false:.1%}",
        "",
        f"{false:.1%} of tables, at most {MOST_FALSE:.0%}",
        false <= MOST_FALSE,
    )
    alone = share_with_false_word(tables, 1, "worse")
    results.add(
        "the same without repeats (of these two runs)",
        f"{alone:.1%}",
        "",
        f"{alone:.1%} of tables, no bound",
        True,
    )
    found = share_found(tables)
    results.add(
        f"one is {100 * WORSE_BY:.0f} points worse: it is called so",
        f"{found:.1%}",
        "",
        f"{found:.1%} of tables, at least {LEAST_FOUND:.0%}",
        found >= LEAST_FOUND,
    )
    coverage = mean_coverage(max(20, tables // 10))
    results.add(
        "accuracy of grouped images: the 95% interval holds it",
        f"{coverage:.1%}",
        "",
        f"{coverage:.1%}, at least {LEAST_COVERAGE:.0%}",
        coverage >= LEAST_COVERAGE,
    )


def measure_evaluation(results: Results, experiment: Path) -> None:
    """Train what an experiment lists and searches, evaluate all, and add the row of the times."""
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        mlflow.set_tracking_uri(f"sqlite:///{Path(folder) / 'mlflow.db'}")
        if tune(["tune", "--config", str(experiment), "--study.evaluate", "none"]):
            raise SystemExit("the trainings failed")
        workspace = open_workspace(experiment.stem)
        compared = summarise(workspace)
        trainings = sum(float(row["seconds"]) for row in compared.ranked())
        evaluation = seconds(lambda: evaluate_runs(workspace, compared, "all", "auto", {}))
    share = evaluation / trainings
    results.add(
        f"{experiment.name}: evaluating all {len(compared.ranked())} runs",
        f"{evaluation:.1f} s",
        f"{trainings:.1f} s to train them",
        f"{share:.1%} of the trainings' time, at most {MOST_OF_TRAINING:.0%}",
        share <= MOST_OF_TRAINING,
    )


def main() -> int:
    """Print the table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["words", "evaluation", "runs"], help="by default all")
    parser.add_argument("--tables", type=int, default=1000, help="tables that are simulated")
    given = parser.parse_args()
    results = Results("What comparisons say and take")
    if given.part in (None, "words"):
        measure_words(results, given.tables)
    if given.part in (None, "evaluation"):
        measure_evaluation(results, EXPERIMENT)
    if given.part in (None, "runs"):
        summary.measure(results, count=10_000, rounds=3)
    return results.conclude()


if __name__ == "__main__":
    sys.exit(main())
