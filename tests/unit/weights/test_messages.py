"""Where each engine is in a group that broadcasts."""

from __future__ import annotations

from medr1_ray.weights.messages import WeightMember, weight_groups


def test_rank_offsets_follow_the_tensor_parallel_sizes() -> None:
    members = [WeightMember(name, "0", ranks) for name, ranks in (("a", 2), ("b", 1), ("c", 4))]
    places = weight_groups("host:1", members)
    # The learner is rank 0; then two, one and four workers: eight ranks.
    assert [(place.rank_offset, place.world_size) for place in places] == [(1, 8), (3, 8), (4, 8)]
    assert {place.address for place in places} == {"host:1"}
    assert weight_groups("host:1", []) == []
