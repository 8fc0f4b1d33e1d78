from medr1_ray.learner.batching import groups_that_teach


def test_groups_with_equal_rewards_are_left_out():
    assert groups_that_teach(["a", "b", "c", "d"], [True, False, True, False], world_size=1) == ["b", "d"]


def test_some_stay_where_a_rank_would_have_no_group():
    assert groups_that_teach(["a", "b", "c", "d"], [True, False, True, True], world_size=3) == ["b", "a", "c"]


def test_one_stays_where_all_are_equal():
    assert groups_that_teach(["a", "b"], [True, True], world_size=1) == ["a"]
