"""The resumable stream of prompts."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medr1_ray.data import encoding
from medr1_ray.data.images import load_image
from medr1_ray.data.stream import RESTING, PromptStream, StreamState
from medr1_ray.types import Prompt, Question
from tests.unit.data.few_prompts import encoder, ten_questions


@pytest.fixture
def questions(tmp_path: Path) -> tuple[Question, ...]:
    return ten_questions(tmp_path)


def ids(prompts: list[Prompt]) -> list[str]:
    return [prompt.question.id for prompt in prompts]


def test_epochs_hold_every_question_once_in_other_orders(questions: tuple[Question, ...]) -> None:
    prompts = PromptStream(questions, encoder(), seed=3).take(30)
    epochs = [ids(prompts[start : start + 10]) for start in (0, 10, 20)]
    assert all(sorted(epoch) == sorted(q.id for q in questions) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert len({prompt.id for prompt in prompts}) == 30
    assert prompts[0].id == f"0.0:{prompts[0].question.id}"
    assert prompts[29].id == f"2.9:{prompts[29].question.id}"
    assert ids(PromptStream(questions, encoder(), seed=3).take(30)) == [*epochs[0], *epochs[1], *epochs[2]]
    assert ids(PromptStream(questions, encoder(), seed=4).take(10)) != epochs[0]


@pytest.mark.parametrize("taken", [0, 1, 7, 10, 13])
def test_resume_goes_on_at_the_exact_question(questions: tuple[Question, ...], taken: int) -> None:
    whole = [prompt.id for prompt in PromptStream(questions, encoder(), seed=3).take(25)]
    stream = PromptStream(questions, encoder(), seed=3)
    stream.take(taken)
    saved = json.loads(json.dumps(dataclasses.asdict(stream.state())))
    resumed = PromptStream(questions, encoder(), seed=3, state=StreamState(**saved))
    assert [prompt.id for prompt in resumed.take(25 - taken)] == whole[taken:]


def test_resume_with_other_questions_or_seed_is_refused(questions: tuple[Question, ...]) -> None:
    state = PromptStream(questions, encoder(), seed=3).state()
    with pytest.raises(ValueError, match=r"train\.seed=3 \(now 4\)"):
        PromptStream(questions, encoder(), seed=4, state=state)
    with pytest.raises(ValueError, match="other training questions"):
        PromptStream(questions[:9], encoder(), seed=3, state=state)


def test_reissue_gives_the_same_prompt(questions: tuple[Question, ...]) -> None:
    prompt = PromptStream(questions, encoder(), seed=3).take(14)[13]
    (again,) = PromptStream(questions, encoder(), seed=3).reissue([prompt.id])
    assert (again.id, again.question) == (prompt.id, prompt.question)
    assert (again.token_ids == prompt.token_ids).all()
    for wrong in ("13", "0.10:q:1", prompt.id + "0"):
        with pytest.raises(ValueError, match="does not belong to this stream"):
            PromptStream(questions, encoder(), seed=3).reissue([wrong])


def test_a_prompt_asks_its_question_with_its_image(questions: tuple[Question, ...]) -> None:
    for prompt in PromptStream(questions, encoder(), seed=0).take(20):
        assert prompt.question in questions, "options as given, where they are not shuffled"
        red = 50 * (int(prompt.question.id[2:]) % 5)
        assert prompt.image.shape == (28, 28, 3)
        assert (prompt.image == [red, 0, 0]).all()


def test_unusable_questions_are_counted_named_and_opened_once(
    questions: tuple[Question, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "broken.png").write_text("no image")
    broken = dataclasses.replace(questions[0], id="broken", image_path=str(tmp_path / "broken.png"))
    long = dataclasses.replace(questions[0], id="long", stem="word " * 100)
    special = dataclasses.replace(questions[0], id="special", stem="What is <|image_pad|> ?")
    opened: list[str] = []

    def counting(path: str, size: int, fit: encoding.ImageFit) -> np.ndarray:
        opened.append(path)
        return load_image(path, size, fit)

    monkeypatch.setattr(encoding, "load_image", counting)
    stream = PromptStream((*questions, broken, long, special), encoder(max_prompt_tokens=100), seed=0)
    prompts = stream.take(30)  # three epochs of ten
    assert len({prompt.id for prompt in prompts}) == 30
    assert {"broken", "long", "special"}.isdisjoint(ids(prompts))
    dropped = stream.state().dropped
    assert set(dropped) == {"prompt too long", "image unreadable", "special token in the text"}
    # Every position passed is a prompt or a counted drop; up to three drops of the third epoch may still follow.
    state = stream.state()
    assert state.epoch * 13 + state.position == 30 + sum(dropped.values())
    assert 6 <= sum(dropped.values()) <= 9
    named = [message.partition("): ")[2].partition(":")[0] for message in caplog.messages]
    assert sorted(named) == ["broken", "long", "special"], "once each, not in every epoch"
    assert sorted(Path(path).name for path in opened) == [
        "0.png",
        "1.png",
        "2.png",
        "3.png",
        "4.png",
        "broken.png",
    ]


def test_nothing_usable_is_an_error(questions: tuple[Question, ...]) -> None:
    stream = PromptStream(questions, encoder(max_prompt_tokens=5), seed=0)
    with pytest.raises(
        ValueError, match=r"none of the 10 .*prompt too long 10.*rollout\.max_prompt_tokens=5"
    ):
        stream.take(1)
    with pytest.raises(ValueError, match="no training questions"):
        PromptStream((), encoder(), seed=0)


@pytest.fixture
def two_kinds(questions: tuple[Question, ...]) -> tuple[Question, ...]:
    """Return eight questions of one type and two of another."""
    return tuple(
        dataclasses.replace(question, question_type="Rare" if i >= 8 else "Common")
        for i, question in enumerate(questions)
    )


def test_weights_change_how_often_a_kind_comes(two_kinds: tuple[Question, ...]) -> None:
    stream = PromptStream(two_kinds, encoder(), seed=3, weights={"Rare": 4.0})
    kinds = [prompt.question.question_type for prompt in stream.take(4000)]
    assert kinds.count("Rare") / 4000 == pytest.approx(0.5, abs=0.02)  # 2 x 4 of 8 x 1 + 2 x 4
    halves = PromptStream(two_kinds, encoder(), seed=3, weights={"Rare": 4.0, "CT": 0.5})
    assert [prompt.question.question_type for prompt in halves.take(4000)] == kinds, "only ratios count"


def test_weights_may_be_named_in_another_order_on_resuming(two_kinds: tuple[Question, ...]) -> None:
    state = PromptStream(two_kinds, encoder(), seed=3, weights={"Rare": 2.0, "CT": 0.5}).state()
    PromptStream(two_kinds, encoder(), seed=3, weights={"CT": 0.5, "Rare": 2.0}, state=state)


def test_a_weight_of_zero_leaves_a_kind_out(two_kinds: tuple[Question, ...]) -> None:
    prompts = PromptStream(two_kinds, encoder(), seed=3, weights={"Rare": 0.0}).take(100)
    assert {prompt.question.question_type for prompt in prompts} == {"Common"}


@pytest.mark.parametrize("taken", [1, 9, 23])
def test_a_weighted_stream_resumes_and_issues_again(two_kinds: tuple[Question, ...], taken: int) -> None:
    weights = {"Rare": 3.0}
    whole = PromptStream(two_kinds, encoder(), seed=3, weights=weights).take(40)
    assert len({prompt.id for prompt in whole}) == 40
    stream = PromptStream(two_kinds, encoder(), seed=3, weights=weights)
    stream.take(taken)
    resumed = PromptStream(two_kinds, encoder(), seed=3, state=stream.state(), weights=weights)
    assert [prompt.id for prompt in resumed.take(40 - taken)] == [prompt.id for prompt in whole[taken:]]
    assert resumed.reissue([whole[17].id])[0].question == whole[17].question
    with pytest.raises(ValueError, match=r"data\.sampling_weights"):
        PromptStream(two_kinds, encoder(), seed=3, state=stream.state())


def test_a_prompt_whose_image_is_broken_by_now_is_dropped_and_counted(questions: tuple[Question, ...]) -> None:
    stream = PromptStream(questions, encoder(), seed=3)
    unused = stream.take(4)
    Path(unused[1].question.image_path).write_text("no image")
    resumed = PromptStream(questions, encoder(), seed=3, state=stream.state())
    again = resumed.reissue([prompt.id for prompt in unused])
    broken = unused[1].question.image_path
    assert [prompt.id for prompt in again] == [p.id for p in unused if p.question.image_path != broken]
    assert resumed.state().dropped == {"image unreadable": len(unused) - len(again)}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"Ultra": 1.0}, "'Ultra' is not a modality or question type"),
        ({"Rare": -1.0}, "'Rare' has weight -1.0"),
        ({"Rare": float("nan")}, "has weight nan"),
        ({"CT": 0.0}, "all training questions have weight 0"),
    ],
)
def test_weights_that_mean_nothing_are_refused(
    two_kinds: tuple[Question, ...], weights: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PromptStream(two_kinds, encoder(), seed=3, weights=weights)


@pytest.fixture
def four_options(questions: tuple[Question, ...]) -> tuple[Question, ...]:
    return tuple(
        dataclasses.replace(question, options=tuple(f"{question.id}-{x}" for x in "wxyz"), answer=i % 4)
        for i, question in enumerate(questions)
    )


def test_shuffled_options_take_the_gold_letter_along(four_options: tuple[Question, ...]) -> None:
    given = {question.id: question for question in four_options}
    letters: Counter[str] = Counter()
    orders: set[tuple[str, ...]] = set()
    for prompt in PromptStream(four_options, encoder(), seed=3, options_shuffled=True).take(2000):
        question, original = prompt.question, given[prompt.question.id]
        assert sorted(question.options) == sorted(original.options)
        assert question.options[question.answer] == original.options[original.answer]
        letters[question.gold_letter] += 1
        if question.id == "q:0":
            orders.add(question.options)
    assert all(count == pytest.approx(500, abs=100) for count in letters.values())
    assert len(orders) == 24, "200 epochs show each of the 24 orders"


def test_a_stream_of_shuffled_options_resumes_and_issues_again(four_options: tuple[Question, ...]) -> None:
    whole = PromptStream(four_options, encoder(), seed=3, options_shuffled=True).take(25)
    stream = PromptStream(four_options, encoder(), seed=3, options_shuffled=True)
    stream.take(13)
    resumed = PromptStream(four_options, encoder(), seed=3, state=stream.state(), options_shuffled=True)
    assert [prompt.question for prompt in resumed.take(12)] == [prompt.question for prompt in whole[13:]]
    again = resumed.reissue([prompt.id for prompt in whole])
    assert [prompt.question for prompt in again] == [prompt.question for prompt in whole]
    with pytest.raises(ValueError, match=r"data\.shuffle_options"):
        PromptStream(four_options, encoder(), seed=3, state=stream.state())


def test_a_question_outside_the_pass_rate_limits_rests_for_an_epoch(questions: tuple[Question, ...]) -> None:
    rates = {f"q:{i}": i / 9 for i in range(10)}
    stream = PromptStream(questions, encoder(), seed=3, pass_rate_limits=(0.2, 0.8))

    def epoch(count: int) -> set[str]:
        prompts = stream.take(count)
        for prompt in prompts:
            stream.observe(prompt.id, rates[prompt.question.id])
        return {prompt.question.id for prompt in prompts}

    within = {f"q:{i}" for i in range(2, 8)}  # 2/9 = 0.22 and 7/9 = 0.78
    assert epoch(10) == set(rates)
    assert epoch(6) == within
    stream.take(1)  # skips what may be left of the second epoch, in which four questions rest
    assert stream.state().epoch == 2
    assert stream.state().dropped == {RESTING: 4}
    # Asked again in the third epoch, where they pass; so none rests in the fourth.
    rates = dict.fromkeys(rates, 0.5)
    stream = PromptStream(
        questions, encoder(), 3, dataclasses.replace(stream.state(), position=0), pass_rate_limits=(0.2, 0.8)
    )
    assert epoch(10) == set(rates)
    assert epoch(10) == set(rates)


def test_a_question_at_a_limit_or_within_at_last_does_not_rest(questions: tuple[Question, ...]) -> None:
    stream = PromptStream(questions, encoder(), seed=3, pass_rate_limits=(0.25, 0.75))
    for number, prompt in enumerate(stream.take(10)):
        if number == 0:  # asked twice, as with weights: the last group counts
            stream.observe(prompt.id, 0.0)
        stream.observe(prompt.id, 0.25 if number % 2 else 0.75)
    assert stream.state().resting == {}


def test_when_all_questions_rest_the_next_epoch_goes_on(questions: tuple[Question, ...]) -> None:
    stream = PromptStream(questions, encoder(), seed=3, pass_rate_limits=(0.2, 0.8))
    for prompt in stream.take(10):
        stream.observe(prompt.id, 1.0)
    assert stream.take(1)[0].id.startswith("2.0:")
    assert stream.state().dropped == {RESTING: 10}


@pytest.mark.parametrize("taken", [1, 12, 23])
def test_a_stream_with_resting_questions_resumes(questions: tuple[Question, ...], taken: int) -> None:
    def take(stream: PromptStream, count: int) -> list[str]:
        ids: list[str] = []
        for _ in range(count):
            (prompt,) = stream.take(1)
            stream.observe(prompt.id, 1.0 if prompt.question.id in ("q:1", "q:5") else 0.5)
            ids.append(prompt.id)
        return ids

    whole = take(PromptStream(questions, encoder(), seed=3, pass_rate_limits=(0, 0.9)), 40)
    # Two of ten rest in every other epoch: 10, 8, 10, 8 and the first 4 of the next 10.
    assert Counter(id_.partition(".")[0] for id_ in whole) == {"0": 10, "1": 8, "2": 10, "3": 8, "4": 4}
    stream = PromptStream(questions, encoder(), seed=3, pass_rate_limits=(0, 0.9))
    take(stream, taken)
    saved = StreamState(**json.loads(json.dumps(dataclasses.asdict(stream.state()))))
    resumed = PromptStream(questions, encoder(), seed=3, state=saved, pass_rate_limits=(0, 0.9))
    assert take(resumed, 40 - taken) == whole[taken:]


def test_pass_rates_do_nothing_without_limits(questions: tuple[Question, ...]) -> None:
    stream = PromptStream(questions, encoder(), seed=3)
    for prompt in stream.take(10):
        stream.observe(prompt.id, 0.0)
    assert len({prompt.question.id for prompt in stream.take(10)}) == 10
    assert stream.state().resting == {}


def test_a_wait_for_groups_lets_go_of_no_image_that_was_decoded_ahead(questions: tuple[Question, ...]) -> None:
    stream = PromptStream(questions, encoder(), seed=3)
    stream.take(4)
    ahead = set(stream._encoder._images._kept)
    assert ahead
    assert stream.take(0) == []
    assert set(stream._encoder._images._kept) == ahead
    (prompt,) = stream.take(1)  # in place of a group of equal rewards
    assert ahead - {prompt.question.image_path} <= set(stream._encoder._images._kept)


@pytest.mark.parametrize("cache_bytes", [encoding.IMAGE_CACHE_BYTES, 1])
def test_images_of_the_next_prompts_are_decoded_ahead_and_once_however_many_they_are(
    cache_bytes: int, questions: tuple[Question, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoding, "IMAGE_CACHE_BYTES", cache_bytes)
    loaded: list[str] = []

    def load(path: str, size: int, fit: encoding.ImageFit) -> np.ndarray:
        loaded.append(path)
        return load_image(path, size, fit)

    monkeypatch.setattr(encoding, "load_image", load)
    stream = PromptStream(questions, encoder(), seed=3, ahead=2)
    stream.take(2)
    assert len(stream._encoder._images._kept) == 4, "the two that come next besides"
    monkeypatch.setattr(stream._encoder._decoders, "begin", lambda _: pytest.fail("decoded again"))
    stream._encoder.begin = lambda questions: None  # type: ignore[method-assign]
    assert len(stream.take(2)) == 2
    found = list(loaded)  # the threads may still be at the others
    assert len(found) == len(set(found)) <= 4


def test_questions_are_begun_beyond_the_end_of_an_epoch(questions: tuple[Question, ...]) -> None:
    """Or whoever trains on few questions would wait for each epoch's first."""
    begun: list[list[str]] = []
    stream = PromptStream(questions, encoder(), seed=3, ahead=9)
    stream._encoder.begin = lambda asked: begun.append([prompt_id for _, prompt_id in asked])  # type: ignore[method-assign]
    drawn = [prompt.id for prompt in stream.take(len(questions) - 1)]
    (first,) = begun
    assert first[: len(drawn)] == drawn
    assert {prompt_id.split(".")[0] for prompt_id in first} == {"0", "1"}
    drawn = [prompt.id for prompt in stream.take(len(questions))]
    assert begun[1][: len(drawn)] == drawn
    assert stream.state().epoch == 1


def test_a_resumed_run_looks_ahead_as_the_one_before(questions: tuple[Question, ...]) -> None:
    """The encoder forgets what is not named, and prompts that are issued again are named by themselves."""
    stream = PromptStream(questions, encoder(), seed=3, ahead=4)
    issued = [prompt.id for prompt in stream.take(2)]
    resumed = PromptStream(questions, encoder(), seed=3, state=stream.state(), ahead=4)
    begun: list[list[str]] = []
    resumed._encoder.begin = lambda asked: begun.append([prompt_id for _, prompt_id in asked])  # type: ignore[method-assign]
    resumed.begin(2)
    assert [prompt.id for prompt in resumed.reissue(issued)] == issued
    drawn = [prompt.id for prompt in resumed.take(2)]
    assert begun[1] == issued
    assert begun[2][:2] == drawn
    assert resumed.reissue([]) == []
    assert len(begun) == 3
