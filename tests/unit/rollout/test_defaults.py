"""What the driver knows of an engine: the settings that travel to it, and how much it does at once."""

from __future__ import annotations

import pickle
from pathlib import Path

from medr1_ray.base.shared_file import SharedFile
from medr1_ray.config import Config
from medr1_ray.rollout.defaults import MAX_NUM_SEQS, EngineSettings, sequences_at_once


def a_config(**rollout: object) -> Config:
    return Config.model_validate(
        {
            "run": {"dir": Path("/runs/mine")},
            "data": {"format": "phantoms", "root": Path("data")},
            "model": {"dtype": "bfloat16"},
            "train": {"steps": 9, "seed": 3},
            "rollout": rollout,
            "cluster": {"sync_timeout_seconds": 11},
        }
    )


def test_an_engine_gets_the_sections_that_it_reads_and_they_travel() -> None:
    config = a_config(max_tokens=7, engine={"max_num_seqs": 4})
    settings = pickle.loads(pickle.dumps(EngineSettings.of(config)))
    assert settings == EngineSettings.of(config)
    assert (settings.model.dtype, settings.rollout.max_tokens, settings.seed) == ("bfloat16", 7, 3)
    assert settings.rollout.engine == {"max_num_seqs": 4}
    assert settings.cluster.sync_timeout_seconds == 11
    assert settings.logs == Path("/runs/mine/logs")
    mark = SharedFile("run.dir", Path("/runs/mine"), Path("/runs/mine/logs/.driver"), "digest", "head")
    assert (settings.files, EngineSettings.of(config, (mark,)).files) == ((), (mark,))


def test_an_engine_samples_as_many_sequences_as_it_is_told_to() -> None:
    assert sequences_at_once(a_config(engine={"max_num_seqs": 4}).rollout) == 4
    assert sequences_at_once(a_config().rollout) == MAX_NUM_SEQS
