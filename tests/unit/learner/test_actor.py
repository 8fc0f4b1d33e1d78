"""One rank around a fake DeepSpeed engine: shares of the loss, padding, several steps on a batch, and what is refused.

The same with DeepSpeed, against plain torch, is in tests/integration/learner/test_actor.py.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medr1_ray.base.shared_file import SharedFile
from medr1_ray.config import Config
from medr1_ray.learner.actor import LearnerActor
from medr1_ray.learner.batching import (
    batch_size,
    joined,
    logprobs_requests,
    mini_batches,
    pairs_of,
    plan,
    update_requests,
)
from medr1_ray.learner.messages import (
    BatchSize,
    ImitationRequest,
    LogprobsRequest,
    MicroBatch,
    MiniBatch,
    RankSettings,
    UpdateRequest,
)
from medr1_ray.types import Group
from tests.unit.learner.real_rank import real_rank
from tests.unit.learner.small_groups import group, group_of_lengths
from tests.unit.model.small_models import VOCABULARY


class Batch:
    """A packed micro-batch: the names of its groups, and its tokens."""

    def __init__(self, pairs: Any, plain: bool) -> None:
        self.names = [prompt.id for prompt, _ in pairs]
        self.size = sum(completions.token_ids.size for _, completions in pairs)
        self.plain = plain

    def to(self, device: torch.device) -> Batch:
        return self


class Engine:
    """Gives every token of a pass the same log-probability, the pass's own in `passes`; the last one goes on."""

    def __init__(self) -> None:
        self.passes = [-1.0]
        self.weight = torch.zeros((), requires_grad=True)
        self.optimizer = SimpleNamespace(param_groups=[{"lr": 0.0}, {"lr": 0.0}])
        self.norm = 0.5
        self.boundaries: list[bool] = []
        self.backwards: list[float] = []
        self.seen: list[list[str]] = []
        self.rates: list[list[float]] = []
        self.mode = "train"
        self.modes: list[str] = []
        self.module = torch.nn.Linear(1, 1)

    def __call__(self, batch: Batch) -> torch.Tensor:
        self.seen.append(batch.names)
        self.modes.append(self.mode)
        value = self.passes[min(len(self.rates), len(self.passes) - 1)]
        return (self.weight + value).expand(batch.size)

    def set_gradient_accumulation_boundary(self, is_last: bool) -> None:
        self.boundaries.append(is_last)

    def backward(self, loss: torch.Tensor) -> None:
        self.backwards.append(loss.item())

    def step(self) -> None:
        self.rates.append([each["lr"] for each in self.optimizer.param_groups])

    def get_global_grad_norm(self) -> float:
        return self.norm

    def eval(self) -> None:
        self.mode = "eval"

    def train(self) -> None:
        self.mode = "train"


class Images:
    """As `ImagePatcher`: a number of visual tokens for each image."""

    def __init__(self, *visual_tokens: int) -> None:
        self.visual_tokens = visual_tokens
        self.steps: list[str] = []

    def begin(self, images: Any) -> None:
        self.steps.append("begin")

    def step_done(self, digests: Any) -> None:
        self.steps.append("done")

    def __call__(self, images: Any) -> Images:
        return Images(*self.visual_tokens[: len(images)])


def a_rank(rank: int = 0, *, updates: int = 1, **sections: Any) -> tuple[Any, Engine]:
    """A rank of two, with its engine. A micro-batch has no image and is no tensor here."""
    settings = {
        "run": {"dir": Path("run")},
        "data": {"format": "phantoms", "root": Path("data")},
        "train": {"steps": 4, "updates_per_rollout": updates},
        "loss": {"importance_cap": None, "aggregation": "token", "clip_low": 0.5, "clip_high": 0.5, "kl_beta": 0.0},
        "learner": {"world_size": 2, "learning_rate": 1.0, "schedule": "linear"},
    }
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values}
    actor: Any = LearnerActor(RankSettings.of(Config.model_validate(settings)), rank, f"learner-{rank}")
    engine = Engine()
    actor._device, actor._engine, actor._reference = torch.device("cpu"), engine, None
    actor._patch = Images()
    actor._patched = lambda pairs: None
    actor._pack = lambda pairs, images, plain: Batch(pairs, plain)
    return actor, engine


def with_advantages(name: str, tokens: int, advantage: float) -> Group:
    """One completion of `tokens` tokens."""
    return replace(group(name, tokens + 6), advantages=np.array([advantage], np.float32))


# Of a batch of 10 tokens this rank has 3 with advantage 2 and 1 with advantage -1; `a` is repeated as padding.
GROUPS = (with_advantages("a", 3, 2.0), with_advantages("b", 1, -1.0))
BATCHES = (MicroBatch((0,)), MicroBatch((1,)), MicroBatch((0,), padding=True))
SIZE = BatchSize(completions=4, tokens=10, max_tokens=64)
WHOLE = (MiniBatch(BATCHES, SIZE),)


def test_an_update_is_this_ranks_share_of_the_whole_batch() -> None:
    actor, engine = a_rank()
    report = actor.update(UpdateRequest(0, GROUPS, WHOLE))
    # Ratio 1: -(3 * 2) / 10 and -(-1) / 10. DeepSpeed takes the mean over two ranks, so it is given twice that.
    assert engine.backwards == pytest.approx([-1.2, 0.2, 0.0])
    (step,) = report.steps
    assert (step.loss, step.grad_norm, step.learning_rate) == (pytest.approx(-0.5), 0.5, 1.0)
    assert engine.boundaries == [False, False, True], "gradients are reduced with the last micro-batch"
    assert engine.seen == [["a"], ["b"], ["a"]]
    assert engine.rates == [[1.0, 1.0]], "of both parameter groups"
    assert report.sums.tokens == 4, "padding counts in no statistic"
    assert [span.phase for span in report.spans] == ["pack", "forward_backward", "optimizer_step"]
    assert {span.actor for span in report.spans} == {"learner-0"}
    assert actor._patch.steps == ["begin", "done"], "images are kept for the step"
    assert actor.update(UpdateRequest(1, GROUPS, WHOLE)).spans[0].phase == "pack", "spans are given once"


def test_several_steps_on_a_batch_keep_the_policy_before_the_first_as_the_old_one() -> None:
    actor, engine = a_rank(updates=2)
    engine.passes = [-1.0, -1.0 + math.log(1.25)]
    report = actor.update(UpdateRequest(2, GROUPS, WHOLE))
    # The second step's ratio is 1.25, within the clip range: 1.25 times the loss.
    assert [step.loss for step in report.steps] == pytest.approx([-0.5, -0.625])
    # Steps 2 and 3 of four, falling linearly from 1.
    assert [step.learning_rate for step in report.steps] == [0.5, 0.25]
    assert report.sums.tokens == 8
    assert report.sums.ratio_max == pytest.approx(1.25)


def test_each_mini_batch_has_a_step_and_all_are_compared_with_the_policy_before_the_first() -> None:
    actor, engine = a_rank()
    engine.passes = [-1.0, -1.0 + math.log(1.25)]
    sizes = BatchSize(completions=2, tokens=6, max_tokens=64), BatchSize(completions=2, tokens=4, max_tokens=64)
    parts = tuple(MiniBatch((MicroBatch((i,)),), size) for i, size in enumerate(sizes))
    report = actor.update(UpdateRequest(2, GROUPS, parts))
    # `b` is scored before any step and learned from after one, whose ratio of 1.25 it has then.
    assert engine.seen == [["b"], ["a"], ["b"]]
    assert engine.modes == ["eval", "train", "train"]
    assert [step.loss for step in report.steps] == pytest.approx([-(3 * 2) / 6, -(-1 * 1.25) / 4])
    assert [step.learning_rate for step in report.steps] == [0.5, 0.25], "a policy version each"
    assert engine.boundaries == [True, True]
    assert report.sums.tokens == 4
    assert report.sums.ratio_max == pytest.approx(1.25)
    spans = [span.phase for span in report.spans]
    assert spans == ["pack", "old_logprobs", *["forward_backward", "optimizer_step"] * 2]


def test_several_passes_over_mini_batches_start_from_the_same_old_policy() -> None:
    actor, engine = a_rank(updates=2)
    engine.passes = [-1.0 + math.log(ratio) for ratio in (1.0, 1.1, 1.2, 1.3)]
    parts = tuple(MiniBatch((MicroBatch((i,)),), SIZE) for i in range(2))
    groups = tuple(
        replace(each, completions=replace(each.completions, versions=np.full_like(each.completions.versions, 2)))
        for each in GROUPS
    )
    report = actor.update(UpdateRequest(2, groups, parts))
    assert engine.seen == [["b"], ["a"], ["b"], ["a"], ["b"]]
    assert [step.loss for step in report.steps] == pytest.approx([-0.6, 0.11, -0.6 * 1.2, 0.13])
    assert report.sums.tokens == 8
    # By the policy before the update, and each token once, although the policy has moved when `b` is learned from.
    gap = np.concatenate([each.completions.rollout_logprobs + 1 for each in GROUPS])
    assert report.sums.gap_tokens == 4
    assert report.sums.gap == pytest.approx(np.abs(gap).sum())
    assert report.sums.drift_tokens == 0
    assert engine.modes == ["eval", *["train"] * 4]


def test_demonstrations_are_imitated_by_the_mean_over_all_tokens_of_the_batch() -> None:
    actor, engine = a_rank()
    engine.passes = [-0.5]
    pairs = tuple((each.prompt, each.completions) for each in GROUPS)
    report = actor.imitate(ImitationRequest(1, pairs, BATCHES, SIZE))
    # 3 and 1 of 10 tokens at 0.5 nats each, and padding at weight 0; twice that for two ranks.
    assert engine.backwards == pytest.approx([0.3, 0.1, 0.0])
    (step,) = report.steps
    assert (step.loss, step.learning_rate) == (pytest.approx(0.2), 0.75)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_a_skipped_step(norm: float) -> None:
    actor, engine = a_rank()
    engine.norm = norm
    (step,) = actor.update(UpdateRequest(2, GROUPS, WHOLE)).steps
    assert step.skipped
    engine.norm = 0.5
    (step,) = actor.update(UpdateRequest(3, GROUPS, WHOLE)).steps
    assert not step.skipped


def test_without_a_kl_nothing_is_prepared_but_images() -> None:
    actor, _ = a_rank()
    begun: list[int] = []
    actor._patch.begin = lambda images: begun.append(len(images))
    pairs = tuple((each.prompt, each.completions) for each in GROUPS)
    assert actor.prepare(LogprobsRequest(pairs, BATCHES, plain=False)) == []
    assert begun == [2]


def test_the_reference_scores_every_group_once_and_padding_in_vain() -> None:
    actor, _ = a_rank(loss={"kl_beta": 0.1})
    actor._patch = Images(2, 2)
    numbers = iter([1.0, 2.0, 3.0])
    actor._reference = SimpleNamespace(
        release=lambda: None,
        logprobs=lambda batches: [torch.full((batch.size,), next(numbers)) for batch in batches]
    )
    pairs = tuple((each.prompt, each.completions) for each in GROUPS)
    together = (MicroBatch((1, 0)), MicroBatch((0,), padding=True))
    found = actor.prepare(LogprobsRequest(pairs, together, plain=False))
    assert [each.tolist() for each in found] == [[1.0], [1.0] * 3]
    scored = tuple(
        replace(each, reference_logprobs=np.zeros(each.completions.token_ids.size, np.float32)) for each in GROUPS
    )
    report = actor.update(UpdateRequest(0, scored, WHOLE))
    # k3 with d = 0 - (-1) = 1: e - 2 for each of four tokens.
    assert report.sums.kl == pytest.approx(4 * (math.e - 2), rel=1e-5)
    assert report.spans[0].phase == "reference", "with the update that takes it"


@pytest.mark.parametrize("plain", [False, True])
def test_log_probabilities_of_groups_come_in_the_order_of_the_micro_batches(plain: bool) -> None:
    actor, engine = a_rank()
    actor._patch = Images(9, 4)
    pairs = tuple((each.prompt, each.completions) for each in GROUPS)
    modes: list[str] = []
    call = engine.__class__.__call__

    class Watched(Engine):
        def __call__(self, batch: Batch) -> torch.Tensor:
            modes.append(f"{self.mode} {batch.plain}")
            return call(self, batch)

    actor._engine = engine = Watched()
    found = actor.logprobs(LogprobsRequest(pairs, (MicroBatch((1, 0)), MicroBatch((1,), padding=True)), plain))
    assert [each.policy_logprobs.tolist() for each in found] == [[-1.0], [-1.0] * 3]
    assert [each.visual_tokens for each in found] == [9, 4]
    assert modes == [f"eval {plain}"] * 2
    assert engine.mode == "train"


def test_another_number_of_visual_tokens_than_the_engines_is_refused() -> None:
    actor, _ = a_rank()
    del actor._patched
    actor._patch = Images(5)
    pair = (GROUPS[0].prompt, replace(GROUPS[0].completions, actor="rollout-0"))
    with pytest.raises(ValueError, match=r"'a' became 2 visual tokens in rollout-0 and 5 in learner-0"):
        actor._patched([pair])
    actor._patch = Images(2)
    assert actor._patched([pair]).visual_tokens == (2,)


def test_weights_that_are_not_finite_are_neither_saved_nor_published(tmp_path: Path) -> None:
    actor, engine = a_rank()
    begun: list[tuple[Path, bool]] = []
    actor._checkpoint = SimpleNamespace(begin=lambda folder, behind: begun.append((folder, behind)))
    engine.module = torch.nn.Linear(1, 1)
    actor.begin_save(tmp_path, True)
    assert begun == [(tmp_path, True)]
    with torch.no_grad():
        engine.module.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match="bias"):
        actor.begin_save(tmp_path, True)
    with pytest.raises(FloatingPointError, match="bias"):
        actor.publish_weights(3, to_newcomers=False)
    assert len(begun) == 1


def test_a_rank_looks_for_the_drivers_files_and_leaves_one_for_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    actor, _ = a_rank(1)
    logs: list[Path] = []
    monkeypatch.setattr("medr1_ray.learner.actor.write_output_to", lambda path, name: logs.append(path))
    run = tmp_path / "run"
    ours = SharedFile.mark("run.dir", run, run / "logs" / ".driver")
    mark = actor.open_log((ours,), run)
    assert (mark.key, mark.path) == ("run.dir", run / "logs" / ".learner-1")
    assert logs == [run / "logs" / "learner-1.log"]
    mark.require()
    ours.path.unlink()
    with pytest.raises(ValueError, match=r"^run\.dir=.* does not see .*/logs/\.driver of node"):
        actor.open_log((ours,), run)
    assert len(logs) == 1, "no log where the driver would not see it"


def groups_with_images() -> list[Group]:
    """Four groups of five completions, whose prompts have 19 tokens: 11 of text, 8 of the image."""
    random = np.random.default_rng(0)
    found = []
    for i in range(4):
        lengths = tuple(random.integers(2, 8, 5).tolist())
        made = group_of_lengths(f"p{i}", lengths, tuple(random.normal(size=5).tolist()))
        count = sum(lengths)
        ids = random.integers(3, 58, 12).astype(np.int32)
        ids[2:5] = [VOCABULARY.vision_start, VOCABULARY.image_pad, 59]
        image = random.integers(0, 256, (112, 56, 3), dtype=np.uint8)
        completions = replace(
            made.completions,
            token_ids=random.integers(3, 58, count).astype(np.int32),
            rollout_logprobs=random.normal(-4, 1, count).astype(np.float32),
            versions=random.integers(-1, 1, count).astype(np.int32),
            visual_tokens=8,
        )
        found.append(replace(made, prompt=replace(made.prompt, token_ids=ids, image=image), completions=completions))
    return found


@pytest.mark.parametrize("aggregation", ["sequence", "token", "dr_grpo"])
@pytest.mark.parametrize(("ratio", "kl_beta"), [("token", 0.0), ("token", 0.1), ("sequence", 0.1)])
def test_groups_that_are_cut_over_rows_teach_the_same(aggregation: str, ratio: str, kl_beta: float) -> None:
    """As the driver does it, on a real model: reference, old log-probabilities of a second mini-batch, and update."""
    groups, settings = groups_with_images(), {"aggregation": aggregation, "ratio": ratio, "kl_beta": kl_beta}
    pairs = pairs_of(groups)

    def run(micro_batch_tokens: int) -> Any:
        rank, engine = real_rank(
            train={"steps": 2, "minibatches": 2, "prompts_per_step": 4},
            loss={**settings, "clip_low": 0.004, "clip_high": 0.004, "importance_cap": 2.0},
            learner={"micro_batch_tokens": micro_batch_tokens, "learning_rate": 0.01, "schedule": "constant"},
            rollout={"temperature": 0.7},
        )
        learner = rank._settings.learner
        dealt = plan(pairs, learner)
        (request,) = logprobs_requests(pairs, dealt)
        policy = rank.logprobs(request)
        assert {each.visual_tokens for each in policy} == {8}
        found = joined(pairs, dealt, [[each.policy_logprobs for each in policy]])
        ready = groups
        if kl_beta:
            reference = joined(pairs, dealt, [rank.prepare(request)])
            ready = [replace(each, reference_logprobs=of) for each, of in zip(groups, reference, strict=True)]
            found += reference
        parts = mini_batches(ready, 2)
        sizes = [batch_size(pairs_of(part), 64) for part in parts]
        (update,), _ = update_requests(parts, sizes, learner, 0)
        report = rank.update(update)
        return SimpleNamespace(found=found, report=report, engine=engine)

    # Rows of 37 to 43 tokens; 30 have room for the prompt and two to four completions.
    whole, cut = run(1000), run(30)
    assert {rows for rows, _ in whole.engine.rows} == {2, 4}
    assert max(rows * tokens for rows, tokens in cut.engine.rows) <= 30
    for ours, theirs in zip(cut.found, whole.found, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    assert [step.loss for step in cut.report.steps] == pytest.approx([step.loss for step in whole.report.steps], 1e-5)
    assert vars(cut.report.sums) == pytest.approx(vars(whole.report.sums), rel=1e-5, abs=1e-5)
    assert whole.report.sums.clipped_low + whole.report.sums.clipped_high > 0, "the second step's ratios are not 1"
    assert whole.report.sums.drift_tokens > 0
    assert [span.phase for span in cut.report.spans] == [span.phase for span in whole.report.spans]
    for ours, theirs in zip(cut.engine.gradients, whole.engine.gradients, strict=True):
        for name, gradient in theirs.items():
            # The bias of the keys has only rounding for a gradient, which softmax ignores.
            assert (ours[name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7, name
