"""Which group ends the actors that generate it: found by elimination, and with few more deaths. No Ray here.

When an actor is lost while it generates, all its groups are suspects. A suspect is generated alone, so that the actor's
next death names it, and its answer clears it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

DEATHS = 2
"""An actor may die of something else while it has one group; a second time it is the group."""


class Suspects:
    """The suspected groups by prompt id, with the deaths that only they explain.

    `proven_in_a_row` counts those found guilty since a group was last generated.
    """

    def __init__(self) -> None:
        self.proven_in_a_row = 0
        self._deaths: dict[str, list[str]] = {}

    def __contains__(self, prompt_id: object) -> bool:
        return prompt_id in self._deaths

    def __iter__(self) -> Iterator[str]:
        return iter(self._deaths)

    def __len__(self) -> int:
        return len(self._deaths)

    def lost_with(self, prompt_ids: Sequence[str], reason: str) -> list[str]:
        """An actor was lost while it generated these. The reasons of the deaths, where they prove the only one guilty;
        it is then no longer suspected."""
        for prompt_id in prompt_ids:
            self._deaths.setdefault(prompt_id, [])
        if len(prompt_ids) != 1:
            return []
        (prompt_id,) = prompt_ids
        self._deaths[prompt_id].append(reason)
        if len(self._deaths[prompt_id]) < DEATHS:
            return []
        self.proven_in_a_row += 1
        return self._deaths.pop(prompt_id)

    def generated(self, prompt_id: str) -> None:
        """The group was generated: it is innocent, and engines can generate."""
        self._deaths.pop(prompt_id, None)
        self.proven_in_a_row = 0


def assignments(
    waiting: Mapping[str, int],
    load: Mapping[str, int],
    most: int,
    suspects: Collection[str] = (),
    closed: Collection[str | None] = (),
) -> dict[str, str]:
    """The actor for each prompt that can be given to one now, the least loaded first.

    Args:
        waiting: sequences of each waiting prompt, by its id, in order.
        load: sequences that each serving actor generates.
        most: sequences that an actor may have. More would only wait in its queue; here they can still go to an actor
            that joins.
        suspects: prompts that must be alone on an actor.
        closed: actors that generate a suspect.
    """
    load = {name: sequences for name, sequences in load.items() if name not in closed}
    found: dict[str, str] = {}
    for prompt_id in (each for each in waiting if each in suspects):
        if not load:
            break
        name = min(load, key=load.__getitem__)
        if not load.pop(name):
            found[prompt_id] = name
        # Otherwise the actor gets nothing more until it is idle, or the suspect might wait for ever.
        else:
            break
    for prompt_id in (each for each in waiting if each not in suspects):
        if not load:
            break
        name = min(load, key=load.__getitem__)
        # An idle actor takes any group: one larger than `most` would otherwise never be generated.
        if load[name] and load[name] + waiting[prompt_id] > most:
            break
        load[name] += waiting[prompt_id]
        found[prompt_id] = name
    return found
