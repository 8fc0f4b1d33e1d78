"""Whether engines and learner compute the same: `gate.py` compares, `known_tokens.py` tells policy versions apart."""
