"""Images in Ray's object store: their size by hand, and what is said where the store would be too small."""

from __future__ import annotations

from pathlib import Path

import pytest

from medr1_ray.sizing import stored_images as module
from medr1_ray.sizing.report import dry_run
from medr1_ray.sizing.stored_images import default_store_bytes, stored_image_bytes
from tests.repository import REPOSITORY
from tests.unit.sizing.recipes import recipe

MIB = 2**20
IMAGE = 3 * 384 * 384


@pytest.mark.parametrize(
    ("given", "size"),
    [
        # A step of 4 in flight, and two caches.
        ([], 4 * IMAGE + 512 * MIB),
        # 1,024 in flight; 3 x 1,024 that are begun take more than a cache.
        (["train.prompts_per_step=1024"], (1024 + 3 * 1024) * IMAGE + 256 * MIB),
        # Engines are three batches ahead.
        (["train.prompts_per_step=1024", "train.max_staleness=3"], (4096 + 3072) * IMAGE + 256 * MIB),
        (
            ["train.prompts_per_step=1024", "train.max_staleness=3", "train.minibatches=2", "train.steps=40"],
            (2048 + 3072) * IMAGE + 256 * MIB,
        ),
    ],
)
def test_images_in_flight_those_ahead_and_two_caches(given: list[str], size: int) -> None:
    config = recipe("loss.importance_cap=2.0", *given)
    assert config.data.image_size == 384
    assert stored_image_bytes(config) == size


def test_the_store_is_a_share_of_the_memory_or_what_dev_shm_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(module, "_CGROUP", tmp_path)
    (tmp_path / "meminfo").write_text("MemTotal:  9000000 kB\nMemAvailable:    1000 kB\nHugePages_Total:   0\n")
    assert default_store_bytes() == 300 * 1024
    (tmp_path / "memory.max").write_text("500\n")
    (tmp_path / "memory.current").write_text("400\n")
    assert default_store_bytes() == 30, "a container has less"
    (tmp_path / "memory.max").write_text("max\n")
    assert default_store_bytes() == 300 * 1024
    (tmp_path / "meminfo").write_text(f"MemAvailable:    {10**15} kB\n")
    shared = default_store_bytes()
    assert 0 < shared < 10**15
    assert shared % 4096 == 0


def test_a_dry_run_says_where_the_store_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = recipe("cluster.weight_transport=object_store")
    monkeypatch.setattr("medr1_ray.sizing.report.default_store_bytes", lambda: 20 * 2**30)
    text = dry_run(config)
    assert "\nImages take up to 513.7 MiB of the object store on the encoders' node" in text
    assert "too small" not in text
    monkeypatch.setattr("medr1_ray.sizing.report.default_store_bytes", lambda: 12 * 2**30)
    text = dry_run(config)
    assert "store would be 12.00 GiB (30 % of the available memory, at most /dev/shm), too small\nfor the" in text
    assert "\nfor the 12.85 GiB of a sync and images: Ray would write to disk." in text
    assert max(len(line) for line in text.splitlines()) <= 110
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    text = dry_run(config)
    assert "unless `ray start --object-store-memory` says otherwise" in text
    assert "too small" not in text, "the store is another machine's"
