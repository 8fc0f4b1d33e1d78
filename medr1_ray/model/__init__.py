"""Everything specific to the model family (Qwen2-VL, Qwen2.5-VL): torch and transformers, no Ray, vLLM or DeepSpeed.

Runs in: learner ranks (policy, packing, attention, adapters); rollout actors use the vocabulary, `--dry-run` the shape
and the operation counts, evaluation the checkpoint files; the driver checks model folders (`folder/check.py`).

Doors: all modules.

To add a model family: begin with its record in `family.py`; `policy.py` runs its forward pass on packed rows,
`shape.py` reads its configuration. CONTRIBUTING.md lists the steps.
"""
