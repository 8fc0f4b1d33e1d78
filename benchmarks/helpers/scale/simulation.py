"""A driver and its engines, simulated."""

from __future__ import annotations

import heapq


def simulate(engines: int, latency_seconds: float, driver_seconds: float, in_flight: int) -> float:
    """Return the groups per second of a driver and engines, each serving one group at a time in order of arrival.

    Issuing a group takes half of `driver_seconds`, taking in its answer the other half. A finished group is issued
    again at once, so that `in_flight` groups circulate. Deterministic; weight sync is not modelled.
    """
    driver_free = 0.0
    engine_free = [0.0] * engines
    # (time, order, kind): "issue" asks the driver to issue a group, "answer" to take one in. `order` breaks ties.
    events = [(0.0, i, "issue") for i in range(in_flight)]
    heapq.heapify(events)
    order, answered, wanted, warm = in_flight, 0, 20 * in_flight, 5 * in_flight
    start = 0.0
    while answered < wanted:
        now, _, event = heapq.heappop(events)
        driver_free = max(driver_free, now) + driver_seconds / 2
        order += 1
        if event == "issue":
            free = heapq.heappop(engine_free)
            done = max(free, driver_free) + latency_seconds
            heapq.heappush(engine_free, done)
            heapq.heappush(events, (done, order, "answer"))
        else:
            answered += 1
            if answered == warm:
                start = driver_free
            heapq.heappush(events, (driver_free, order, "issue"))
    return (wanted - warm) / (driver_free - start)
