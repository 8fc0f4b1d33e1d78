"""The requests and the comparison of OmniMedVQA's two scores, as in its released code."""

from __future__ import annotations

from medr1_ray.evaluation.omnimedvqa_scores import candidate, most_similar, prefix_request, text_request
from medr1_ray.types import Question

QUESTION = Question("q", "/i.png", "Which organ is it?", ("lung", "liver"), 1, "CT", "Anatomy", "d")


def test_only_the_question_answering_score_shows_the_options() -> None:
    assert text_request(QUESTION) == (
        "Which organ is it?Here are 2 candidate answers:['lung', 'liver'] Only return what you think is the correct "
        "answer from the candidate answers, do not return any other irrelevant text!"
    )
    assert prefix_request(QUESTION) == "Question: Which organ is it?"
    assert candidate("lung") == " lung."


def test_the_most_similar_option_counts() -> None:
    # ratio = 2 * matches / lengths: "ab" with "abc" 4/5, with "abcd" 4/6; of equals the first.
    assert most_similar(("abcd", "abc", "abc"), "ab") == 1
    assert most_similar(("lung", "liver"), "It is the liver.") == 1
    assert most_similar(("lung", "liver"), "") is None
