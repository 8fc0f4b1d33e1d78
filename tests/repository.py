"""Where the repository is, for tests that read its other folders or start its commands."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
