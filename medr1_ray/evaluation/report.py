"""The report of an evaluation: accuracies with intervals, comparisons with baselines, and a verdict in words.

A model is called better than a baseline if the 95 % interval of the paired difference of their accuracies, by bootstrap
over images, lies above zero. Accuracies are fractions in [0, 1], differences lie in [-1, 1].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medr1_ray.data.blind_prior import BlindPrior
from medr1_ray.evaluation.blinding import NOT_SHUFFLED
from medr1_ray.evaluation.passes import BLINDED, IMAGE, SHUFFLED_OPTIONS, Row
from medr1_ray.evaluation.uncertainty import (
    Interval,
    accuracy_interval,
    bootstrap_means,
    difference_interval,
    mcnemar,
)
from medr1_ray.types import Question

CHANCE, BLIND_PRIOR = "chance", "blind_prior"
BLIND = (CHANCE, BLIND_PRIOR, *BLINDED)
"""Baselines without the image; a model not better than each of them has not been shown to use the image."""


@dataclass(frozen=True)
class Comparison:
    """Comparison with a baseline on the same questions; `difference` is the model's accuracy minus the baseline's."""

    accuracy: float
    difference: float
    interval: Interval
    better: bool


@dataclass(frozen=True)
class Share:
    """Results on a subset of the questions; `format`, `parse_failures` and `truncated` are fractions of `n` answers."""

    n: int
    images: int
    accuracy: float
    interval: Interval
    format: float
    parse_failures: float
    truncated: float
    baselines: dict[str, Comparison]


@dataclass(frozen=True)
class Against:
    """Comparison of two models on the `n` questions that both answered.

    `p` is McNemar's p-value, `difference` this model's accuracy minus the other's.
    """

    other: str
    n: int
    accuracy: float
    other_accuracy: float
    difference: float
    interval: Interval
    only_this: int
    only_other: int
    p: float


@dataclass(frozen=True)
class Report:
    """Results of an evaluation.

    `left_out` counts questions that could not be asked, by reason; `rows_dropped` counts data rows that are not valid
    questions, by reason; `shared_images` counts images that also occur in the training part. `scorings` has
    OmniMedVQA's scores; `pass_rate` is the mean over `samples` sampled answers per question, if there are any.
    """

    model: str
    mode: str
    split: str
    overall: Share
    modality: dict[str, Share]
    question_type: dict[str, Share]
    dataset: dict[str, Share]
    scorings: dict[str, Share]
    left_out: dict[str, int]
    rows_dropped: dict[str, int]
    shared_images: int
    samples: int
    pass_rate: float | None
    against: Against | None
    verdict: tuple[str, ...]


def share(
    questions: Sequence[Question], rows: Mapping[str, Row], baselines: Mapping[str, Mapping[str, float]]
) -> Share:
    """Return the results on `questions`; rows are by question id, baselines by name and question id."""
    answered = [rows[question.id] for question in questions]
    # Column 0 is the model; the baselines follow in the order of the dict, from 1 on.
    columns = [[float(row["correct"]) for row in answered]]
    columns += [[baseline[question.id] for question in questions] for baseline in baselines.values()]
    values = np.array(columns).T
    images = [question.image_path for question in questions]
    replicates, means, distinct = bootstrap_means(values, images), values.mean(axis=0), len(set(images))
    return Share(
        n=len(answered),
        images=distinct,
        accuracy=float(means[0]),
        interval=accuracy_interval(values[:, 0], replicates[:, 0], distinct),
        format=_mean(answered, lambda row: row["well_formed"]),
        parse_failures=_mean(answered, lambda row: row["answer"] is None),
        truncated=_mean(answered, lambda row: row["truncated"]),
        baselines={
            name: _comparison(means[0], means[i], replicates[:, 0] - replicates[:, i], distinct)
            for i, name in enumerate(baselines, 1)
        },
    )


def grouped(
    questions: Sequence[Question],
    key: Callable[[Question], str],
    rows: Mapping[str, Row],
    baselines: Mapping[str, Mapping[str, float]],
) -> dict[str, Share]:
    """Return one `Share` per value of `key`."""
    names = sorted({key(question) for question in questions})
    return {name: share([q for q in questions if key(q) == name], rows, baselines) for name in names}


def blind_baselines(questions: Sequence[Question], train: Sequence[Question]) -> dict[str, dict[str, float]]:
    """Return the expected score on each question of chance and of the blind prior, which is counted over `train`."""
    prior = BlindPrior.fit(train)
    return {
        CHANCE: {question.id: 1 / len(question.options) for question in questions},
        BLIND_PRIOR: {question.id: prior.credit(question) for question in questions},
    }


def make_report(
    *,
    model: str,
    mode: str,
    split: str,
    questions: Sequence[Question],
    train: Sequence[Question],
    rows_dropped: Mapping[str, int],
    rows: Mapping[str, Mapping[str, Row]],
    left_out: Mapping[str, str],
    samples: Mapping[str, Row],
    against: Against | None,
) -> Report:
    """Return the report on the questions that every pass could ask; `rows` are by pass and question id, without
    `shuffled_image` where most questions share one image.

    Raises:
        ValueError: no question could be asked.
    """
    kept = [question for question in questions if question.id not in left_out]
    counts = dict(Counter(left_out.values()))
    if not kept:
        raise ValueError(f"none of the {len(questions)} questions could be asked: {counts}")
    baselines = blind_baselines(kept, train) | {
        name: {id_: float(row["correct"]) for id_, row in rows[name].items()}
        for name in (*BLINDED, SHUFFLED_OPTIONS)
        if name in rows
    }
    overall = share(kept, rows[IMAGE], baselines)
    modality = grouped(kept, lambda question: question.modality, rows[IMAGE], baselines)
    question_type = grouped(kept, lambda question: question.question_type, rows[IMAGE], baselines)
    shared = {question.image_path for question in kept} & {question.image_path for question in train}
    rates = [samples[question.id] for question in kept if question.id in samples]
    return Report(
        model=model,
        mode=mode,
        split=split,
        overall=overall,
        modality=modality,
        question_type=question_type,
        dataset=grouped(kept, lambda question: question.dataset, rows[IMAGE], baselines),
        scorings={name: share(kept, rows[name], {}) for name in rows if name in ("text", "likelihood")},
        left_out=counts,
        rows_dropped=dict(rows_dropped),
        shared_images=len(shared),
        samples=rates[0]["samples"] if rates else 0,
        pass_rate=_mean(rates, lambda row: row["pass_rate"]) if rates else None,
        against=against,
        verdict=(
            *verdict(overall),
            *(f"The {name.replace('_', ' ')} is left out: {NOT_SHUFFLED}." for name in BLINDED if name not in rows),
            *([f"{len(shared)} of its {overall.images} images are also in the training part."] if shared else []),
            *_weak_spots(modality),
            *_weak_spots(question_type),
        ),
    )


def compare(
    questions: Sequence[Question], rows: Mapping[str, Row], other: str, other_rows: Mapping[str, Row]
) -> Against:
    """Compare two models on the questions that both answered.

    Raises:
        ValueError: there are no such questions.
    """
    common = [question for question in questions if question.id in rows and question.id in other_rows]
    if not common:
        raise ValueError(f"--against {other}: it answered none of these questions; give a result of the same split")
    values = np.array([[rows[q.id]["correct"], other_rows[q.id]["correct"]] for q in common], np.float64)
    images = [question.image_path for question in common]
    replicates = bootstrap_means(values, images)
    difference = values[:, 0] - values[:, 1]
    only_this, only_other = int((difference > 0).sum()), int((difference < 0).sum())
    return Against(
        other=other,
        n=len(common),
        accuracy=float(values[:, 0].mean()),
        other_accuracy=float(values[:, 1].mean()),
        difference=float(difference.mean()),
        interval=difference_interval(replicates[:, 0] - replicates[:, 1], len(set(images))),
        only_this=only_this,
        only_other=only_other,
        p=mcnemar(only_this, only_other),
    )


def verdict(overall: Share) -> list[str]:
    """Return sentences on what the results show, and what they do not."""
    not_better = _not_better(overall)
    if not_better:
        names = ", ".join(name.replace("_", " ") for name in not_better)
        sentences = [f"The model is NOT shown to be better than blind: not better than {names}."]
    else:
        sentences = ["The model is better than every blind baseline: it uses the image."]
    for name, baseline in overall.baselines.items():
        if name == SHUFFLED_OPTIONS:
            continue
        relation = "above" if baseline.better else "not above"
        sentences.append(
            f"{overall.accuracy:.3f} is {relation} {name.replace('_', ' ')} at {baseline.accuracy:.3f}: difference "
            f"{_signed(baseline.difference, baseline.interval)}."
        )
    order = overall.baselines.get(SHUFFLED_OPTIONS)
    if order is not None:
        sentences.append(
            f"With the options shuffled it is {order.accuracy:.3f}: "
            + ("its accuracy depends on their order" if order.better else "their order is not shown to matter")
            + f", difference {_signed(order.difference, order.interval)}."
        )
    return sentences


def _weak_spots(shares: Mapping[str, Share]) -> list[str]:
    return [
        f"On {name} (n = {each.n}) it is not shown to be better than "
        f"{', '.join(weak).replace('_', ' ')}."
        for name, each in shares.items()
        if (weak := _not_better(each))
    ]


def _not_better(each: Share) -> list[str]:
    return [name for name in BLIND if name in each.baselines and not each.baselines[name].better]


def _comparison(model: float, baseline: float, differences: NDArray[np.float64], images: int) -> Comparison:
    low, high = difference_interval(differences, images)
    return Comparison(float(baseline), float(model - baseline), (low, high), low > 0)


def _mean(rows: Sequence[Row], value: Callable[[Row], float]) -> float:
    return sum(map(value, rows)) / len(rows)


def _signed(difference: float, between: Interval) -> str:
    return f"{difference:+.3f} [{between[0]:+.3f}, {between[1]:+.3f}]"
