"""General-purpose helpers that contain no reinforcement-learning concepts; standard library only.

Runs in: every process.

Doors: all modules.

To add a helper: it must be used by several rooms, need no third-party package, and contain no reinforcement-learning
concepts. Otherwise it belongs in the room that uses it.
"""
