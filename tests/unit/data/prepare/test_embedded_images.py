"""Images of a table become files."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from medr1_ray.config import TableSettings
from medr1_ray.data.prepare.embedded_images import write_embedded
from medr1_ray.data.readers.table.reader import TableReader


def picture(kind: str, grey: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (4, 4), grey).save(content, kind)
    return content.getvalue()


def test_each_image_is_written_once_under_a_name_of_its_content(tmp_path: Path) -> None:
    from datasets import Dataset

    same = picture("PNG", 1)
    cells = [[same], [picture("JPEG", 2)], [same], [b"no image"], [], [same, same], [picture("PNG", 3)]]
    images = [[{"bytes": content} for content in cell] for cell in cells]
    rows = {"image": images, "question": ["?"] * 7, "A": ["x"] * 7, "B": ["y"] * 7, "answer": ["A"] * 7}
    Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    reader = TableReader(TableSettings(file="saved"), tmp_path, tmp_path, images_needed=False)
    wanted = {("saved", number) for number in range(6)}
    names = write_embedded(reader, wanted, tmp_path / "out" / "images")
    assert names.keys() == wanted
    files = [str(names["saved", number]) for number in range(6)]
    assert [Path(name).suffix for name in files[:4]] == [".png", ".jpeg", ".png", ".bin"]
    assert files[0] == files[2]
    assert files[4:] == ["no image", "several images"]
    assert {path.name for path in (tmp_path / "out" / "images").iterdir()} == set(files[:4])
    assert (tmp_path / "out" / "images" / files[0]).read_bytes() == same
    before = (tmp_path / "out" / "images" / files[0]).stat().st_mtime_ns
    assert write_embedded(reader, wanted, tmp_path / "out" / "images").keys() == wanted
    assert (tmp_path / "out" / "images" / files[0]).stat().st_mtime_ns == before
