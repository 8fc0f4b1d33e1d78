"""Weight sync: the learner publishes a policy version, and every engine loads it or serves nothing.

Runs in: learner ranks and rollout actors (`transports/`), and vLLM's engine process (`engine/`). The driver's part,
which leads both ends, is `run/weight_sync.py`.

Doors: messages (what crosses processes), protocol (the two ends), buckets, digests, transports, engine.extension (the
class that vLLM loads by its path).

To add a transport: see `transports/__init__.py`.
"""
