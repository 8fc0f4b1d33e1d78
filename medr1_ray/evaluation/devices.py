"""Where the engines of an evaluation run: unless settings say otherwise, on this machine's GPUs, where it has any."""

from __future__ import annotations

from collections.abc import Callable

from medr1_ray.config import Config


def visible_gpus() -> int:
    """Return the number of this machine's GPUs that this process may use and the installed torch can.

    Counted by NVML: CUDA is not initialised, so that the driver holds no memory of a GPU.
    """
    # Imported here because it takes seconds, and a run's checkpoint brings its own settings.
    import torch

    return torch.cuda.device_count()


def place_engines(config: Config, count_gpus: Callable[[], int] = visible_gpus) -> Config:
    """Return the settings with what they leave open chosen for this machine.

    With GPUs there are as many engines as fit, each on as many GPUs as its tensor parallelism needs, in bfloat16. A
    setting that was given, in a file or as an override, stays; a run's own configuration gives all of them.
    """
    rollout, model = config.rollout, config.model
    if "gpus_per_actor" not in rollout.model_fields_set and (gpus := count_gpus()):
        chosen: dict[str, object] = {"gpus_per_actor": float(rollout.tensor_parallel_size)}
        if not {"actors", "min_actors", "max_actors"} & rollout.model_fields_set:
            chosen["actors"] = max(1, gpus // rollout.tensor_parallel_size)
        rollout = rollout.model_copy(update=chosen)
    if rollout.gpus_per_actor and "dtype" not in model.model_fields_set:
        model = model.model_copy(update={"dtype": "bfloat16"})
    return config.model_copy(update={"rollout": rollout, "model": model})


def describe_engines(config: Config) -> str:
    """Return a line for the terminal: how many engines start, where, and in which precision."""
    rollout, dtype = config.rollout, config.model.dtype
    engines = f"{rollout.actors} engine" + "s" * (rollout.actors > 1)
    if rollout.gpus_per_actor:
        share = f"{rollout.gpus_per_actor:g} GPU" + "s" * (rollout.gpus_per_actor > 1)
        return f"starting {engines} on {share}{' each' * (rollout.actors > 1)}, in {dtype}"
    return f"starting {engines} on the CPU, in {dtype} (rollout.gpus_per_actor=1 asks for a GPU)"
