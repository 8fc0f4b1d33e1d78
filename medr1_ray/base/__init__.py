"""Small tools that know nothing of the domain: standard library only.

Runs in: every process.

Doors: all modules.

To add one: it must have several users in different rooms, need no third-party package, and know no word of
reinforcement learning. Otherwise it belongs to the room that uses it.
"""
