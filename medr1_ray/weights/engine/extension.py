"""The worker extension: registers our weight-transfer engines with vLLM and adds methods to its workers.

vLLM 0.32 imports this module by its path (`worker_extension_cls`) before it creates the transfer engine, so the engines
are registered in every worker, even where the package came by `ray job submit --working-dir` and is not installed (an
entry point would not be found there).
"""

from __future__ import annotations

import threading

from tqdm.std import TqdmDefaultWriteLock, tqdm  # type: ignore[import-untyped]
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from medr1_ray.base.code_digest import code_digest
from medr1_ray.weights.engine.checked_loading import CheckedLoading
from medr1_ray.weights.engine.seeded_requests import keep_alive_on_a_cpu
from medr1_ray.weights.transports import TRANSPORTS

EXTENSION = "medr1_ray.weights.engine.extension.WorkerExtension"


class WorkerExtension:
    """Methods that vLLM adds to its worker, for `collective_rpc`."""

    # Declared without values: vLLM refuses an extension with an attribute that its worker has too.
    weight_transfer_engine: CheckedLoading
    _weight_update_active: bool

    def medr1_code_digest(self) -> str:
        """The digest of the code that this engine process runs."""
        return code_digest()

    def medr1_abandon_update(self) -> None:
        """Allow a new weight update after one that failed."""
        # vLLM 0.32 clears this flag after a failed `update_weights`, but not after a failed `finish_weight_update`.
        self._weight_update_active = False
        self.weight_transfer_engine.abandon()

    def medr1_forget_weights(self) -> None:
        """Note that the weights are about to be discarded."""
        self.weight_transfer_engine.forget()


def register() -> None:
    """Register the transfer engines with vLLM in this process; safe to call again (vLLM itself raises on a second
    time)."""
    for transport in TRANSPORTS.values():
        if transport.backend not in WeightTransferEngineFactory._registry:
            module, class_name = transport.engine_class.split(":")
            WeightTransferEngineFactory.register_engine(transport.backend, module, class_name)


def _give_up_named_lock() -> None:
    """Drop the lock between processes that tqdm makes: in an engine's process it has a name in /dev/shm, which would
    stay there, since this process is killed at the end."""
    tqdm.set_lock(threading.RLock())
    TqdmDefaultWriteLock.mp_lock = None


register()
keep_alive_on_a_cpu()
_give_up_named_lock()
