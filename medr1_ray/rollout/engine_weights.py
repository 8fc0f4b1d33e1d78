"""The order of the calls by which an engine gets new weights, sleeps and wakes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from medr1_ray.weights.buckets import BUCKET_BYTES
from medr1_ray.weights.messages import WeightGroup, WeightUpdate
from medr1_ray.weights.protocol import WeightReceiver

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

SLEEP_LEVEL = 2
"""Throw the weights away instead of keeping a copy in main memory: the next ones come anyhow."""


class WeightLoader:
    """Drives one vLLM engine. Not for concurrent use.

    An engine that generates is paused, loaded and resumed. One that sleeps has no memory: its weights' is taken back
    before they are loaded, its cache's after the learner has freed what it sent (`wake`), so that the two never need
    the GPU at the same time.
    """

    def __init__(self, engine: AsyncLLM, receiver: WeightReceiver) -> None:
        self._engine = engine
        self._receiver = receiver
        self._held: frozenset[str] = frozenset()
        self._asleep: set[str] = set()

    async def load(self, update: WeightUpdate) -> float:
        """Bring the engine to the update; returns the seconds for which it generated nothing.

        Raises what the transport and the engine raise; the weights are of no version then.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        held, self._held = self._held, frozenset()
        await self._engine.collective_rpc("medr1_abandon_update")
        receiving = self._receiver.receive(update, held)
        payloads = await asyncio.to_thread(receiving.__enter__)
        try:
            start = time.monotonic()
            if self._asleep:
                await self._wake_up("weights")
            else:
                # Finishing an update clears no cache; this clears the prefix cache and that of the vision encoder.
                await self._engine.pause_generation(mode="keep", clear_cache=True)
            await self._engine.start_weight_update()
            for payload in payloads:
                await self._engine.update_weights(WeightTransferUpdateRequest(update_info={"payload": payload}))
            await self._engine.finish_weight_update(weight_version=str(update.version))
            if not self._asleep:
                await self._engine.resume_generation()
            paused_seconds = time.monotonic() - start
        finally:
            await asyncio.to_thread(receiving.__exit__, None, None, None)
        self._held = frozenset(bucket.digest for bucket in update.buckets if bucket.frozen)
        return paused_seconds

    async def sleep(self) -> None:
        """Free the GPU. Requests in flight are computed again after waking."""
        if "weights" in self._asleep:  # since an update before, after which nobody needed an engine
            return
        await self._engine.collective_rpc("medr1_forget_weights")
        self._held = frozenset()
        await self._engine.sleep(level=SLEEP_LEVEL, mode="keep")
        self._asleep = {"weights", "kv_cache"}

    async def wake(self) -> None:
        """Take back the cache's memory and generate. Raises RuntimeError when no weights have been loaded since."""
        if "weights" in self._asleep:
            raise RuntimeError("the engine sleeps and has no weights; load an update first")
        if self._asleep:
            await self._wake_up("kv_cache")

    async def join(self, group: WeightGroup, deadline_seconds: float) -> None:
        """Let the engine's workers meet the learner."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        host, port = group.address.rsplit(":", 1)
        await self._engine.init_weight_transfer_engine(
            WeightTransferInitRequest(
                init_info={
                    "master_address": host,
                    "master_port": int(port),
                    "rank_offset": group.rank_offset,
                    "world_size": group.world_size,
                    "packed": True,
                    "packed_buffer_size_bytes": BUCKET_BYTES,
                    "deadline_seconds": deadline_seconds,
                }
            )
        )

    async def _wake_up(self, tag: str) -> None:
        if tag in self._asleep:
            await self._engine.wake_up(tags=[tag])
            self._asleep.discard(tag)
