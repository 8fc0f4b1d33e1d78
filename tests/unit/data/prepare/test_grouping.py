"""What splits keep whole, and what is said about it."""

from __future__ import annotations

from medr1_ray.data.prepare.grouping import describe, regrouped
from tests.unit.data.prepare.manifest_rows import row

ROWS = [row(f"img1_{index:04}", scan="group 7") for index in range(60)]
LEFT_OUT = row("x", left_out="no question", image_path=None, scan=None)


def test_groups_come_from_the_column_from_paths_or_from_images() -> None:
    assert regrouped([*ROWS, LEFT_OUT], "column") == [*ROWS, LEFT_OUT]
    assert {one.scan for one in regrouped([*ROWS, LEFT_OUT], "paths")} == {"Images/Chest/img1", None}
    assert len({one.scan for one in regrouped(ROWS, "images")}) == 60


def test_what_file_names_tell_is_a_proposal_that_is_shown() -> None:
    said = describe(ROWS, "column")
    assert said.startswith("groups, from the group column: 60 images in 1 group, the largest group 7 with 60; --groups")
    assert describe(regrouped(ROWS, "paths"), "paths").startswith("groups, from file names: 60 images in 1 group, the")
    said = describe(regrouped([*ROWS, LEFT_OUT], "images"), "images")
    assert "each of the 60 images on its own" in said
    assert "60 images in 1 group, the largest Images/Chest/img1 with 60; --groups paths keeps these whole" in said
    assert describe(regrouped([row("a"), row("b")], "images"), "images") == "groups: each of the 2 images on its own"
