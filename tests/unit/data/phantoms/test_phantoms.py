"""Phantoms: pictures that show their facts, questions that need them, and OmniMedVQA's layout on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medr1_ray.data.phantoms import (
    ANATOMIES,
    GRADES,
    LOCATIONS,
    MODALITIES,
    QUESTION_TYPES,
    PhantomFacts,
    PhantomQuestion,
    describe,
    draw,
    ensure_dataset,
    phantom_facts,
    phantom_questions,
    phantom_rng,
    random_facts,
    write_dataset,
)
from medr1_ray.data.phantoms.facts import OVERLAPS

PLACES = [(modality, anatomy) for modality, pair in ANATOMIES.items() for anatomy in pair]


@pytest.fixture(scope="module")
def asked() -> list[list[PhantomQuestion]]:
    """The questions of 6000 phantoms, phantom by phantom."""
    return [phantom_questions(7, index) for index in range(6000)]


@pytest.mark.parametrize(("modality", "anatomy"), PLACES)
def test_an_image_is_a_function_of_facts_and_seed(modality: str, anatomy: str) -> None:
    facts = PhantomFacts(modality, anatomy, True, "Moderate", "Top")
    image = draw(facts, np.random.default_rng(3), size=100)
    assert image.dtype == np.uint8
    assert image.shape[2] == 3
    assert max(image.shape[:2]) == 100
    assert min(image.shape[:2]) >= 80
    assert np.array_equal(image, draw(facts, np.random.default_rng(3), size=100))
    assert not np.array_equal(image[:80, :80], draw(facts, np.random.default_rng(4), size=100)[:80, :80])


@pytest.mark.parametrize(("modality", "anatomy"), PLACES)
def test_a_lesion_changes_the_image_where_it_lies_and_the_more_the_worse_it_is(
    modality: str, anatomy: str
) -> None:
    # Sound casts a shadow below a lesion, so there up and down say little about where the change is.
    for location in LOCATIONS[:2] if modality == "Ultrasound" else LOCATIONS:
        for seed in range(3):
            healthy = draw(PhantomFacts(modality, anatomy, False), np.random.default_rng(seed)).astype(int)
            areas = []
            for grade in GRADES:
                facts = PhantomFacts(modality, anatomy, True, grade, location)
                ill = draw(facts, np.random.default_rng(seed))
                change = np.abs(ill - healthy).max(axis=2) > 25
                rows, columns = np.nonzero(change)
                x, y = columns.mean() / change.shape[1] * 2 - 1, rows.mean() / change.shape[0] * 2 - 1
                along = {"Left": -x, "Right": x, "Top": -y, "Bottom": y}[location]
                assert along > 0.3, (location, grade, seed)
                areas.append(change.mean())
            assert areas[1] > 1.8 * areas[0], (location, seed, areas)
            assert areas[2] > 1.5 * areas[1], (location, seed, areas)


def test_modalities_can_be_told_apart_by_their_colours_in_coarse_squares() -> None:
    def thumbnail(index: int) -> np.ndarray:
        image = Image.fromarray(draw(phantom_facts(11, index), phantom_rng(11, index, 2), size=64))
        return np.asarray(image.resize((12, 12), Image.Resampling.BOX), np.float64).ravel()

    thumbnails = np.array([thumbnail(index) for index in range(960)])
    # One centroid for each anatomy: two anatomies of one modality look nothing like each other.
    places = np.array(
        [PLACES.index((f.modality, f.anatomy)) for f in (phantom_facts(11, k) for k in range(960))]
    )
    train, test = slice(0, 640), slice(640, 960)
    centroids = np.array([thumbnails[train][places[train] == k].mean(axis=0) for k in range(len(PLACES))])
    distances = ((thumbnails[test][:, None] - centroids) ** 2).sum(axis=2)
    assert (distances.argmin(axis=1) // 2 == places[test] // 2).mean() >= 0.9


def test_facts_are_uniform_and_independent() -> None:
    rng = np.random.default_rng(0)
    drawn = [random_facts(rng, "CT") for _ in range(4800)]
    assert abs(sum(facts.lesion for facts in drawn) / 4800 - 0.5) < 0.03
    cells = Counter((facts.anatomy, facts.grade, facts.location) for facts in drawn if facts.lesion)
    assert len(cells) == 24
    assert all(60 <= count <= 140 for count in cells.values())


@pytest.mark.parametrize(
    "wrong",
    [
        {"modality": "PET", "anatomy": "Chest", "lesion": False},
        {"modality": "CT", "anatomy": "Brain", "lesion": False},
        {"modality": "CT", "anatomy": "Chest", "lesion": True},
        {"modality": "CT", "anatomy": "Chest", "lesion": True, "grade": "Mild"},
        {"modality": "CT", "anatomy": "Chest", "lesion": False, "grade": "Mild", "location": "Left"},
    ],
)
def test_facts_that_contradict_each_other_are_refused(wrong: dict[str, str | bool]) -> None:
    with pytest.raises(ValueError, match="use one of"):
        PhantomFacts(**wrong)  # type: ignore[arg-type]


def test_a_description_says_every_fact() -> None:
    facts = PhantomFacts("X-ray", "Hand", True, "Severe", "Bottom")
    lines = {describe(facts, np.random.default_rng(seed)) for seed in range(40)}
    assert len(lines) >= 3
    assert all(word in line for line in lines for word in ("X-ray", "hand", "severe lesion", "at the bottom"))
    assert "no lesion" in describe(PhantomFacts("MRI", "Brain", False), np.random.default_rng(0))


def test_every_fact_is_asked_for_once_and_answered_rightly() -> None:
    for index in range(64):
        facts = phantom_facts(5, index)
        asked = phantom_questions(5, index)
        answers = [facts.modality, facts.anatomy, "Yes" if facts.lesion else "No"]
        answers += [facts.grade, facts.location] if facts.grade and facts.location else []
        assert [question.answer for question in asked] == answers
        assert [question.question_type for question in asked] == list(QUESTION_TYPES[: len(answers)])
        assert [len(question.options) for question in asked] == [4, 4, 2, 3, 4][: len(answers)]
        for question in asked:
            assert len(set(question.options)) == len(question.options)
            assert question.answer in question.options
            assert not any(overlap <= set(question.options) for overlap in OVERLAPS)


def test_a_stem_does_not_tell_the_modality(asked: list[list[PhantomQuestion]]) -> None:
    for question in (question for questions in asked[:400] for question in questions):
        assert len(question.stem.split()) <= 12
        assert not any(modality.lower() in question.stem.lower().split() for modality in MODALITIES)


def test_the_gold_position_is_uniform(asked: list[list[PhantomQuestion]]) -> None:
    for question_type in QUESTION_TYPES:
        of_type = [q for questions in asked for q in questions if q.question_type == question_type]
        positions = Counter(question.options.index(question.answer) for question in of_type)
        options = len(of_type[0].options)
        for position in range(options):
            assert positions[position] / len(of_type) == pytest.approx(1 / options, abs=0.03)


def test_the_gold_anatomy_is_any_of_those_offered_equally_often(asked: list[list[PhantomQuestion]]) -> None:
    offered: Counter[str] = Counter()
    gold: Counter[str] = Counter()
    for questions in asked:
        offered.update(questions[1].options)
        gold[questions[1].answer] += 1
    for anatomy in offered:
        assert gold[anatomy] / offered[anatomy] == pytest.approx(0.25, abs=0.035), anatomy


def test_a_blind_prior_stays_at_chance(asked: list[list[PhantomQuestion]]) -> None:
    offered: Counter[str] = Counter()
    right: Counter[str] = Counter()
    for question in (question for questions in asked[:2000] for question in questions):
        offered.update(option.lower() for option in question.options)
        right[question.answer.lower()] += 1

    def score(option: str) -> float:
        return (right[option.lower()] + 0.25) / (offered[option.lower()] + 1)

    test = [question for questions in asked[2000:] for question in questions]
    for question_type in (*QUESTION_TYPES, ""):
        of_type = [question for question in test if question_type in ("", question.question_type)]
        hits = np.mean([max(question.options, key=score) == question.answer for question in of_type])
        chance = np.mean([1 / len(question.options) for question in of_type])
        assert abs(hits - chance) < 0.04, (question_type, hits, chance)


def test_the_layout_is_omnimedvqas_and_the_same_every_time(tmp_path: Path) -> None:
    first, second, longer = tmp_path / "a", tmp_path / "deep" / "b", tmp_path / "c"
    write_dataset(first, images=16, seed=1, size=64)
    write_dataset(second, images=16, seed=1, size=64)
    write_dataset(longer, images=24, seed=1, size=64)
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    for path in files:
        assert (first / path).read_bytes() == (second / path).read_bytes()
        if path.parts[0] == "Images":
            assert (first / path).read_bytes() == (longer / path).read_bytes()
    assert {path.suffix for path in files} == {".png", ".jpg", ".bmp", ".json"}

    questions = 0
    for modality in MODALITIES:
        dataset = f"Phantom {modality}"
        rows = json.loads((first / "QA_information" / "Open-access" / f"{dataset}.json").read_text())
        questions += len(rows)
        assert len({row["question_id"] for row in rows}) == len(rows)
        assert len({row["image_path"] for row in rows}) == 2
        for row in rows:
            options = [row[key] for key in ("option_A", "option_B", "option_C", "option_D") if key in row]
            assert set(row) == {
                *("dataset", "question_id", "question_type", "question", "gt_answer", "image_path"),
                *("option_A", "option_B", "option_C", "option_D")[: len(options)],
                "modality_type",
            }
            assert row["dataset"] == dataset
            assert row["gt_answer"] in options
            assert (first / row["image_path"]).is_file()
    manifest = json.loads((first / "phantoms.json").read_text())
    assert manifest == {"images": 16, "seed": 1, "size": 64, "generator_version": 1, "questions": questions}


def test_a_directory_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    for write in (write_dataset, ensure_dataset):
        with pytest.raises(ValueError, match="not an empty directory"):
            write(tmp_path, images=1, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_dataset_is_written_once_and_not_mistaken_for_another(tmp_path: Path) -> None:
    out = tmp_path / "phantoms"
    out.mkdir()
    ensure_dataset(out, images=8, seed=0, size=56)
    written = (out / "phantoms.json").stat().st_mtime_ns
    ensure_dataset(out, images=8, seed=0, size=56)
    assert (out / "phantoms.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match=r"images 8 \(asked for: 9\)"):
        ensure_dataset(out, images=9, seed=0, size=56)


def test_two_runs_may_write_the_same_dataset_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "phantoms"
    replace = os.replace

    def after_another(source: Path, target: Path) -> None:
        monkeypatch.undo()
        ensure_dataset(target, images=8, seed=0, size=56)
        replace(source, target)

    monkeypatch.setattr(os, "replace", after_another)
    ensure_dataset(out, images=8, seed=0, size=56)
    assert list(tmp_path.iterdir()) == [out]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medr1_ray.data.phantoms.write.phantom_questions", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "phantoms", images=8, seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("key", "value"), [("images", 0), ("seed", -1), ("size", 55)])
def test_parameters_out_of_range_are_refused(tmp_path: Path, key: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{key} is {value}"):
        write_dataset(tmp_path / "phantoms", **{"images": 1, "seed": 0, "size": 56, key: value})
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_a_dataset_and_says_what_is_wrong(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "medr1_ray.data.phantoms", "--out", str(tmp_path / "p"), "--seed", "0"]
    done = subprocess.run([*command, "--images", "2", "--size", "56"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "p" / "phantoms.json").is_file()
    refused = subprocess.run([*command, "--images", "3", "--size", "56"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "asked for: 3" in refused.stderr
