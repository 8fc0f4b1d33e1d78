"""What splits keep whole, and what is said about it."""

from __future__ import annotations

from medr1_ray.data.prepare.grouping import describe, regrouped
from medr1_ray.data.prepare.scans import groups_of
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


def test_groups_that_share_an_image_are_counted_as_the_split_keeps_them() -> None:
    rows = [
        row("a", scan="p0"), row("b", scan="p0"), row("a", scan="p1"), row("c", scan="p1"), row("d", scan="p2")
    ]
    said = describe(rows, "column")
    assert len(groups_of(rows)) == 2
    joined = "(shared images join 2 named groups into one: p0, p1); --groups"
    assert f"4 images in 2 groups, the largest p0 with 3, p2 with 1 {joined}" in said
    more = [row("a", scan=f"p{number}") for number in range(9)] + [row("z", scan="q"), row("z", scan="r")]
    joined = "(shared images join 11 named groups into 2, the first: p0, p1, p2, ...)"
    assert f"2 images in 2 groups, the largest p0 with 1, q with 1 {joined}" in describe(more, "column")
    copies = regrouped([row("a"), row("b", image_hash="ha"), row("c", image_hash="ha")], "images")
    assert describe(copies, "images").startswith("groups: each of the 3 images on its own, but")
