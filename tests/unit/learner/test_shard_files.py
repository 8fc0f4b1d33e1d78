"""Which rank wrote which file of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from medr1_ray.learner.shard_files import files_of_rank


def test_a_rank_has_its_shards_and_the_first_rank_all_else(tmp_path: Path) -> None:
    everything = {
        "model.safetensors": 0,
        "config.json": 0,
        "learner_state/layout.json": 0,
        "learner_state/zero/mp_rank_00_model_states.pt": 0,
        "learner_state/zero/zero_pp_rank_0_mp_rank_00_optim_states.pt": 0,
        "learner_state/zero/zero_pp_rank_1_mp_rank_00_model_states.pt": 1,
        "learner_state/zero/bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt": 1,
        "learner_state/zero/zero_pp_rank_11_mp_rank_00_optim_states.pt": 11,
    }
    for name in everything:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    for rank in (0, 1, 2, 11):
        assert files_of_rank(tmp_path, rank) == sorted(name for name, of in everything.items() if of == rank)
