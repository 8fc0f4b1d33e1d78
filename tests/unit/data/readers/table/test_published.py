"""The configurations of published datasets, on hand-made files in their layouts: what is taken, what is left out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from medr1_ray.config import Config
from medr1_ray.config.loading import load_config
from medr1_ray.data.readers.rows import dropped_by_reason
from medr1_ray.data.readers.table.reader import Table, TableReader
from tests.repository import REPOSITORY

CONFIGS = REPOSITORY / "configs"


def config_of(name: str, root: Path, images: str | None = None) -> Config:
    """Return a run's settings with those of a dataset laid over them, as a user would with two `--config`."""
    given = [f"data.root={json.dumps(str(root))}"]
    if images is not None:
        given.append(f"data.image_root={json.dumps(str(root / images))}")
    return load_config([CONFIGS / "realmini_cpu.yaml", CONFIGS / f"datasets/{name}.yaml"], given)


def read(name: str, root: Path, images: str | None = None) -> Table:
    data = config_of(name, root, images).data
    assert data.table is not None
    return TableReader(data.table, data.root, data.image_root or data.root, images_needed=True).read()


def asked(table: Table) -> list[tuple[str, tuple[str, ...], str, str | None]]:
    """Return stem, options, right option and part of each question."""
    return [
        (row.question.stem, row.question.options, row.question.options[row.question.answer], row.part)
        for row in table.rows
    ]


def image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), 40).save(path)


def embedded(grey: int = 40) -> dict[str, Any]:
    content = io.BytesIO()
    Image.new("L", (8, 8), grey).save(content, "PNG")
    return {"bytes": content.getvalue(), "path": f"{grey}.png"}


def write_csv(path: Path, rows: Sequence[dict[str, str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    names = list(rows[0])
    schema = pyarrow.schema([(name, kind if name.startswith("image") else pyarrow.string()) for name in names])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema), path)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)


def test_every_configuration_is_tested_here() -> None:
    names = {path.stem for path in (CONFIGS / "datasets").glob("*.yaml")}
    here = Path(__file__).read_text(encoding="utf-8")
    assert {name for name in names if f'read("{name}"' in here} == names
    for name in names:
        config = load_config([CONFIGS / "medr1_qwen2vl_2b_nothink.yaml", CONFIGS / f"datasets/{name}.yaml"])
        assert config.data.format == "table"


def pmc_row(figure: str, answer: str, label: str) -> dict[str, str]:
    texts = {"A": "MRI", "B": "CT", "C": "PET", "D": "US"}
    choices = {f"Choice {letter}": f" {letter}:{text} " for letter, text in texts.items()}
    return {"Figure_path": figure, "Question": "Which modality? ", "Answer": answer, **choices, "Answer_label": label}


def test_pmc_vqa(tmp_path: Path) -> None:
    image(tmp_path / "images" / "PMC1_F1.jpg")
    write_csv(tmp_path / "train.csv", [pmc_row("PMC1_F1.jpg", " CT", "B"), pmc_row("PMC2_F1.jpg", "CT", "B")])
    write_csv(tmp_path / "test.csv", [pmc_row("PMC1_F1.jpg", "US", "D")])
    (tmp_path / "test_clean.csv").write_text("not read")
    table = read("pmc_vqa", tmp_path, "images")
    options = ("MRI", "CT", "PET", "US")
    assert asked(table) == [("Which modality?", options, "CT", "train"), ("Which modality?", options, "US", "test")]
    assert dropped_by_reason(table.dropped) == {"image file not found": 1}


def test_pmc_vqa_version_2(tmp_path: Path) -> None:
    image(tmp_path / "images_2" / "PMC1_Fig1_2.jpg")
    for part in ("train", "test"):
        row = pmc_row("PMC1_Fig1_2.jpg", "C", "")
        del row["Answer_label"]
        write_csv(tmp_path / f"{part}_2.csv", [{"index": "0", **row, "Caption": "A, B, and C.", "split": part}])
    table = read("pmc_vqa_2", tmp_path, "images_2")
    assert [(right, part) for _, _, right, part in asked(table)] == [("PET", "train"), ("PET", "test")]


def slake_row(qid: int, question: str, answer: str, **other: Any) -> dict[str, Any]:
    return {
        "img_id": 1,
        "img_name": "xmlab1/source.jpg",
        "question": question,
        "answer": answer,
        "q_lang": "en",
        "location": "Lung",
        "modality": "X-Ray",
        "answer_type": "CLOSED",
        "base_type": "vqa",
        "content_type": "Abnormality",
        "triple": ["vhead", "_", "_"],
        "qid": qid,
        **other,
    }


def test_slake(tmp_path: Path) -> None:
    image(tmp_path / "imgs" / "xmlab1" / "source.jpg")
    train = [
        slake_row(0, "Is the lung healthy?", "No"),
        slake_row(1, "Is there a mass?", "yes"),
        slake_row(2, "Is this a CT or an X-Ray?", "X-Ray"),
        slake_row(3, "What is shown?", "A lung", answer_type="OPEN"),
        slake_row(4, "肺部健康吗?", "不健康", q_lang="zh"),
    ]
    for name, rows in (("train", train), ("validate", train[:1]), ("test", train[1:2])):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    table = read("slake", tmp_path, "imgs")
    yes_no = ("Yes", "No")
    assert asked(table) == [
        ("Is there a mass?", yes_no, "Yes", "test"),
        ("Is the lung healthy?", yes_no, "No", "train"),
        ("Is there a mass?", yes_no, "Yes", "train"),
        ("Is the lung healthy?", yes_no, "No", "validation"),
    ]
    assert {(row.question.modality, row.question.question_type) for row in table.rows} == {("X-Ray", "Abnormality")}
    assert dropped_by_reason(table.dropped) == {
        "answer is none of the options": 1,
        "answer_type is not CLOSED": 1,
        "q_lang is not en": 1,
    }


def write_images_inside(root: Path, parts: Sequence[str]) -> None:
    answers = ("yes", "No", "right lower lobe")
    rows = [{"image": embedded(), "question": "is there a mass?", "answer": answer} for answer in answers]
    for part in parts:
        write_parquet(root / "data" / f"{part}-00000-of-00001-eb8844602202be60.parquet", rows)


def test_vqa_rad(tmp_path: Path) -> None:
    write_images_inside(tmp_path, ("train", "test"))
    table = read("vqa_rad", tmp_path)
    assert asked(table) == [
        ("is there a mass?", ("yes", "no"), answer, part) for part in ("test", "train") for answer in ("yes", "no")
    ]
    assert dropped_by_reason(table.dropped) == {"answer is none of the options": 2}


def test_path_vqa(tmp_path: Path) -> None:
    write_images_inside(tmp_path, ("train", "validation", "test"))
    table = read("path_vqa", tmp_path)
    assert [(right, part) for _, _, right, part in asked(table)] == [
        (answer, part) for part in ("test", "train", "validation") for answer in ("yes", "no")
    ]
    assert dropped_by_reason(table.dropped) == {"answer is none of the options": 3}


def test_vqa_rad_as_first_published(tmp_path: Path) -> None:
    folder = "VQA_RAD Image Folder"
    image(tmp_path / folder / "synpic1.jpg")

    def row(answer: str | int, answer_type: str, name: str = "synpic1.jpg") -> dict[str, Any]:
        return {
            "qid": "0",
            "phrase_type": "freeform",
            "qid_linked_id": "03f451ca-de62-4617-9679-e836026a7642",
            "image_case_url": "https://medpix.nlm.nih.gov/case?id=48e1dd0e",
            "image_name": name,
            "image_organ": "HEAD",
            "evaluation": "not evaluated",
            "question": "Is there a midline shift?",
            "question_rephrase": "NULL",
            "question_relation": "NULL",
            "question_frame": "NULL",
            "question_type": "PRES",
            "answer": answer,
            "answer_type": answer_type,
        }

    rows = [row("Yes", "CLOSED"), row("no ", "CLOSED "), row("Left", "CLOSED"), row(3, "OPEN")]
    rows.append(row("No", "CLOSED", "b.jpg"))
    (tmp_path / "VQA_RAD Dataset Public.json").write_text(json.dumps(rows))
    table = read("vqa_rad_osf", tmp_path, folder)
    assert [(right, part) for _, _, right, part in asked(table)] == [("Yes", None), ("No", None)]
    assert dropped_by_reason(table.dropped) == {
        "answer is none of the options": 1,
        "answer_type is not CLOSED": 1,
        "image file not found": 1,
    }


def test_medxpertqa_mm(tmp_path: Path) -> None:
    image(tmp_path / "images" / "MM-26-a.jpeg")
    image(tmp_path / "images" / "MM-27-b.jpeg")
    options = {"A": "C", "B": "D", "C": "A", "D": "B", "E": "None of the above"}

    def row(id_: str, images: list[str]) -> str:
        text = "Which artery supplies the cord?\nAnswer Choices: (A) C (B) D (C) A (D) B (E) None of the above"
        of = {"id": id_, "question": text, "options": options, "label": "C", "images": images}
        of |= {"medical_task": "Basic Medicine", "body_system": "Cardiovascular", "question_type": "Understanding"}
        return json.dumps(of)

    (tmp_path / "MM").mkdir()
    rows = [row("MM-26", ["MM-26-a.jpeg"]), row("MM-27", ["MM-26-a.jpeg", "MM-27-b.jpeg"])]
    (tmp_path / "MM" / "test.jsonl").write_text("\n".join(rows))
    (tmp_path / "MM" / "dev.jsonl").write_text(row("MM-2000", ["MM-26-a.jpeg"]))
    table = read("medxpertqa_mm", tmp_path, "images")
    expected = ("Which artery supplies the cord?", tuple(options.values()), "A")
    assert asked(table) == [(*expected, "validation"), (*expected, "test")]
    assert [row.question.id for row in table.rows] == ["MM-2000", "MM-26"]
    assert table.rows[0].question.question_type == "Basic Medicine"
    assert dropped_by_reason(table.dropped) == {"several images": 1}


def test_mmmu_med(tmp_path: Path) -> None:
    def row(id_: str, options: str, answer: str, kind: str, images: int = 1) -> dict[str, Any]:
        return {
            "id": id_,
            "question": "Which tumor is in <image 1>?",
            "options": options,
            "explanation": "",
            **{f"image_{index}": embedded(index) if index <= images else None for index in range(1, 8)},
            "img_type": "['Pathological Images']",
            "answer": answer,
            "topic_difficulty": "Medium",
            "question_type": kind,
            "subfield": "Pathology",
        }

    for subject in ("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine", "Pharmacy"):
        rows = [row(f"validation_{subject}_1", "['Glioma', \"Ewing's sarcoma\"]", "B", "multiple-choice")]
        write_parquet(tmp_path / subject / "validation-00000-of-00001.parquet", rows)
    rows = [
        row("validation_Public_Health_1", "[]", "0.5", "open"),
        row("validation_Public_Health_2", "['a', 'b']", "A", "multiple-choice", images=2),
        row("validation_Public_Health_3", "['a', 'b']", "A", "multiple-choice"),
    ]
    write_parquet(tmp_path / "Public_Health" / "validation-00000-of-00001.parquet", rows)
    write_parquet(
        tmp_path / "Public_Health" / "test-00000-of-00001.parquet",
        [row("test_Public_Health_1", "['a', 'b']", "?", "multiple-choice")],
    )
    # Another subject of MMMU is none of the medical ones.
    write_parquet(tmp_path / "Art" / "validation-00000-of-00001.parquet", rows)
    table = read("mmmu_med", tmp_path)
    assert len(table.rows) == 5
    assert asked(table)[0][1:] == (("Glioma", "Ewing's sarcoma"), "Ewing's sarcoma", "validation")
    assert {row.question.question_type for row in table.rows} == {"Pathology"}
    assert dropped_by_reason(table.dropped) == {
        "question_type is not multiple-choice": 1,
        "image_2 is not empty": 1,
        "answer is none of the options": 1,
    }
