"""Adapters and supervised steps under real DeepSpeed: one rank at ZeRO-1 and two at ZeRO-3, against plain torch."""

import tempfile

import numpy as np
import peft
import pytest
import ray
import torch
from safetensors.torch import load_file

from medr1_ray.config import Config, tiny_model_path
from medr1_ray.learner import grpo
from medr1_ray.learner.handle import Learner
from medr1_ray.model import packing
from medr1_ray.model.checkpoint_files import load_model
from medr1_ray.model.family import checkpoint_name
from medr1_ray.model.image_patches import ImagePatcher
from medr1_ray.model.lora import Adapters
from medr1_ray.model.policy import Policy
from medr1_ray.model.vocabulary import load_vocabulary
from tests.integration.learner.by_hand import plain_batch, train_twice

RATE, STEPS = 1e-3, 4


def config(**learner) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": tempfile.mkdtemp()},
            "model": {"lora": {"rank": 4, "alpha": 8}},
            "data": {"format": "phantoms", "root": "unused"},
            "train": {"steps": STEPS, "prompts_per_step": 7, "group_size": 4},
            "loss": {"kl_beta": 0.5, "importance_cap": 1.5},
            "learner": {"cpus_per_rank": 0.25, "learning_rate": RATE, "max_grad_norm": 100.0, **learner},
        }
    )


@pytest.fixture(scope="module")
def learners(ray_cluster):
    one = Learner(config(world_size=1, zero_stage=1), name="lora-one")
    # So few tokens that ranks need several micro-batches and one of them padding.
    two = Learner(config(world_size=2, zero_stage=3, micro_batch_tokens=64), name="lora-two")
    one.start()
    two.start()
    yield one, two
    one.close()
    two.close()


@pytest.fixture(scope="module")
def trained(learners, groups, tmp_path_factory):
    """Both learners after two updates: their reports and saved folders."""
    return train_twice(learners, groups, tmp_path_factory)


def by_hand(groups):
    """The same two updates by torch alone: plain rows, one AdamW over the adapters, the start model as reference."""
    settings = config()
    vocabulary = load_vocabulary(tiny_model_path())
    model, start = (load_model(tiny_model_path(), torch.float32, settings.model) for _ in range(2))
    adapters = Adapters(model, settings.model.lora, vision=True, seed=settings.train.seed)
    policy, reference = Policy(model, vocabulary, 1.0), Policy(start, vocabulary, 1.0)
    batch, tokens = plain_batch(groups, policy, reference, settings)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    losses, norms = [], []
    for step in range(2):
        optimizer.param_groups[0]["lr"] = RATE * (STEPS - step) / STEPS
        logprobs = policy(batch)
        loss, _ = grpo.loss_and_sums(logprobs, logprobs.detach(), tokens, settings.loss, step)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, 100.0).item())
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    weights, factors = (
        [(name, parameter.detach()) for name, parameter in named]
        for named in (adapters.named_parameters(), adapters.factors())
    )
    merged = adapters.merged(weights, dict(factors))
    return losses, norms, {checkpoint_name(name): tensor for name, tensor in merged}


def test_updates_and_merged_checkpoints_are_those_of_plain_torch(trained, groups):
    losses, norms, merged = by_hand(groups)
    start = load_file(tiny_model_path() / "model.safetensors")
    for reports, folder in trained:
        assert [report.steps[0].loss for report in reports] == pytest.approx(losses, rel=1e-5, abs=1e-6)
        assert [report.steps[0].grad_norm for report in reports] == pytest.approx(norms, rel=1e-4)
        assert reports[0].statistics.kl == pytest.approx(0.0, abs=1e-7)
        assert reports[1].statistics.kl > 1e-6, "the reference is the start model, not the policy"
        saved = load_file(folder / "model.safetensors")
        assert saved.keys() == merged.keys() == start.keys()
        moved = {name for name in saved if not torch.equal(saved[name], start[name])}
        assert moved == {name for name in saved if not torch.equal(merged[name], start[name])}
        assert len(moved) == 42  # the linear layers: 4 x 7 in the language model, 3 x 4 + 2 in the vision tower
        for name in moved:
            change, expected = saved[name] - start[name], merged[name] - start[name]
            # Adam makes steps of the rate out of gradients of any size, rounding included: as a whole, not one by one.
            assert (change - expected).norm() < 0.02 * expected.norm(), name


def test_engines_peft_and_transformers_get_what_was_learned(learners, trained, groups):
    from medr1_ray.weights.buckets import read_bucket, tensor_spec

    pairs = [(group.prompt, group.completions) for group in groups]
    vocabulary = load_vocabulary(tiny_model_path())
    start = load_file(tiny_model_path() / "model.safetensors")

    def told_and_gathered(rank, frozen):
        source = rank._source
        return source.specs(frozen=frozen), [tensor_spec(*named) for named in source.tensors(frozen=frozen)]

    for learner, (_, folder) in zip(learners, trained, strict=True):
        update = learner.publish_weights(2)
        exported, unchanged = (
            {
                name: tensor
                for bucket in update.buckets
                if bucket.frozen == frozen
                for name, tensor in read_bucket(ray.get(bucket.data).copy(), bucket)
            }
            for frozen in (False, True)
        )
        assert unchanged.keys() == start.keys()
        assert all(torch.equal(unchanged[name], start[name]) for name in start)
        in_peft = load_file(folder / "adapter" / "adapter_model.safetensors")
        saved = {checkpoint_name(name.removeprefix("base_model.model.")): tensor for name, tensor in in_peft.items()}
        assert len(exported) == 2 * 42
        assert exported.keys() == saved.keys()
        assert all(torch.equal(exported[name], saved[name]) for name in saved)
        for frozen in (False, True):
            calls = [rank.__ray_call__.remote(told_and_gathered, frozen) for rank in learner._ranks]
            for told, gathered in ray.get(calls):
                assert told == gathered
        scores = np.concatenate([score.policy_logprobs for score in learner.logprobs(pairs)])
        merged = load_model(folder, torch.float32, learner._config.model)
        beside = load_model(tiny_model_path(), torch.float32, learner._config.model)
        beside = peft.PeftModel.from_pretrained(beside, folder / "adapter").base_model.model
        images = ImagePatcher(folder)([prompt.image for prompt, _ in pairs])
        for model in (merged, beside):
            policy = Policy(model, vocabulary, 1.0)
            batch = packing.pack_plain(pairs, images, vocabulary.image_pad, vocabulary.pad, policy.prompt_positions)
            with torch.no_grad():
                np.testing.assert_allclose(scores, policy(batch).numpy(), atol=1e-4)


def test_a_loaded_checkpoint_goes_on_with_its_adapters(learners, trained, groups):
    for learner, (_, folder) in zip(learners, trained, strict=True):
        went_on = learner.update(groups, 2)
        learner.load(folder)
        resumed = learner.update(groups, 2)
        assert resumed.steps == went_on.steps
        assert resumed.statistics.kl == went_on.statistics.kl


def test_imitation_takes_the_mean_log_likelihood_of_all_tokens(learners, trained, groups):
    # Seven prompts whose completions count as given ones: the loss is minus the mean of what `score` says.
    demonstrations = [(group.prompt, group.completions) for group in groups]
    tokens = sum(completions.token_ids.size for _, completions in demonstrations)
    reports = []
    for learner, (_, folder) in zip(learners, trained, strict=True):
        learner.load(folder)
        before = np.concatenate([score.policy_logprobs for score in learner.logprobs(demonstrations)])
        report = learner.imitate(demonstrations, 2)
        after = np.concatenate([score.policy_logprobs for score in learner.logprobs(demonstrations)])
        assert report.step.loss == pytest.approx(-before.mean(), rel=1e-5)
        assert after.mean() > before.mean() + 1e-3
        assert (report.version, report.tokens, before.size) == (3, tokens, tokens)
        assert report.padded_tokens > tokens
        reports.append(report)
    one, two = reports
    assert two.step.loss == pytest.approx(one.step.loss, rel=1e-4)
    assert two.step.grad_norm == pytest.approx(one.step.grad_norm, rel=1e-3)
