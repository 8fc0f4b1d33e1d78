"""The Ray actor that is one DeepSpeed rank of the learner. `Learner` creates `learner.world_size` of them.

Consumes `UpdateRequest`s and `ImitationRequest`s; produces reports, log-probabilities and weights. The ranks move in
step: every method below `start` is called on all of them, because ZeRO's collectives wait for every rank (until their
deadline).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medr1_ray.base.manifest import NotSavedError, StoredFile
from medr1_ray.base.process_output import write_output_to
from medr1_ray.base.shared_file import SharedFile
from medr1_ray.cluster.ports import free_port
from medr1_ray.learner import grpo
from medr1_ray.learner.messages import (
    BatchSize,
    GroupLogprobs,
    ImitationRequest,
    LogprobsRequest,
    MicroBatch,
    OptimizerStep,
    RankReport,
    RankSettings,
    TokenSums,
    UpdateRequest,
)
from medr1_ray.learner.saving import CheckpointPart, require_finite
from medr1_ray.learner.schedule import learning_rate
from medr1_ray.model.checkpoint_files import is_frozen, load_model
from medr1_ray.model.family import checkpoint_name
from medr1_ray.model.folder.check import stay_offline
from medr1_ray.model.lora import Adapters
from medr1_ray.model.packing import Images, PackedBatch, pack_groups, pack_plain
from medr1_ray.model.vocabulary import load_vocabulary
from medr1_ray.model.weight_files import LEARNER_STATE
from medr1_ray.types import CompletedPrompt, Group, Image, Span
from medr1_ray.weights.messages import WeightGroup, WeightUpdate
from medr1_ray.weights.transports import TRANSPORTS

if TYPE_CHECKING:
    from medr1_ray.learner.reference import AdapterFreeReference, Reference


@dataclass(frozen=True)
class _Work:
    """A micro-batch made ready, on the CPU."""

    packed: PackedBatch
    tokens: grpo.TokenBatch
    padding: bool


class LearnerActor:
    """One rank: the policy's shard, its optimizer, and the reference when a KL is taken."""

    def __init__(self, settings: RankSettings, rank: int, name: str) -> None:
        self._settings = settings
        self._name = name
        self._path = settings.model.folder
        self._rank = rank
        self._spans: list[Span] = []
        torch.set_num_threads(settings.learner.threads)
        stay_offline()

    def __repr__(self) -> str:
        return self._name

    def open_log(self, files: tuple[SharedFile, ...], run: Path) -> SharedFile:
        """Send what this process prints to a log of its own, and leave a mark for the driver to see; raises ValueError
        where this node does not see the driver's files, or cannot write."""
        for file in files:
            file.require()
        mark = SharedFile.mark("run.dir", run, run / "logs" / f".{self._name}")
        write_output_to(run / "logs" / f"{self._name}.log", self._name)
        return mark

    def rendezvous_address(self) -> str:
        """host:port at which this rank can be joined, a new port each time; asked of rank 0."""
        import ray

        # Opened by the group that meets there. If another process takes it in between, that group fails to start.
        return f"{ray.util.get_node_ip_address()}:{free_port()}"

    def rendezvous_file(self) -> str:
        """URL of a file, not there yet, at which ranks on this node can meet; it goes with this process."""
        from medr1_ray.cluster.local import own_folder

        return (own_folder() / "ranks").as_uri()

    def start(self, meeting: str) -> str:
        """Join the other ranks at a URL of torch's (`tcp://`, `file://`), load the model, build the engine; returns the
        name of the device."""
        # Not at the top: the driver imports this module to create the actor. It must stay free of DeepSpeed, and
        # would spend seconds on models and kernels that it never uses.
        from medr1_ray.learner import deepspeed_engine
        from medr1_ray.learner.optimizer_state import OptimizerState
        from medr1_ray.learner.reference import AdapterFreeReference, Reference
        from medr1_ray.model.image_patches import FrozenFeatures, ImagePatcher
        from medr1_ray.model.policy import Policy

        settings = self._settings
        self._device = deepspeed_engine.join(meeting, self._rank, settings.learner, settings.cluster)
        vocabulary = load_vocabulary(self._path)
        model = load_model(self._path, getattr(torch, settings.model.dtype), settings.model)
        # Before the engine is built: adding adapters freezes the model's own weights, and the optimizer takes the
        # parameters that are trainable when it is built.
        self._adapters: Adapters | None = None
        if settings.model.lora is not None:
            vision = settings.model.train_vision_tower
            self._adapters = Adapters(model, settings.model.lora, vision=vision, seed=settings.train.seed)
        # Under ZeRO-3 all ranks gather the tower's weights together, so no rank may skip the tower for a cached image.
        frozen = not settings.model.train_vision_tower and settings.learner.zero_stage < 3
        features = FrozenFeatures() if frozen else None
        self._policy = Policy(model, vocabulary, settings.temperature, features)
        self._patch = ImagePatcher(self._path, settings.learner.threads)
        self._engine = deepspeed_engine.build_engine(self._policy, settings.learner, settings.model.dtype)
        self._optimizer = OptimizerState(self._engine, self._rank, saved_as_they_are=self._adapters is None)
        transport = TRANSPORTS[settings.cluster.weight_transport]
        self._weights: Any = transport.sender(self._rank, self._device, settings.cluster.sync_timeout_seconds)
        self._source = deepspeed_engine.ShardedWeights(
            model, partial(is_frozen, settings.model), checkpoint_name, self._adapters
        )
        self._checkpoint = CheckpointPart(
            self._name, self._rank, self._path, self._source, self._optimizer, self._adapters
        )
        self._reference: AdapterFreeReference | Reference | None = None
        if settings.takes_kl and self._adapters is not None:
            self._reference = AdapterFreeReference(self._engine, self._adapters, self._device)
        elif settings.takes_kl:
            self._reference = Reference(self._path, vocabulary, settings, self._device, features)
        return torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else "cpu"

    def begin_patches(self, images: Sequence[Image]) -> list[NDArray[np.float32]]:
        """Start to cut the images of groups into patches: the part of `prepare` that needs no GPU. Returns nothing."""
        self._patch.begin(images)
        return []

    def prepare(self, request: LogprobsRequest) -> list[NDArray[np.float32]]:
        """Do the part of an update that does not depend on the policy: cut images into patches, and compute the
        reference's log-probabilities. Returns float32 [S] of each group, in the order of the micro-batches that are not
        padding; nothing where no KL is taken."""
        groups, micro_batches = request.groups, request.micro_batches
        # Start all images before waiting for any: the threads work on the later ones during the wait.
        self._patch.begin([prompt.image for prompt, _ in groups])
        if self._reference is None:
            return []
        with self._span("reference"):
            packed = [
                self._pack(members, self._patch([prompt.image for prompt, _ in members]), plain=False)
                for members in ([groups[i] for i in micro_batch.groups] for micro_batch in micro_batches)
            ]
            found: list[NDArray[np.float32]] = []
            for micro_batch, logprobs in zip(micro_batches, self._reference.logprobs(packed), strict=True):
                ends = np.cumsum([groups[i][1].token_ids.size for i in micro_batch.groups])
                # Padding was scored only to stay in step with the other ranks.
                if not micro_batch.padding:
                    found += np.split(logprobs.cpu().numpy(), ends[:-1])
        return found

    def update(self, request: UpdateRequest) -> RankReport:
        """Take `train.updates_per_rollout` passes over the batch, of which this rank has a share, and in each an
        optimizer step for every mini-batch.

        A step whose gradient is not finite changes nothing. Raises ValueError where a group's image became another
        number of visual tokens than in the engine.
        """
        if self._reference is not None:
            self._reference.release()
        with self._span("pack"):
            # All at once: the threads work on the later ones while the first are packed.
            digests = self._patch.begin([group.prompt.image for group in request.groups])
            parts = request.mini_batches
            work = [[self._prepare(each, request.groups, part.batch) for each in part.micro_batches] for part in parts]
        # Ratios are taken to the policy of before the first step. The first mini-batch's own pass still sees that one.
        old: list[list[Tensor]] = [[]]
        for later in work[1:]:
            with self._span("old_logprobs"):
                old.append([self._score(item.packed) for item in later])
        sums: list[TokenSums] = []

        def loss_of(part: int, version: int | None, i: int, logprobs: Tensor) -> Tensor:
            item, tokens = work[part][i], work[part][i].tokens.to(self._device)
            if i == len(old[part]):
                old[part].append(logprobs.detach())
            loss, of_item = grpo.loss_and_sums(logprobs, old[part][i], tokens, self._settings.loss, version)
            if not item.padding:
                sums.append(of_item)
            return loss

        steps: list[OptimizerStep] = []
        for version in (request.version, *[None] * (self._settings.train.updates_per_rollout - 1)):
            for part, items in enumerate(work):
                of_part = partial(loss_of, part, version)
                steps.append(self._step(request.version + len(steps), [item.packed for item in items], of_part))
        self._patch.step_done(digests)
        return RankReport(tuple(steps), sum(sums, start=TokenSums()), self._take_spans())

    def imitate(self, request: ImitationRequest) -> RankReport:
        """Take one optimizer step on the negative log-likelihood of the demonstrations' tokens, its mean over all
        tokens of the batch. Raises as `update` does."""
        packed, weights = [], []
        with self._span("pack"):
            digests = self._patch.begin([prompt.image for prompt, _ in request.demonstrations])
            for micro_batch in request.micro_batches:
                pairs = [request.demonstrations[i] for i in micro_batch.groups]
                lengths = torch.tensor([completions.token_ids.size for _, completions in pairs])
                of_tokens = grpo.token_weights(lengths, "token", request.batch)
                packed.append(self._pack(pairs, self._patched(pairs), plain=False))
                weights.append((torch.zeros_like(of_tokens) if micro_batch.padding else of_tokens).to(self._device))
        step = self._step(request.version, packed, lambda i, logprobs: -(weights[i] * logprobs).sum())
        self._patch.step_done(digests)
        return RankReport((step,), TokenSums(), self._take_spans())

    def logprobs(self, request: LogprobsRequest) -> list[GroupLogprobs]:
        """The policy's log-probabilities of each group, in the order of the micro-batches that are not padding."""
        found = []
        for micro_batch in request.micro_batches:
            members = [request.groups[i] for i in micro_batch.groups]
            images = self._patch([prompt.image for prompt, _ in members])
            logprobs = self._score(self._pack(members, images, request.plain)).cpu().numpy()
            if not micro_batch.padding:
                ends = np.cumsum([completions.token_ids.size for _, completions in members])
                parts = np.split(logprobs, ends[:-1])
                found += [
                    GroupLogprobs(part, visual) for part, visual in zip(parts, images.visual_tokens, strict=True)
                ]
        return found

    def publish_weights(self, version: int, to_newcomers: bool) -> WeightUpdate | None:
        """Publish all parameters, in the compute dtype and under their checkpoint names, for the engines to load; of
        adapters, their factors.

        `to_newcomers`: an engine may lack the frozen parameters. None on ranks whose part goes through rank 0.
        Raises FloatingPointError where a weight is not finite.
        """
        require_finite(self._engine.module)
        self._return_memory()
        update: WeightUpdate | None = self._weights.publish(self._source, version, to_newcomers=to_newcomers)
        return update

    def send_weights(self) -> None:
        """Move what was published while the engines receive it; for transports that need both ends at once."""
        self._weights.send()

    def release_weights(self) -> None:
        """Free what was published; the engines have loaded it."""
        self._weights.release()
        self._return_memory()

    def join_weight_group(self, group: WeightGroup) -> None:
        """Meet the engines of a broadcast (`cluster.weight_transport: nccl`)."""
        self._weights.join(group)

    def begin_save(self, folder: Path, behind: bool) -> None:
        """Copy this rank's part of a checkpoint, and write it into `folder` while the training goes on; not `behind`,
        return when it is written. Raises FloatingPointError where a weight is not finite."""
        require_finite(self._engine.module)
        self._checkpoint.begin(folder, behind=behind)

    def is_saving(self) -> bool:
        """Whether the last save is still being written."""
        return self._checkpoint.is_writing()

    def finish_save(self) -> list[StoredFile] | NotSavedError:
        """Wait until the last save is written; returns the files, or why there are none (`CheckpointPart.finish`)."""
        return self._checkpoint.finish()

    def load(self, folder: Path) -> None:
        """Continue from a folder that any number of ranks saved, at whatever ZeRO stage.

        Raises ValueError where it is not complete or of another model.
        """
        self._optimizer.load(folder / LEARNER_STATE)

    def _return_memory(self) -> None:
        """Give what PyTorch keeps for later back to the GPU, where an engine is about to wake on it."""
        if self._settings.cluster.colocated:
            torch.cuda.empty_cache()

    def _step(
        self, version: int, batches: Sequence[PackedBatch], loss_of: Callable[[int, Tensor], Tensor]
    ) -> OptimizerStep:
        """The optimizer step that ends policy version `version`: `loss_of` makes this rank's share of the loss from a
        batch's number and log-probabilities."""
        # Set at every step, because loading a checkpoint also restores the rate that the optimizer was saved with.
        rate = learning_rate(self._settings.learner, version, self._settings.train.steps)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = rate
        loss_share = 0.0
        with self._span("forward_backward"):
            for i, batch in enumerate(batches):
                # DeepSpeed needs this before the forward pass. Its config says "no accumulation", so nothing else tells
                # it when to reduce gradients and to step.
                self._engine.set_gradient_accumulation_boundary(i == len(batches) - 1)
                loss = loss_of(i, self._engine(batch.to(self._device)))
                # DeepSpeed takes the mean over ranks; the loss is a sum over them.
                self._engine.backward(loss * self._settings.learner.world_size)
                loss_share += loss.item()
        with self._span("optimizer_step"):
            self._engine.step()
        # Known only after step(). DeepSpeed 0.19.8 skips a step whose norm is not finite, and leaves all as it was.
        norm = float(self._engine.get_global_grad_norm())
        return OptimizerStep(loss_share, norm, rate)

    def _score(self, packed: PackedBatch) -> Tensor:
        """The policy's log-probabilities float32 [S]."""
        self._engine.eval()
        with torch.no_grad():
            logprobs: Tensor = self._engine(packed.to(self._device))
        self._engine.train()
        return logprobs

    def _patched(self, pairs: Sequence[CompletedPrompt]) -> Images:
        images = self._patch([prompt.image for prompt, _ in pairs])
        for (prompt, completions), visual in zip(pairs, images.visual_tokens, strict=True):
            if visual != completions.visual_tokens:
                raise ValueError(
                    f"the image of prompt {prompt.id!r} became {completions.visual_tokens} visual "
                    f"tokens in {completions.actor} and {visual} in {self._name}; both must run the "
                    "same image processor (look for image limits in rollout.engine, e.g. mm_processor_kwargs)"
                )
        return images

    def _prepare(self, micro_batch: MicroBatch, of_request: Sequence[Group], batch: BatchSize) -> _Work:
        groups = [of_request[i] for i in micro_batch.groups]
        pairs = [(group.prompt, group.completions) for group in groups]
        tokens = grpo.TokenBatch.of(groups, self._settings.loss, batch)
        if micro_batch.padding:
            tokens = replace(tokens, weights=torch.zeros_like(tokens.weights))
        return _Work(self._pack(pairs, self._patched(pairs), plain=False), tokens, micro_batch.padding)

    def _pack(self, groups: Sequence[CompletedPrompt], images: Images, plain: bool) -> PackedBatch:
        vocabulary = self._policy.vocabulary
        pack = pack_plain if plain else pack_groups
        return pack(groups, images, vocabulary.image_pad, vocabulary.pad, self._policy.prompt_positions)

    def _take_spans(self) -> tuple[Span, ...]:
        """All since the last report, those of `prepare` included."""
        spans, self._spans = self._spans, []
        return tuple(spans)

    @contextmanager
    def _span(self, phase: str) -> Iterator[None]:
        start = time.time()
        yield
        self._spans.append(Span(self._name, phase, start, time.time()))
