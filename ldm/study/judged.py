"""What answers say: shares with Wilson intervals, agreement of raters, rank correlation with the scores.

Answers count as independent; with several raters of the same pairs the intervals are a little too narrow for that.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from statistics import fmean, median
from typing import Any

import numpy as np
from scipy.stats import permutation_test, rankdata, zscore

from ldm.study.answers import SIDES, Answer
from ldm.study.intervals import Estimate, wilson
from ldm.study.pairs import TASKS
from ldm.study.prompt_set import REAL

Row = dict[str, Any]
FEWEST = 3  # points of a rank correlation


def tasks_of(answers: Sequence[Answer]) -> list[str]:
    """The tasks that were answered, in the order of TASKS."""
    found = {answer.pair["task"] for answer in answers}
    return [task for task in TASKS if task in found]


def models_of(answers: Iterable[Answer]) -> list[str]:
    """The models in any of the pairs, real first."""
    found = {answer.pair[side]["model"]: None for answer in answers for side in SIDES}
    return sorted(found, key=lambda name: (name != REAL, name))


def shares(answers: Sequence[Answer]) -> list[Row]:
    """Rows of each task, model and part of the prompts: of `real` how often it was told from a real picture
    (accuracy; 0.5 is chance), of the others how often it was preferred, over all and against each of the others.
    """
    rows = []
    for task in tasks_of(answers):
        own = sorted(
            (answer for answer in answers if answer.pair["task"] == task), key=lambda answer: answer.pair["place"]
        )
        for model in (name for name in models_of(own) if task != "real" or name != REAL):
            met = [answer for answer in own if model in (answer.chosen, answer.other)]
            against = sorted({answer.other if answer.chosen == model else answer.chosen for answer in met})
            for other in ["all", *against] if len(against) > 1 else against:
                these = [answer for answer in met if other in ("all", answer.chosen, answer.other)]
                rows += [_row(task, model, other, *part) for part in _parts(these)]
    return rows


def _row(task: str, model: str, other: str, level: str, name: str, answers: Sequence[Answer]) -> Row:
    count = sum(answer.chosen == (REAL if task == "real" else model) for answer in answers)
    value, low, high = wilson(count, len(answers))
    return {
        "task": task, "measure": "accuracy" if task == "real" else "preferred", "model": model, "against": other,
        "level": level, "name": name, "answers": len(answers), "count": count, "value": value, "low": low, "high": high,
    }  # fmt: skip


def _parts(answers: Sequence[Answer]) -> Iterable[tuple[str, str, Sequence[Answer]]]:
    """(level, name, answers): all, then each group before its categories."""
    yield "all", "all", answers
    for group in dict.fromkeys(answer.pair["group"] for answer in answers):
        own = [answer for answer in answers if answer.pair["group"] == group]
        yield "group", group, own
        for category in dict.fromkeys(answer.pair["category"] for answer in own):
            yield "category", category, [answer for answer in own if answer.pair["category"] == category]


def raters(answers: Sequence[Answer]) -> list[Row]:
    """A row for each rater: answers, accuracy of `real`, share of left answers, median time."""
    rows = []
    for rater in dict.fromkeys(answer.rater for answer in answers):
        own = [answer for answer in answers if answer.rater == rater]
        real = [answer.chosen == REAL for answer in own if answer.pair["task"] == "real"]
        times = [answer.seconds for answer in own if answer.seconds is not None]
        rows.append(
            {
                "rater": rater, "answers": len(own), "accuracy": wilson(sum(real), len(real)),
                "left": fmean(answer.side == "left" for answer in own), "seconds": median(times) if times else None,
            }
        )  # fmt: skip
    return rows


def agreement(answers: Sequence[Answer]) -> tuple[float, float]:
    """(share of pairs of raters who chose the same side of a pair, Krippendorff's alpha of that); NaN without any.

    Alpha (Krippendorff 2011, nominal, of whatever pairs each rater answered) is 1 for equal answers, 0 for chance.
    """
    chosen: dict[str, list[str]] = defaultdict(list)
    for answer in answers:
        chosen[answer.pair["id"]].append(answer.side)
    units = [sides for sides in chosen.values() if len(sides) > 1]
    if not units:
        return float("nan"), float("nan")
    agreed = [fmean(one == other for one, other in combinations(sides, 2)) for sides in units]
    weights = [len(sides) for sides in units]
    total = sum(weights)
    counts = Counter(side for sides in units for side in sides)
    expected = 1 - sum(count * (count - 1) for count in counts.values()) / (total * (total - 1))
    observed = 1 - sum(share * weight for share, weight in zip(agreed, weights, strict=True)) / total
    return fmean(agreed), 1 - observed / expected if expected else 1.0


def correlations(answers: Sequence[Answer]) -> list[Row]:
    """Spearman's rank correlation of choices with the scores of the pictures, of each task on three levels.

    `pairs`: the share of answers for the right picture, against how much more its score is. `categories` and `models`:
    how often the pictures of a model (in a category) were chosen, against their mean score; of `real` these are the
    generated ones, taken for real. Empty where fewer than three points, or only equal ones, are there.
    """
    rows = []
    for task in tasks_of(answers):
        own = [answer for answer in answers if answer.pair["task"] == task]
        levels = {"pairs": _of_pairs(own), "categories": _of_models(own, True), "models": _of_models(own, False)}
        for level, points in levels.items():
            rho, p = _spearman(points)
            rows.append({"task": task, "level": level, "points": len(points), "spearman": rho, "p": p})
    return rows


def _of_pairs(answers: Sequence[Answer]) -> list[tuple[float, float]]:
    found: dict[str, list[Answer]] = defaultdict(list)
    for answer in answers:
        found[answer.pair["id"]].append(answer)
    return [
        (own[0].pair["right"]["score"] - own[0].pair["left"]["score"], fmean(each.side == "right" for each in own))
        for own in found.values()
    ]


def _of_models(answers: Sequence[Answer], by_category: bool) -> list[tuple[float, float]]:
    """(mean score, share of times chosen) of each model, or of each model in each category."""
    found: dict[tuple[str, str], list[tuple[float, bool]]] = defaultdict(list)
    for answer in answers:
        for side in SIDES:
            model = answer.pair[side]["model"]
            if answer.pair["task"] != "real" or model != REAL:
                part = answer.pair["category"] if by_category else ""
                found[model, part].append((answer.pair[side]["score"], answer.side == side))
    return [(fmean(score for score, _ in own), fmean(chosen for _, chosen in own)) for own in found.values()]


def _spearman(points: Sequence[tuple[float, float]]) -> tuple[float | str, float | str]:
    """The correlation of ranks and its p, two-sided: exact for few points, by random permutations for more."""
    if len(points) < FEWEST or any(len(set(values)) < 2 for values in zip(*points, strict=True)):
        return "", ""
    first, second = (zscore(rankdata(values)) for values in zip(*points, strict=True))
    found = permutation_test(
        (first,), lambda ranks, axis: (ranks * second).mean(axis), permutation_type="pairings", vectorized=True,
        random_state=np.random.default_rng(0),
    )  # fmt: skip
    return float(found.statistic), float(found.pvalue)


def estimate(row: Row) -> Estimate:
    """The value of a row of `shares`, with its interval."""
    return Estimate(row["value"], row["low"], row["high"])
