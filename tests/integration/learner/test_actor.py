"""Real DeepSpeed under Ray: one rank at ZeRO-1 and two at ZeRO-3, against an update written out in plain torch."""

import os
import tempfile
from dataclasses import dataclass, replace

import numpy as np
import pytest
import ray
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from medr1_ray.config import (
    Config,
    DataSettings,
    LearnerSettings,
    LossSettings,
    ModelSettings,
    ReferenceSettings,
    RunSettings,
    TrainSettings,
    tiny_model_path,
)
from medr1_ray.learner import grpo
from medr1_ray.learner.batching import plan
from medr1_ray.learner.handle import Learner
from medr1_ray.learner.optimizer_files import KINDS, OptimizerFiles
from medr1_ray.model.checkpoint_files import load_model
from medr1_ray.model.family import checkpoint_name
from medr1_ray.model.policy import Policy
from medr1_ray.model.vocabulary import load_vocabulary
from tests.faults.processes import frozen
from tests.integration.learner.by_hand import plain_batch, save, train_twice

RATE, STEPS, BETA = 1e-4, 4, 0.5
# Adam makes a step of about the rate out of a gradient of any size, rounding noise included. Kernels of other
# processors sum in other orders, so steps are compared to a tenth of the rate where the gradient is larger than this
# share of the largest one (nine of ten elements), or exactly 0. Where it is noise, a step has the rate's size at most.
NOISE = 1e-4
STEP_BOUND = RATE / 10


def config(**learner) -> Config:
    return Config(
        run=RunSettings(dir=tempfile.mkdtemp()),
        model=ModelSettings(path="tiny"),
        data=DataSettings(format="phantoms", root="unused"),
        train=TrainSettings(steps=STEPS, prompts_per_step=7, group_size=4),
        loss=LossSettings(kl_beta=BETA, importance_cap=1.5),
        learner=LearnerSettings(
            cpus_per_rank=0.25, learning_rate=RATE, weight_decay=0.1, max_grad_norm=0.5, **learner
        ),
    )


@pytest.fixture(scope="module")
def learners(ray_cluster):
    waiting = {"reference": ReferenceSettings(placement="cpu")}
    one = Learner(config(world_size=1, zero_stage=1).model_copy(update=waiting), name="one")
    # So few tokens that all groups are cut over rows, and that ranks need several micro-batches, one of them padding.
    two = Learner(
        config(world_size=2, zero_stage=3, micro_batch_tokens=26).model_copy(
            update={"reference": ReferenceSettings(sharded=True)}
        ),
        name="two",
    )
    one.start()
    two.start()
    yield one, two
    one.close()
    two.close()


@pytest.fixture(scope="module")
def trained(learners, groups, tmp_path_factory):
    """Both learners after two updates: their reports and saved folders."""
    return train_twice(learners, groups, tmp_path_factory)


@dataclass
class ByHand:
    """`known` says, for each parameter, which elements' gradients were more than rounding noise in every step."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, torch.Tensor]
    known: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def by_hand(groups) -> ByHand:
    """The same two updates by torch alone: the whole batch at once, plain rows, one AdamW, one clipping."""
    settings = config()
    vocabulary = load_vocabulary(tiny_model_path())

    def load():
        model = load_model(tiny_model_path(), torch.float32, settings.model)
        return Policy(model, vocabulary, settings.rollout.temperature)

    policy, reference = load(), load()
    batch, tokens = plain_batch(groups, policy, reference, settings)
    parameters = list(policy.model.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    )
    losses, norms = [], []
    known = {name: torch.ones_like(p, dtype=torch.bool) for name, p in policy.model.named_parameters()}
    for step in range(2):
        for group in optimizer.param_groups:
            group["lr"] = RATE * (STEPS - step) / STEPS
        logprobs = policy(batch)
        loss, _ = grpo.loss_and_sums(logprobs, logprobs.detach(), tokens, settings.loss, step)
        loss.backward()
        largest = max(p.grad.abs().max() for p in parameters)
        for name, p in policy.model.named_parameters():
            known[name] &= (p.grad.abs() > NOISE * largest) | (p.grad == 0)
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 0.5).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return ByHand(losses, norms, policy.model.state_dict(), known)


def assert_same_steps(found, expected, known, name):
    """Two results of the same two steps from the same weights."""
    torch.testing.assert_close(
        found[known], expected[known], rtol=0, atol=STEP_BOUND, msg=lambda message: f"{name}: {message}"
    )
    # Steps of opposite signs, of the rates of both updates.
    assert (found - expected).abs().max() < 2 * (RATE + 0.75 * RATE), name


def test_most_elements_have_a_gradient_that_is_not_noise(by_hand):
    known = torch.cat([mask.flatten() for mask in by_hand.known.values()])
    assert known.float().mean() > 0.85
    assert all(mask.any() for mask in by_hand.known.values())


def test_updates_are_those_of_plain_torch_whatever_the_ranks(trained, by_hand):
    assert min(by_hand.norms) > 0.5  # clipped, and so the scale of the gradient would not show otherwise
    for reports, folder in trained:
        assert [report.steps[0].loss for report in reports] == pytest.approx(by_hand.losses, rel=1e-5, abs=1e-6)
        assert [report.steps[0].grad_norm for report in reports] == pytest.approx(by_hand.norms, rel=1e-5)
        assert [report.steps[0].learning_rate for report in reports] == pytest.approx([RATE, 0.75 * RATE])
        saved = AutoModelForImageTextToText.from_pretrained(folder).state_dict()
        assert saved.keys() == by_hand.weights.keys()
        for name, known in by_hand.known.items():
            assert_same_steps(saved[name], by_hand.weights[name], known, name)


def test_mini_batches_are_steps_of_their_own_from_the_same_old_policy(groups):
    """Two ranks at ZeRO-3 on mini-batches of three and four groups, two of them cut, against torch on plain rows."""
    settings = config(world_size=2, zero_stage=3, micro_batch_tokens=30)
    train = settings.train.model_copy(update={"minibatches": 2, "prompts_per_step": 8})
    learner = Learner(settings.model_copy(update={"train": train}), name="parts")
    learner.start()
    try:
        report = learner.update(groups, 0)
    finally:
        learner.close()

    def load():
        model = load_model(tiny_model_path(), torch.float32, settings.model)
        return Policy(model, load_vocabulary(tiny_model_path()), settings.rollout.temperature)

    policy, reference = load(), load()
    parts = [plain_batch(part, policy, reference, settings) for part in (groups[:3], groups[3:])]
    parameters = list(policy.model.parameters())
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) == big] for big in (True, False))
    decays = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(decays, lr=RATE)
    with torch.no_grad():
        old = [policy(batch) for batch, _ in parts]
    losses, norms = [], []
    for (batch, tokens), before in zip(parts, old, strict=True):
        logprobs = policy(batch)
        loss, sums = grpo.loss_and_sums(logprobs, before, tokens, settings.loss, 0)
        without_ratio, _ = grpo.loss_and_sums(logprobs, logprobs.detach(), tokens, settings.loss, 0)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 0.5).item())
        optimizer.step()
        optimizer.zero_grad()
        for group in optimizer.param_groups:
            group["lr"] = 0.75 * RATE
        losses.append(loss.item())
    assert abs(losses[1] - without_ratio.item()) > 1e-3, "the policy has moved away from the old one"
    assert [step.loss for step in report.steps] == pytest.approx(losses, rel=1e-4, abs=1e-5)
    assert [step.grad_norm for step in report.steps] == pytest.approx(norms, rel=1e-3)
    assert [step.learning_rate for step in report.steps] == pytest.approx([RATE, 0.75 * RATE])
    assert (report.version, report.passes) == (2, 1)
    assert report.statistics.ratio_max == pytest.approx(sums.ratio_max, rel=1e-4)
    assert report.statistics.logprob_gap_tokens == sum(group.completions.token_ids.size for group in groups)


def test_groups_are_cut_on_one_side_only(learners, trained, groups):
    pairs = [(group.prompt, group.completions) for group in groups]
    whole, cut = (plan(pairs, learner._config.learner) for learner in learners)
    assert [row.group for row in whole.rows] == list(range(7))
    assert all(len(row.completions) < 4 for row in cut.rows)
    first, second = ({row.group for row in of_rank} for of_rank in cut.answered)
    assert first & second == {2}, "one group on both ranks"
    assert [each.padding for each in cut.ranks[1]] == [False] * 8 + [True]
    for (reports, _), each in zip(trained, (whole, cut), strict=True):
        assert {report.padded_tokens for report in reports} == {each.padded_tokens}


def test_one_and_two_ranks_agree(trained, by_hand):
    (one, one_folder), (two, two_folder) = trained
    for a, b in zip(one, two, strict=True):
        assert b.steps[0].loss == pytest.approx(a.steps[0].loss, abs=1e-5)
        for name, value in vars(a.statistics).items():
            assert getattr(b.statistics, name) == (value and pytest.approx(value, rel=1e-4, abs=1e-6)), name
        assert (a.version, a.groups, a.groups_zero_variance, a.groups_skipped) == (b.version, 7, 1, 0)
    a, b = (load_file(folder / "model.safetensors") for folder in (one_folder, two_folder))
    start = load_file(tiny_model_path() / "model.safetensors")
    assert a.keys() == b.keys() == start.keys()
    for name, known in by_hand.known.items():
        assert_same_steps(a[checkpoint_name(name)], b[checkpoint_name(name)], known, name)
    moved = sum((a[name] - start[name]).abs().mean() > RATE / 2 for name in a)
    assert moved > 0.9 * len(a)


def test_the_second_update_has_a_divergence_from_the_start_model(trained):
    for reports, _ in trained:
        assert reports[0].statistics.kl == pytest.approx(0.0, abs=1e-6)
        assert reports[1].statistics.kl > 1e-5


def test_exported_weights_are_the_saved_ones(learners, trained):
    from medr1_ray.weights.buckets import read_bucket

    for learner, (_, folder) in zip(learners, trained, strict=True):
        update = learner.publish_weights(2)
        exported = {
            name: tensor
            for bucket in update.buckets
            for name, tensor in read_bucket(ray.get(bucket.data).copy(), bucket)
        }
        saved = load_file(folder / "model.safetensors")
        assert update.version == 2
        assert exported.keys() == saved.keys()
        assert all(torch.equal(exported[name], saved[name]) for name in saved)


def test_what_a_rank_says_of_its_parameters_is_what_it_gathers(learners, trained):
    def told_and_gathered(rank):
        from medr1_ray.weights.buckets import tensor_spec

        source = rank._source
        return source.specs(frozen=False), [tensor_spec(*named) for named in source.tensors(frozen=False)]

    for learner in learners:
        for told, gathered in ray.get([rank.__ray_call__.remote(told_and_gathered) for rank in learner._ranks]):
            assert told == gathered


def test_scores_in_order_shared_and_plain(learners, trained, groups):
    pairs = [(group.prompt, group.completions) for group in groups]
    one, two = (learner.logprobs(pairs) for learner in learners)
    plain = learners[1].logprobs(pairs, plain=True)
    for group, a, b, c in zip(groups, one, two, plain, strict=True):
        assert a.visual_tokens == group.completions.visual_tokens
        assert a.policy_logprobs.shape == group.completions.token_ids.shape
        np.testing.assert_allclose(a.policy_logprobs, b.policy_logprobs, atol=1e-4)
        np.testing.assert_allclose(b.policy_logprobs, c.policy_logprobs, atol=1e-5)


def test_a_loaded_checkpoint_goes_on_as_if_nothing_had_happened(learners, trained, groups):
    for learner, (_, folder) in zip(learners, trained, strict=True):
        went_on = learner.update(groups, 2)
        learner.load(folder)
        resumed = learner.update(groups, 2)
        assert resumed.steps == went_on.steps


def test_a_checkpoint_is_of_the_moment_when_its_save_began(learners, trained, groups, tmp_path):
    """An update while the ranks write changes none of it."""
    for learner, (_, folder) in zip(learners, trained, strict=True):
        learner.load(folder)
        behind = tmp_path / learner._name
        behind.mkdir()
        learner.begin_save(behind)
        learner.update(groups, 2)
        while learner.is_saving():
            pass
        learner.finish_save()
        (steps, before), (steps_after, after) = everything_in(folder), everything_in(behind)
        assert steps == steps_after
        assert all(torch.equal(before[name], after[name]) for name in before)


def everything_in(folder):
    """Weights and optimizer state of a checkpoint, by name."""
    files = OptimizerFiles(folder / "learner_state")
    state = {
        f"{kind} of {name}": files.read(name, kind, 0, size) for name, size in files.sizes.items() for kind in KINDS
    }
    return files.steps, {**load_file(folder / "model.safetensors"), **state}


@pytest.fixture(scope="module")
def half(ray_cluster):
    """Two ranks at ZeRO-2 in bfloat16, which have not taken a step: their optimizer has no moments yet."""
    settings = config(world_size=2, zero_stage=2)
    settings = settings.model_copy(update={"model": ModelSettings(path="tiny", dtype="bfloat16")})
    learner = Learner(settings, name="half")
    learner.start()
    yield learner
    learner.close()


def test_a_checkpoint_has_the_same_state_at_any_number_of_ranks_and_stage(learners, half, trained, tmp_path):
    for learner, (_, folder) in zip((*learners, half), (*reversed(trained), trained[1]), strict=True):
        learner.load(folder)
        steps, before = everything_in(folder)
        saved = tmp_path / learner._name
        saved.mkdir()
        files = save(learner, saved)
        again, after = everything_in(saved)
        assert steps == again == 2
        assert before.keys() == after.keys()
        if learner is half:  # the weights themselves are the rounded ones
            masters = [name.removeprefix("master of model.") for name in after if name.startswith("master of ")]
            rounded = {name: after[f"master of model.{name}"].bfloat16() for name in masters}
            assert all(torch.equal(after[checkpoint_name(name)].flatten(), rounded[name]) for name in masters)
        same = [name for name in before if " of " in name or learner is not half]
        assert all(torch.equal(before[name], after[name]) for name in same)
        written = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
        assert {file.name for file in files} == written, "each file is told of by the rank that wrote it"
        assert sum(name.endswith(".json") and "optimizer" in name for name in written) == 1


def test_in_float32_the_masters_are_the_weights_and_are_saved_once(learners, half, trained, tmp_path):
    def same_as_weights(rank):
        import deepspeed

        state, same = rank._optimizer, []
        for _, parameter in state._trainable():
            fragment = state._fragment(parameter)
            with deepspeed.zero.GatheredParameters([parameter]):
                if fragment is not None:
                    part = parameter.detach().flatten().narrow(0, fragment.start, fragment.length)
                    same.append(torch.equal(part, state._tensor(fragment, "master")))
        return len(same) > 0 and all(same)

    for learner in learners:
        assert all(ray.get([rank.__ray_call__.remote(same_as_weights) for rank in learner._ranks]))
    for learner in (*learners, half):
        folder = tmp_path / learner._name
        folder.mkdir()
        save(learner, folder)
        keys = [key for file in (folder / "learner_state").glob("*.safetensors") for key in load_file(file)]
        assert keys
        assert any(key.startswith("master/") for key in keys) == (learner is half)


def test_a_checkpoint_of_another_layout_goes_on_as_its_own(learners, trained, groups):
    one, two = learners
    two.load(trained[1][1])
    expected = two.update(groups, 2).steps[0]
    one.load(trained[1][1])
    step = one.update(groups, 2).steps[0]
    assert (step.loss, step.grad_norm) == (
        pytest.approx(expected.loss, abs=1e-5),
        pytest.approx(expected.grad_norm, rel=1e-4),
    )


def test_a_gradient_that_is_not_finite_changes_nothing(learners, half, groups, tmp_path):
    wrong = replace(groups[0], advantages=np.full_like(groups[0].advantages, np.inf))
    for learner in (*learners, half):
        folders = [tmp_path / f"{learner._name}-{when}" for when in ("before", "after")]
        for folder in folders:
            folder.mkdir()
        save(learner, folders[0])
        report = learner.update([wrong, *groups[1:]], 2)
        save(learner, folders[1])
        (steps, before), (steps_after, after) = (everything_in(folder) for folder in folders)
        assert report.steps[0].skipped
        assert steps == steps_after
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not learner.update(groups, 3).steps[0].skipped


def test_another_number_of_visual_tokens_is_refused(learners, groups):
    group = groups[0]
    wrong = replace(group, completions=replace(group.completions, visual_tokens=5))
    with pytest.raises(ValueError, match=r"became 5 visual tokens in rollout-0 and 4 in one-0"):
        learners[0].update([wrong], 2)


def test_a_passed_deadline_names_the_rank_and_what_it_was_doing(learners):
    learner = Learner.__new__(Learner)
    vars(learner).update(vars(learners[0]))
    learner._sync_deadline = replace(learner._sync_deadline, seconds=0.1)
    rank = ray.get(learner._ranks[0].__ray_call__.remote(lambda self: os.getpid()))
    still = r"one-0: still publishing policy version 3 after 0\.1 s \(cluster\.sync_timeout_seconds\)"
    with frozen(rank), pytest.raises(RuntimeError, match=still):
        learner.publish_weights(3)


def test_weights_that_are_not_finite_are_neither_published_nor_saved(learners, tmp_path):
    def spoil(rank):
        parameter = next(p for p in rank._engine.module.parameters() if getattr(p, "ds_tensor", p).numel())
        with torch.no_grad():
            getattr(parameter, "ds_tensor", parameter).view(-1)[0] = float("nan")

    one, _ = learners
    ray.get(one._ranks[0].__ray_call__.remote(spoil))
    for attempt in (lambda: one.publish_weights(4), lambda: save(one, tmp_path)):
        with pytest.raises(RuntimeError, match=r"one-0 failed while .*the weights are no longer finite \(model\."):
            attempt()
    assert not list(tmp_path.iterdir())


def test_a_dead_rank_is_named(learners, groups):
    ray.kill(ray.get_actor("two-1"))
    with pytest.raises(RuntimeError, match=r"two-1 died while computing log-probabilities"):
        learners[1].logprobs([(group.prompt, group.completions) for group in groups])
