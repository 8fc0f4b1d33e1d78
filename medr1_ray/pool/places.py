"""Places for rollout actors: asked for one by one, and with nodes from the autoscaler where there is one."""

from __future__ import annotations

from collections.abc import Callable

from medr1_ray.cluster.placement import Place, ask_for_place, describe_missing, release_nodes, request_nodes
from medr1_ray.cluster.resources import demands
from medr1_ray.config import Config


class Places:
    """Asks for places.

    Args:
        config: the run's settings.
        ask: returns the place for an actor, given its name; by default a placement group of its own.
    """

    def __init__(self, config: Config, ask: Callable[[str], Place] | None = None) -> None:
        self._config = config
        self._ask = ask
        self._requested = 0

    def ask(self, name: str) -> Place:
        """A place for this actor, which may not be there yet."""
        if self._ask is not None:
            return self._ask(name)
        return ask_for_place(name, demands(self._config, 1)[1], "STRICT_PACK")

    def request_nodes(self, wanted: int) -> None:
        """Ask the autoscaler for the nodes of this many actors, as long as one of them waits for its place; then 0.

        A placed actor holds its node without a request. Ray counts a request against whole nodes, whoever runs on them,
        so a standing request for placed actors would keep alive a node that is meant to go.
        """
        if self._config.rollout.is_elastic and wanted != self._requested:
            self._requested = wanted
            request_nodes(self._config, wanted) if wanted else release_nodes()

    def missing(self, count: int) -> str:
        """What the cluster lacks for this many actors."""
        return describe_missing(demands(self._config, count)[1])

    def require_in_time(self, waiting: list[str], seconds: float) -> None:
        """Raise RuntimeError where these actors have waited for their places for too long."""
        limit = self._config.cluster.placement_timeout_seconds
        if seconds > limit:
            raise RuntimeError(
                f"no place for {', '.join(waiting)} after cluster.placement_timeout_seconds={limit:g}: "
                f"{self.missing(len(waiting))}. Add nodes, lower rollout.min_actors, or raise the limit"
            )
