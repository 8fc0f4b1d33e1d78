"""A folder that results cannot go to is found out before there are results."""

from __future__ import annotations

from pathlib import Path

import pytest

from medr1_ray.base.writable_folder import require_writable


def test_a_folder_that_is_there_or_can_be_made_is_left_as_it_was(tmp_path: Path) -> None:
    require_writable("--out x", tmp_path)
    require_writable("--out x", tmp_path / "new" / "deep")
    (tmp_path / "link").symlink_to(tmp_path)
    require_writable("--out x", tmp_path / "link" / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


@pytest.mark.parametrize("below", ["", "/new/deep"])
@pytest.mark.parametrize(
    ("name", "says"), [("file", "is a file"), ("loop", "is a link that leads nowhere"), ("gone", "is a link that")]
)
def test_what_stands_in_the_way_is_named(tmp_path: Path, name: str, says: str, below: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "absent")
    with pytest.raises(ValueError, match=rf"^--out x cannot be made: .*/{name} {says}.*; choose another folder$"):
        require_writable("--out x", Path(f"{tmp_path}/{name}{below}"))


def test_a_file_system_that_cannot_be_written_is_named() -> None:
    with pytest.raises(ValueError, match=r"^run.dir='x' cannot be made: /proc cannot be written \(.*\); choose"):
        require_writable("run.dir='x'", Path("/proc/new"))
