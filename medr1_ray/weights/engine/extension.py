"""Our part of vLLM's engine process: weight-transfer backends that load only what has been proven.

vLLM imports this module by its path (`worker_extension_cls`) before it creates the transfer engine, so the backends
are there in every worker, also where the code came by `ray job submit --working-dir` and is not installed.
"""

from __future__ import annotations

from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from medr1_ray.base.code_digest import code_digest
from medr1_ray.weights.engine.checked_loading import CheckedLoading
from medr1_ray.weights.transports import TRANSPORTS

EXTENSION = "medr1_ray.weights.engine.extension.WorkerExtension"


class WorkerExtension:
    """Methods that vLLM adds to its worker, for `collective_rpc`."""

    weight_transfer_engine: CheckedLoading
    _weight_update_active: bool

    def medr1_code_digest(self) -> str:
        """The digest of the code that this engine process runs."""
        return code_digest()

    def medr1_abandon_update(self) -> None:
        """Let a new weight update begin after one that failed."""
        self._weight_update_active = False
        self.weight_transfer_engine.abandon()

    def medr1_forget_weights(self) -> None:
        """The weights are about to be thrown away."""
        self.weight_transfer_engine.forget()


def register() -> None:
    """Make the backends known to vLLM in this process; once is enough, again does no harm."""
    for transport in TRANSPORTS.values():
        if transport.backend not in WeightTransferEngineFactory._registry:
            module, class_name = transport.engine_class.split(":")
            WeightTransferEngineFactory.register_engine(transport.backend, module, class_name)


register()
