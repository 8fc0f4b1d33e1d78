"""Expected values are derived by hand, in the comments."""

import math

import pytest
import torch

from medr1_ray.config import LossSettings
from medr1_ray.learner import grpo
from medr1_ray.learner.grpo import TokenBatch
from medr1_ray.learner.messages import BatchSize, TokenSums


def tokens_of(advantages, weights=None, rollout=None, versions=None, reference=None, lengths=None):
    advantages = torch.tensor(advantages)
    return TokenBatch(
        lengths=torch.tensor([len(advantages)] if lengths is None else lengths),
        advantages=advantages,
        weights=torch.ones_like(advantages) if weights is None else weights,
        rollout_logprobs=torch.zeros_like(advantages) if rollout is None else torch.tensor(rollout),
        versions=torch.zeros(len(advantages), dtype=torch.int32)
        if versions is None
        else torch.tensor(versions),
        reference_logprobs=None if reference is None else torch.tensor(reference),
    )


NO_IMPORTANCE = LossSettings(importance_cap=None)


class TestAggregation:
    # Completions of 1 and 3 tokens with advantages 2 and -1, ratio 1: the tokens' objectives are 2, -1, -1, -1.
    @pytest.mark.parametrize(
        ("aggregation", "expected"),
        [
            ("sequence", -0.5),  # -(2 + (-3 / 3)) / 2
            ("token", 0.25),  # -(2 - 3) / 4
            ("dr_grpo", 0.1),  # -(2 - 3) / (2 completions * 5 tokens at most)
        ],
    )
    def test_loss(self, aggregation, expected):
        weights = grpo.token_weights(torch.tensor([1, 3]), aggregation, BatchSize(2, 4, 5))
        policy = torch.tensor([-0.5, -1.0, -2.0, -3.0])
        tokens = tokens_of([2.0, -1.0, -1.0, -1.0], weights)
        loss, _ = grpo.loss_and_sums(policy, policy, tokens, NO_IMPORTANCE, version=0)
        assert loss.item() == pytest.approx(expected, abs=1e-6)

    @pytest.mark.parametrize("aggregation", ["sequence", "token"])
    def test_weights_of_a_whole_batch_sum_to_one(self, aggregation):
        lengths = torch.tensor([3, 1, 7, 2, 2])
        weights = grpo.token_weights(lengths, aggregation, BatchSize(5, 15, 8))
        assert weights.shape == (15,)
        assert weights.sum().item() == pytest.approx(1.0, abs=1e-6)


class TestKL:
    # policy ln 1/2, reference ln 1/4: d = -ln 2 = -0.693147.
    @pytest.mark.parametrize(
        ("estimator", "value", "gradient"),
        [
            ("k1", 0.693147, 1.0),  # -d; its derivative in the policy is 1
            ("k2", 0.240227, 0.693147),  # d^2 / 2; -d
            ("k3", 0.193147, 0.5),  # 1/2 - 1 + 0.693147; 1 - exp(d)
        ],
    )
    def test_estimators(self, estimator, value, gradient):
        policy = torch.tensor([0.5]).log().requires_grad_()
        estimate = grpo.kl(policy, torch.tensor([0.25]).log(), estimator)
        estimate.sum().backward()
        assert estimate.item() == pytest.approx(value, abs=1e-6)
        assert policy.grad.item() == pytest.approx(gradient, abs=1e-6)

    def test_inside_the_loss_with_the_tokens_weight_and_without_importance(self):
        # Weight 1/4; objective 0 (advantage 0); the importance weight would be exp(2 - 0), capped at 2.
        settings = LossSettings(kl_beta=0.1, kl_estimator="k3", importance_cap=2.0)
        policy = torch.tensor([0.5]).log().requires_grad_()
        tokens = tokens_of([0.0], torch.tensor([0.25]), rollout=[-9.0], reference=[math.log(0.25)])
        loss, sums = grpo.loss_and_sums(policy, policy.detach(), tokens, settings, version=0)
        loss.backward()
        assert loss.item() == pytest.approx(0.25 * 0.1 * 0.193147, abs=1e-7)
        assert policy.grad.item() == pytest.approx(0.25 * 0.1 * 0.5, abs=1e-7)
        assert sums.kl == pytest.approx(0.193147, abs=1e-6)


class TestClipping:
    @pytest.mark.parametrize(
        ("ratio", "advantage", "objective", "gradient"),
        [
            (1.0, 1.0, 1.0, 1.0),
            (1.1, 1.0, 1.1, 1.1),
            (1.5, 1.0, 1.3, 0.0),  # clipped at 1 + high
            (1.5, -1.0, -1.5, -1.5),  # the minimum is the unclipped one
            (0.5, 1.0, 0.5, 0.5),
            (0.5, -1.0, -0.8, 0.0),  # clipped at 1 - low
        ],
    )
    def test_objective_and_gradient(self, ratio, advantage, objective, gradient):
        settings = LossSettings(clip_low=0.2, clip_high=0.3, importance_cap=None)
        old = torch.tensor([-1.0])
        policy = (old + math.log(ratio)).requires_grad_()
        loss, sums = grpo.loss_and_sums(policy, old, tokens_of([advantage]), settings, version=0)
        loss.backward()
        assert loss.item() == pytest.approx(-objective, abs=1e-6)
        assert policy.grad.item() == pytest.approx(-gradient, abs=1e-6)
        assert sums.ratio_max == pytest.approx(ratio, abs=1e-6)
        assert sums.clipped_high == (ratio == 1.5 and advantage > 0)
        assert sums.clipped_low == (ratio == 0.5 and advantage < 0)


class TestSequenceRatio:
    """GSPO, arXiv 2507.18071: eq. 7 for the ratio, eq. 5 for the objective."""

    OLD = torch.tensor([-1.0, -1.0, -1.0])
    # Completions of 2 and 1 tokens. Log-ratios ln 4 and 0: their mean is ln 2, s = 2. The other's is ln 0.9.
    LOG_RATIOS = torch.tensor([math.log(4), 0.0, math.log(0.9)])

    def loss(self, advantages, **settings):
        settings = LossSettings(ratio="sequence", importance_cap=None, **settings)
        policy = (self.OLD + self.LOG_RATIOS).requires_grad_()
        weights = grpo.token_weights(torch.tensor([2, 1]), "sequence", BatchSize(2, 3, 8))
        tokens = tokens_of(advantages, weights, lengths=[2, 1])
        loss, sums = grpo.loss_and_sums(policy, self.OLD, tokens, settings, version=0)
        loss.backward()
        return loss.item(), policy.grad, sums

    def test_is_the_geometric_mean_and_moves_all_tokens_alike(self):
        # Nothing clipped: -(2 * 1 + 0.9 * -1) / 2. The gradient of s in each token's log-probability is s / |o|:
        # -(1/2) * 1 * 2/2 for both tokens of the first, -(1/2) * -1 * 0.9 for the second.
        loss, gradient, sums = self.loss([1.0, 1.0, -1.0], clip_low=0.5, clip_high=2.0)
        assert loss == pytest.approx(-0.55, abs=1e-6)
        torch.testing.assert_close(gradient, torch.tensor([-0.5, -0.5, 0.45]))
        assert sums.ratio_max == pytest.approx(2.0, abs=1e-6)

    def test_clips_whole_completions(self):
        # s = 2 is clipped at 1.0004 and s = 0.9 at 0.9997: -(1.0004 * 1 + 0.9997 * -1) / 2, without gradient.
        loss, gradient, sums = self.loss([1.0, 1.0, -1.0], clip_low=3e-4, clip_high=4e-4)
        assert loss == pytest.approx(-0.00035, abs=1e-7)
        assert gradient.tolist() == [0.0, 0.0, 0.0]
        assert (sums.clipped_high, sums.clipped_low) == (2, 1)

    def test_the_importance_weight_is_the_completions_too(self):
        # Log-weights ln 4 and 0 again, and ln 9: s = 2 and 9, capped at 3. -(2 * 1 + 3 * 1) / 2.
        settings = LossSettings(ratio="sequence", importance_cap=3.0)
        weights = grpo.token_weights(torch.tensor([2, 1]), "sequence", BatchSize(2, 3, 8))
        rollout = [-1.0 - math.log(4), -1.0, -1.0 - math.log(9)]
        tokens = tokens_of([1.0, 1.0, 1.0], weights, rollout=rollout, lengths=[2, 1])
        loss, sums = grpo.loss_and_sums(self.OLD, self.OLD, tokens, settings, version=0)
        assert loss.item() == pytest.approx(-2.5, abs=1e-6)
        assert sums.importance_capped == 1

    def test_an_empty_completion_takes_no_token(self):
        settings = LossSettings(ratio="sequence", importance_cap=None)
        tokens = tokens_of([1.0, 1.0], lengths=[0, 2, 0])
        policy = self.OLD[:2] + torch.tensor([math.log(4), 0.0])
        loss, _ = grpo.loss_and_sums(policy, self.OLD[:2], tokens, settings, version=0)
        assert loss.item() == pytest.approx(-2 * 1.2, abs=1e-6)  # clipped at 1.2, both tokens of weight 1


class TestImportance:
    def test_truncated_and_constant_under_the_gradient(self):
        # exp(old - rollout) is 3 and 1/2; capped at 2: the loss is -(2 * 1 + 0.5 * 1), the gradients the same.
        settings = LossSettings(importance_cap=2.0)
        policy = torch.tensor([-1.0, -1.0], requires_grad=True)
        tokens = tokens_of([1.0, 1.0], rollout=[-1.0 - math.log(3), -1.0 + math.log(2)])
        loss, sums = grpo.loss_and_sums(policy, policy.detach(), tokens, settings, version=0)
        loss.backward()
        assert loss.item() == pytest.approx(-2.5, abs=1e-5)
        torch.testing.assert_close(policy.grad, torch.tensor([-2.0, -0.5]), atol=1e-5, rtol=0)
        assert sums.importance == pytest.approx(2.5, abs=1e-5)
        assert sums.importance_capped == 1

    def test_none_leaves_it_out(self):
        policy = torch.tensor([-1.0])
        loss, sums = grpo.loss_and_sums(
            policy, policy, tokens_of([1.0], rollout=[-5.0]), NO_IMPORTANCE, version=0
        )
        assert loss.item() == -1.0
        assert (sums.importance, sums.importance_capped) == (1.0, 0.0)


class TestStatistics:
    def test_gap_at_the_same_version_and_drift_at_older_ones(self):
        policy = torch.tensor([-1.0, -1.0, -1.0])
        tokens = tokens_of([0.0, 0.0, 0.0], rollout=[-1.25, -1.5, -2.0], versions=[3, 3, 2])
        _, sums = grpo.loss_and_sums(policy, policy, tokens, LossSettings(), version=3)
        found = grpo.statistics([sums])
        assert found.logprob_gap_tokens == 2
        assert found.logprob_gap_mean == pytest.approx(0.375)  # (1/4 + 1/2) / 2
        assert found.logprob_gap_max == pytest.approx(0.5)
        assert found.version_drift == pytest.approx(1.0)

    def test_no_tokens_have_no_mean(self):
        found = grpo.statistics([TokenSums()])
        assert found.logprob_gap_mean is None
        assert found.ratio_max is None

    def test_older_tokens_only(self):
        policy = torch.tensor([-1.0])
        _, sums = grpo.loss_and_sums(
            policy, policy, tokens_of([0.0], versions=[1]), LossSettings(), version=2
        )
        assert grpo.statistics([sums]).logprob_gap_max is None


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("aggregation", ["sequence", "token", "dr_grpo"])
def test_loss_gradient_and_statistics_do_not_depend_on_the_cut(aggregation, ratio):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 1, 5, 2, 4, 1])
    count = int(lengths.sum())
    settings = LossSettings(
        kl_beta=0.1, ratio=ratio, aggregation=aggregation, clip_low=0.05, clip_high=0.05, importance_cap=1.1
    )
    batch = BatchSize(len(lengths), count, 8)

    def random(scale=1.0):
        return scale * torch.randn(count, generator=generator)

    policy = random(0.3).sub(1).requires_grad_()
    old, rollout, reference = policy.detach() + random(0.2), policy.detach() + random(0.2), random(0.2)
    advantages, versions = random(), torch.arange(count) % 3

    def run(cuts):
        policy.grad = None
        losses, parts, ends = [], [], lengths.cumsum(0)
        for first, last in cuts:
            a, b = int(ends[first] - lengths[first]), int(ends[last - 1])
            weights = grpo.token_weights(lengths[first:last], aggregation, batch)
            parts_of_tokens = (tensor[a:b] for tensor in (rollout, versions, reference))
            tokens = TokenBatch(lengths[first:last], advantages[a:b], weights, *parts_of_tokens)
            loss, sums = grpo.loss_and_sums(policy[a:b], old[a:b], tokens, settings, version=2)
            loss.backward()
            losses.append(loss.item())
            parts.append(sums)
        return sum(losses), policy.grad.clone(), grpo.statistics(parts)

    whole_loss, whole_gradient, whole_statistics = run([(0, 6)])
    assert whole_statistics.clip_high_fraction > 0
    assert whole_statistics.importance_capped_fraction > 0
    for cuts in ([(0, 1), (1, 6)], [(4, 6), (0, 2), (2, 4)], [(i, i + 1) for i in range(6)]):
        loss, gradient, found = run(cuts)
        assert loss == pytest.approx(whole_loss, abs=1e-6)
        torch.testing.assert_close(gradient, whole_gradient)
        for name, value in vars(whole_statistics).items():
            assert getattr(found, name) == pytest.approx(value, rel=1e-5), name
