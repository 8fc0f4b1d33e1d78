"""GRPO for medical visual question answering, as a distributed actor-learner system on Ray."""

__version__ = "0.1.0"
