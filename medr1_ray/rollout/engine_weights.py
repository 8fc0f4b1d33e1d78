"""The order of vLLM's calls by which an engine loads weights, sleeps and wakes (weight-transfer API of vLLM 0.32)."""

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
"""vLLM's level that discards the weights instead of keeping a copy in main memory; new ones follow in any case."""


class EngineWeights:
    """Drives one vLLM engine. Not for concurrent use.

    An engine that generates is paused, loaded and resumed. A sleeping engine holds no GPU memory: the memory of its
    weights is taken back before they are loaded, that of its KV cache after the learner has freed what it published
    (`wake`), so that the two never need the GPU at the same time.
    """

    def __init__(self, engine: AsyncLLM, receiver: WeightReceiver) -> None:
        self._engine = engine
        self._receiver = receiver
        self._held: frozenset[str] = frozenset()
        self._asleep: set[str] = set()

    async def load(self, update: WeightUpdate) -> float:
        """Load the update; returns the seconds for which the engine generated nothing.

        Raises whatever the transport and the engine raise; the engine then holds no complete version.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        # Until the load has succeeded the engine counts as holding nothing; after a failure everything is sent again.
        held, self._held = self._held, frozenset()
        # Closes a previous load that failed; otherwise vLLM refuses to start another one.
        await self._engine.collective_rpc("medr1_abandon_update")
        receiving = self._receiver.receive(update, held)
        # In a thread: staging may copy gigabytes, and would block the event loop.
        payloads = await asyncio.to_thread(receiving.__enter__)
        try:
            start = time.monotonic()
            if self._asleep:
                await self._wake_up("weights")
            else:
                # finish_weight_update clears no cache; without clear_cache the prefix cache and the vision encoder's
                # cache would serve values of the old weights.
                await self._engine.pause_generation(mode="keep", clear_cache=True)
            await self._engine.start_weight_update()
            for payload in payloads:
                await self._engine.update_weights(WeightTransferUpdateRequest(update_info={"payload": payload}))
            # The version labels every token sampled from here on; generation is paused, so no token gets the wrong one.
            await self._engine.finish_weight_update(weight_version=str(update.version))
            # A sleeping engine resumes when its KV cache is back (`wake`). After an error the engine stays paused: its
            # weights may be a mixture.
            if not self._asleep:
                await self._engine.resume_generation()
            paused_seconds = time.monotonic() - start
        finally:
            await asyncio.to_thread(receiving.__exit__, None, None, None)
        self._held = frozenset(bucket.digest for bucket in update.buckets if bucket.frozen)
        return paused_seconds

    async def sleep(self) -> None:
        """Free the GPU. Requests in flight are recomputed after waking."""
        if "weights" in self._asleep:  # still asleep since an earlier update, because no engine was needed in between
            return
        # Level 2 discards all weights, so the next update must bring the frozen ones too.
        await self._engine.collective_rpc("medr1_forget_weights")
        self._held = frozenset()
        await self._engine.sleep(level=SLEEP_LEVEL, mode="keep")
        self._asleep = {"weights", "kv_cache"}

    async def wake(self) -> None:
        """Take back the cache's memory and generate. Raises RuntimeError when no weights have been loaded since
        `sleep`."""
        if "weights" in self._asleep:
            raise RuntimeError("the engine is asleep and has no weights; load an update first")
        if self._asleep:
            await self._wake_up("kv_cache")

    async def join(self, group: WeightGroup, deadline_seconds: float) -> None:
        """Connect the engine's workers with the learner."""
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
