"""The command that prepares a dataset, and what a run reads of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medr1_ray.config import DataSettings
from medr1_ray.data.dataset import open_dataset
from medr1_ray.data.prepare.__main__ import main
from medr1_ray.data.readers.manifest import read_manifest
from medr1_ray.data.readers.medr1 import read_medr1_rows
from medr1_ray.data.readers.omnimedvqa import read_omnimedvqa
from medr1_ray.data.readers.prepared import read_split
from tests.unit.data.prepare.bad_data import FILES, GOOD, IMAGES, NOISE_PNG, ROWS, bad_rows, make_image


@pytest.fixture(scope="module")
def realmini(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("realmini")
    root = shared_data / "realmini"
    assert main(["--root", str(root), "--out", str(out), "--medr1", str(root / "Splits")]) == 0
    return out


def test_realmini_loses_nothing(realmini: Path, shared_data: Path) -> None:
    account = json.loads((realmini / "prepared.json").read_text())
    assert (account["rows"], account["questions"], account["images"]) == (395, 395, 148)
    split = read_split(realmini, "grouped")
    own = read_omnimedvqa(shared_data / "realmini").questions
    assert {q.id: q for part in split.parts.values() for q in part} == {q.id: q for q in own}


def test_realmini_manifest_is_a_dataset(realmini: Path, shared_data: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    table = Dataset.from_parquet(str(realmini / "manifest.parquet"), cache_dir=str(tmp_path))
    first = table[0]
    assert table.num_rows == 395
    assert (first["id"], first["gold_letter"], first["gold_text"]) == (
        "Brain MRI:0",
        "C",
        "Magnetic resonance imaging (MRI)",
    )
    assert (first["image_path"], first["scan"]) == ("Images/Brain MRI/brain1_000.png", "Images/Brain MRI/brain1")
    with Image.open(shared_data / "realmini" / first["image_path"]) as image:
        assert (first["width"], first["height"]) == image.size


def test_realmini_keeps_volumes_whole(realmini: Path) -> None:
    content = json.loads((realmini / "splits" / "grouped.json").read_text())
    assert content["leakage"]["test"]["shared_image"] == 0
    assert content["leakage"]["test"]["shared_scan"] == 0
    assert content["leakage"]["test"]["near_duplicate"] == 0
    # The smaller of two CT volumes is the test; MRI, ultrasound and fundus have one volume, film or picture each.
    parts = read_split(realmini, "grouped").parts
    assert {q.modality for q in parts["test"]} == {"CT", "X-Ray", "Microscopy"}
    assert {q.dataset for q in parts["test"] if q.modality == "CT"} == {"Lung CT"}


def test_realmini_released_split_is_matched_row_by_row(realmini: Path, shared_data: Path) -> None:
    split = read_split(realmini, "medr1")
    for part, count in (("train", 316), ("test", 79)):
        rows = read_medr1_rows(shared_data / "realmini", f"Splits/{part}.json").questions
        assert len(split.parts[part]) == count
        assert Counter((q.image_path, q.text, q.answer) for q in split.parts[part]) == Counter(
            (q.image_path, q.text, q.answer) for q in rows
        )
    content = json.loads((realmini / "splits" / "medr1.json").read_text())
    assert content["left_out"] == {}
    assert content["leakage"]["test"]["shared_scan"] > 0.9


def test_a_run_reads_a_prepared_split(realmini: Path) -> None:
    settings = DataSettings(format="prepared", root=realmini, eval_part="test")
    dataset = open_dataset(settings)
    assert (len(dataset.train), len(dataset.evaluation), dataset.shared_images) == (297, 96, 0)
    of_ct = open_dataset(settings.model_copy(update={"split": "modality-ct"}))
    assert {q.modality for q in (*of_ct.train, *of_ct.evaluation)} == {"CT"}
    with pytest.raises(ValueError, match=r"data\.split=modality-pet: .* has grouped, medr1, modality-ct"):
        open_dataset(settings.model_copy(update={"split": "modality-pet"}))
    with pytest.raises(ValueError, match=r"data\.eval_part=validation: data\.split=medr1 .* train 316, validation 0"):
        open_dataset(settings.model_copy(update={"split": "medr1", "eval_part": "validation"}))


@pytest.fixture
def small(tmp_path: Path) -> tuple[Path, Path]:
    """Write a dataset of ten images with a question each; return its root and a folder to prepare it into."""
    root = tmp_path / "data"
    (root / "Images" / "Chest").mkdir(parents=True)
    rows = []
    for index in range(10):
        Image.new("L", (9, 9), 20 * index).save(root / "Images" / "Chest" / f"{'abcdefghij'[index]}.png")
        rows.append(
            {
                "dataset": "Chest",
                "question_type": "Lesion Grading",
                "question": f"What {index}?",
                "gt_answer": "x",
                "image_path": f"Images/Chest/{'abcdefghij'[index]}.png",
                "option_A": "x",
                "option_B": "y",
                "modality_type": "X-Ray",
            }
        )
    (root / "QA_information" / "Open-access").mkdir(parents=True)
    (root / "QA_information" / "Open-access" / "Chest.json").write_text(json.dumps(rows))
    return root, tmp_path / "out"


def run(small: tuple[Path, Path], *arguments: str) -> int:
    return main(["--root", str(small[0]), "--out", str(small[1]), "--workers", "1", *arguments])


def test_the_same_data_gives_the_same_digests(small: tuple[Path, Path], tmp_path: Path) -> None:
    def digests() -> tuple[str, str]:
        manifest = json.loads((small[1] / "prepared.json").read_text())
        return manifest["digest"], read_split(small[1], "grouped").digest

    assert run(small) == 0
    before = digests()
    assert run(small) == 0
    assert digests() == before
    assert run(small, "--seed", "1") == 0
    assert digests()[0] == before[0]
    assert digests()[1] != before[1]
    Image.new("L", (9, 9), 255).save(small[0] / "Images" / "Chest" / "a.png")
    assert run(small) == 0
    assert digests()[0] != before[0]


def test_what_does_not_fit_is_refused(small: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    root, out = small
    with pytest.raises(ValueError, match=r"prepared\.json: cannot be read .*medr1_ray\.data\.prepare"):
        read_split(out, "grouped")
    assert run(small, "--medr1", str(root / "Images")) == 1
    assert "error: --medr1" in capsys.readouterr().err
    assert run(small) == 0
    path = out / "splits" / "grouped.json"
    content = json.loads(path.read_text())
    content["parts"]["test"], content["parts"]["train"] = content["parts"]["train"], content["parts"]["test"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="does not match the manifest"):
        read_split(out, "grouped")
    root.rename(root.with_name("moved"))
    with pytest.raises(ValueError, match=r"its images were in .*which is not a folder on this machine"):
        read_split(out, "grouped")
    assert run(small) == 1
    assert "no annotation files" in capsys.readouterr().err


def write_rows(root: Path, folder: str, name: str, rows: list[Any]) -> None:
    (root / "QA_information" / folder).mkdir(parents=True, exist_ok=True)
    (root / "QA_information" / folder / name).write_text(json.dumps(rows))


def test_bad_data_of_every_kind_is_reported_stops_nothing_and_is_not_lost(tmp_path: Path) -> None:
    root, out = tmp_path / "data", tmp_path / "out"
    for name in IMAGES:
        make_image(root / "Images" / "Chest", name)
    (root / "Images" / "Chest" / "good.png").write_bytes(NOISE_PNG)
    write_rows(root, "Open-access", "Rows.json", [GOOD, *bad_rows()])
    of_images = [GOOD | {"image_path": f"Images/Chest/{name}"} for name in IMAGES]
    write_rows(root, "Open-access", "Pictures.json", of_images)
    write_rows(root, "Restricted-access", "Rows.json", [GOOD, GOOD | {"image_path": "Images/Chest/missing.png"}])
    (root / "QA_information" / "Open-access" / "marked.json").write_text(json.dumps([GOOD]), "utf-8-sig")
    (root / "QA_information" / "notes.txt").write_text("hello")
    for name, (make, _) in FILES.items():
        make(root / "QA_information" / "Open-access" / name)
    assert main(["--root", str(root), "--out", str(out), "--workers", "2"]) == 0

    rows = read_manifest(out)
    assert len({row.id for row in rows}) == len(rows)
    left_out = {row.id: row.left_out for row in rows}
    expected = {f"Rows:{index}": reason for index, (_, reason) in enumerate(ROWS.values(), 1)}
    expected |= {f"Pictures:{index}": reason for index, (_, reason, _) in enumerate(IMAGES.values())}
    expected |= dict.fromkeys((name.removesuffix(".json") for name in FILES), "file cannot be read")
    expected |= {"QA_information/notes.txt": "file is no annotation file (.json)"}
    # A byte-order mark does no harm, nor does the same file name in another folder.
    expected |= dict.fromkeys(("Rows:0", "marked:0", "QA_information/Restricted-access/Rows:0"))
    expected |= {"QA_information/Restricted-access/Rows:1": "image file not found"}
    assert left_out == expected
    of_files = {row.id: row for row in rows if row.row is None}
    assert all(text in str(of_files[name.removesuffix(".json")].remark) for name, (_, text) in FILES.items())
    account = json.loads((out / "prepared.json").read_text())
    unusable = [reason for reason in expected.values() if reason]
    assert (account["rows"], account["questions"]) == (len(rows), len(rows) - len(unusable))
    assert {reason: rest["rows"] for reason, rest in account["left_out"].items()} == Counter(unusable)
    assert account["remarks"]["a JPEG file by its content"]["first"] == [
        f"Pictures:{list(IMAGES).index(name)}" for name in ("jpeg.png", "link.png")
    ]
