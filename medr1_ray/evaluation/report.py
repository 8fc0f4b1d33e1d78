"""What an evaluation's answers say, and how sure that is: `report.json`, `report.md` and a verdict in words.

A model is called better than a baseline where the 95 % interval of the paired difference of their accuracies, by
bootstrap over images, lies above zero. Accuracies and their differences are fractions in [0, 1] and [-1, 1].
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medr1_ray.data.blind_prior import BlindPrior
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
"""The baselines that do without the image; a model that is not better than each of them has not been shown to look."""


@dataclass(frozen=True)
class Comparison:
    """The model beside a baseline on the same questions: `difference` is the model's accuracy minus the baseline's."""

    accuracy: float
    difference: float
    interval: Interval
    better: bool


@dataclass(frozen=True)
class Share:
    """Some of the questions: `format`, `parse_failures` and `truncated` are fractions of the `n` answers."""

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
    """Two models on the `n` questions that both answered; `p` is McNemar's, `difference` this accuracy minus the
    other's."""

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
    """`left_out` counts questions that could not be put, by reason, `rows_dropped` rows of the data that are no
    question, and `shared_images` the images that are in the training part too. `scorings` has OmniMedVQA's;
    `pass_rate` is the mean of `samples` sampled answers where there are any."""

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
    """Measures of the questions' rows, each by question id, beside what each baseline scores on each question."""
    answered = [rows[question.id] for question in questions]
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
    """A share for each value of `key`."""
    names = sorted({key(question) for question in questions})
    return {name: share([q for q in questions if key(q) == name], rows, baselines) for name in names}


def blind_baselines(questions: Sequence[Question], train: Sequence[Question]) -> dict[str, dict[str, float]]:
    """What chance and the blind prior, counted over `train`, are right on each question in the mean."""
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
    """The report of `rows` by pass and question id, of those questions that every pass could put.

    Raises:
        ValueError: none could be put.
    """
    kept = [question for question in questions if question.id not in left_out]
    counts = dict(Counter(left_out.values()))
    if not kept:
        raise ValueError(f"none of the {len(questions)} questions could be put to the model: {counts}")
    baselines = blind_baselines(kept, train) | {
        name: {id_: float(row["correct"]) for id_, row in rows[name].items()} for name in (*BLINDED, SHUFFLED_OPTIONS)
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
            *([f"{len(shared)} of its {overall.images} images are in the training part too."] if shared else []),
            *_weak_spots(modality),
            *_weak_spots(question_type),
        ),
    )


def compare(
    questions: Sequence[Question], rows: Mapping[str, Row], other: str, other_rows: Mapping[str, Row]
) -> Against:
    """Two models on the questions that both answered.

    Raises:
        ValueError: there is none.
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
    """What may be said of the model, and what may not."""
    not_better = _not_better(overall)
    if not_better:
        names = ", ".join(name.replace("_", " ") for name in not_better)
        sentences = [f"The model is NOT shown to be better than blind: not better than {names}."]
    else:
        sentences = ["The model is better than every blind baseline: it uses the image."]
    for name, baseline in overall.baselines.items():
        relation = "above" if baseline.better else "not above"
        sentences.append(
            f"{overall.accuracy:.3f} is {relation} {name.replace('_', ' ')} at {baseline.accuracy:.3f}: difference "
            f"{_signed(baseline.difference, baseline.interval)}."
        )
    order = overall.baselines.get(SHUFFLED_OPTIONS)
    if order is not None and order.better:
        sentences.append("Its accuracy depends on the order of the options: it falls when they are shuffled.")
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
