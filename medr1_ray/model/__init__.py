"""All that knows a family of vision-language models: torch and transformers, no Ray, vLLM or DeepSpeed.

Runs in: learner ranks (policy, packing, attention, adapters); rollout actors use the vocabulary, `--dry-run` the shape
and the operation counts, evaluation the checkpoint files.

Doors: all modules.

To add a model family: `shape.py` reads its configuration, `policy.py` makes its forward pass from packed rows,
`checkpoint_files.py` has its parameter names, `vocabulary.py` its special tokens. CONTRIBUTING.md has it step by step.
"""
