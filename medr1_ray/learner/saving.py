"""A rank's part of a checkpoint: checked, copied to main memory, and written while the training goes on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from medr1_ray.base.manifest import NotSavedError, StoredFile, store
from medr1_ray.learner.optimizer_files import Fragment, Masters, write_shard, write_summary
from medr1_ray.model.checkpoint_saving import save_model
from medr1_ray.model.lora import ADAPTER_FOLDER, Adapters
from medr1_ray.model.weight_files import LEARNER_STATE

if TYPE_CHECKING:
    from medr1_ray.learner.optimizer_state import OptimizerState


class Weights(Protocol):
    """The policy's weights, which all ranks gather together (`deepspeed_engine.ShardedWeights`)."""

    def factors(self) -> dict[str, Tensor]: ...

    def merged(self, factors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]: ...


class CheckpointPart:
    """What one rank saves: Hugging Face files, with adapters also peft's (rank 0), and its part of the optimizer's
    state. One save at a time.

    Args:
        name: of the rank, for errors.
        source: the checkpoint that the training started from.
        weights: the policy's.
        optimizer: the state of this rank.
        adapters: those that are trained, if any are.
    """

    def __init__(
        self,
        name: str,
        rank: int,
        source: Path,
        weights: Weights,
        optimizer: OptimizerState,
        adapters: Adapters | None = None,
    ) -> None:
        self._name = name
        self._adapters = adapters
        self._rank = rank
        self._source = source
        self._weights = weights
        self._optimizer = optimizer
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[list[StoredFile]] | None = None

    def begin(self, folder: Path, *, behind: bool) -> None:
        """Write into `folder`, from copies, in a thread: training may go on once this returns.

        Not `behind`, it returns when all is written, and copies the optimizer's state file by file.
        """
        # Whole before anything is written: a rank that cannot write must not leave the others in a collective.
        # copy=True matters where the model is on the CPU: a gathered tensor is valid only until the next is requested.
        factors = self._weights.factors()
        parts = (
            (name, tensor.to("cpu", copy=True) if self._rank == 0 else None)
            for name, tensor in self._weights.merged(factors)
        )
        whole = {name: tensor for name, tensor in parts if tensor is not None}
        state: Iterable[Fragment] = self._optimizer.copied()
        if behind:
            state = list(state)
        self._writing = self._thread.submit(self._write, folder, whole, factors, state, *self._optimizer.summary())
        if not behind:
            wait([self._writing])

    def is_writing(self) -> bool:
        """Whether files of the last `begin` are still being written."""
        return self._writing is not None and not self._writing.done()

    def finish(self) -> list[StoredFile] | NotSavedError:
        """Wait until all is written, and return what was; or the error, for want of room or permission.

        Not raised, because the driver waits for all ranks before it deletes the folder that one could not fill.
        """
        assert self._writing is not None, "nothing has begun"
        try:
            return self._writing.result()
        except NotSavedError as error:
            return error

    def _write(
        self,
        folder: Path,
        whole: Mapping[str, Tensor],
        factors: Mapping[str, Tensor],
        state: Iterable[Fragment],
        steps: int,
        sizes: Mapping[str, int],
        masters: Masters,
    ) -> list[StoredFile]:
        try:
            names: list[str] = []
            if self._rank == 0:
                save_model(whole, self._source, folder)
                if self._adapters is not None:
                    self._adapters.save(factors, folder / ADAPTER_FOLDER)
                written = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
                names += [path.as_posix() for path in written if path.parts[0] != LEARNER_STATE]
            learner_state = folder / LEARNER_STATE
            learner_state.mkdir(parents=True, exist_ok=True)
            of_state = write_shard(learner_state, self._rank, state)
            if self._rank == 0:
                of_state.append(write_summary(learner_state, steps, sizes, masters))
            names += [f"{LEARNER_STATE}/{name}" for name in of_state]
            return [store(folder, name) for name in names]
        except (OSError, SafetensorError) as error:
            raise NotSavedError(f"{self._name} cannot write {folder}: {error}") from None


def require_finite(module: nn.Module) -> None:
    """Check this rank's part of the trainable parameters: others are neither saved nor given to the engines.

    Raises:
        FloatingPointError: one of them has an infinity or a NaN.
    """
    trainable = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    # Under ZeRO-3 a parameter itself is empty, and `ds_tensor` is the part that this rank has of it.
    parts = [(name, getattr(parameter, "ds_tensor", parameter).detach()) for name, parameter in trainable]
    finite = [torch.isfinite(part).all() for _, part in parts]
    # One answer for all, because each would wait for the GPU.
    if not finite or torch.stack(finite).all():
        return
    name = next(name for (name, _), each in zip(parts, finite, strict=True) if not each)
    raise FloatingPointError(
        f"the weights are no longer finite ({name}), so they are neither given to the engines nor saved. Go on from "
        "the last checkpoint (--resume) with a smaller learner.learning_rate or learner.max_grad_norm"
    )
