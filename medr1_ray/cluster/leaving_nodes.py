"""Nodes of the driver and the learner that are about to go away: Ray drains them, after a preemption notice for one.

Rollout actors on such a node are the pool's matter (`pool/actors.py`), since they are replaced one by one.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import ray

from medr1_ray.base.stopping import ask_to_stop
from medr1_ray.cluster.placement import draining_nodes

_LOOK_SECONDS = 3.0
_END_SECONDS = 10.0


class LeavingNodes:
    """Asks the command to stop once the driver's node is leaving, and says which of the learner's are.

    Args:
        driver: hex id of the driver's node.
        ranks: of each learner rank, its name and its node's id.
        ask: returns the draining nodes, and the seconds that each has left.
    """

    def __init__(
        self,
        driver: str,
        ranks: Sequence[tuple[str, str]],
        ask: Callable[[], dict[str, float]] = draining_nodes,
    ) -> None:
        self._driver = driver
        # Those on the driver's node end with it.
        self._ranks = [(name, node) for name, node in ranks if node != driver]
        self._ask = ask
        self._leaving: list[str] = []
        self._said = ""

    def of_learner(self) -> str:
        """What to say of the learner's nodes that have a deadline, the same until it is over; empty where none has."""
        return self._said

    def look(self) -> None:
        """Ask Ray once; from any thread."""
        found = self._ask()
        if self._driver in found:
            ask_to_stop(f"Ray, which drains the driver's node ({_left(found[self._driver])})")
        # One without a deadline may stay for days; one that has outlived its deadline may stay as well.
        soon = {node: seconds for node, seconds in found.items() if 0 < seconds < math.inf}
        leaving = [name for name, node in self._ranks if node in soon]
        if leaving != self._leaving:
            left = _left(min((soon[node] for _, node in self._ranks if node in soon), default=0.0))
            self._said = f"Ray drains the node of {', '.join(leaving)} ({left})" if leaving else ""
            self._leaving = leaving

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Look every few seconds during the body, in a thread: a phase of the driver's may take minutes."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_LOOK_SECONDS):
                try:
                    self.look()
                # The pool asks the same on the driver's own thread, where an error that lasts ends the run.
                except Exception:
                    logging.getLogger(__name__).debug("which nodes drain is not known", exc_info=True)

        # A daemon, so that a head that does not answer does not keep the process alive.
        thread = threading.Thread(target=watch, daemon=True, name="leaving nodes")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            # Before the connection to Ray ends.
            thread.join(_END_SECONDS)


def this_node() -> str:
    """Return the hex id of the driver's node."""
    return str(ray.get_runtime_context().get_node_id())


def _left(seconds: float) -> str:
    return "without a deadline" if math.isinf(seconds) else f"{max(0.0, seconds):.0f} s left"
