"""The driver's side of rollouts: groups in flight, actors that come and go, and how many there should be.

Runs in: the driver.

Doors: groups (the pool), group_ledger and actor_states (pure state machines), scaling, shared_actors (actors that
several runs use one after the other).

To add a reason for dropping a group: `Workload.drop(prompt_id, reason)`; the counts follow, the metrics too.
To call an actor: `RolloutActors.ask`, which has the one policy for a call that fails or is not answered.
"""
