"""Named splits of a prepared dataset: what belongs together, digests, leakage, and how a run reads them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from medr1_ray.config import DataSettings
from medr1_ray.data.dataset import open_dataset
from medr1_ray.data.prepare.__main__ import main
from medr1_ray.data.prepare.leakage import Leakage, leakage
from medr1_ray.data.prepare.recipes import grouped_splits
from medr1_ray.data.prepare.scans import groups_of, scan_of
from medr1_ray.data.readers.manifest import ManifestRow
from medr1_ray.data.readers.medr1 import read_medr1_rows
from medr1_ray.data.readers.omnimedvqa import read_omnimedvqa
from medr1_ray.data.readers.prepared import PARTS, read_split, split_digest
from medr1_ray.data.splits import hold_out
from medr1_ray.types import Question


def row(id_: str, image: str = "", **changes: object) -> ManifestRow:
    """A usable row about an image of that name, with pixels of its own."""
    image = image or id_
    path = f"Images/Chest/{image}.png"
    whole = ManifestRow(
        id=id_,
        file="Chest.json",
        row=0,
        dataset="Chest",
        modality="CT",
        question_type="Lesion Grading",
        stem="What?",
        options=("x", "y"),
        gold_letter="A",
        gold_text="x",
        image_path=path,
        image_hash=f"hash of {image}",
        perceptual_hash=hashlib.blake2b(image.encode(), digest_size=8).hexdigest(),
        scan=scan_of(path),
    )
    return dataclasses.replace(whole, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "together",
    [
        ["CoronaHack/test/person121_bacteria_576.jpeg", "Chest X-Ray PA/pneumonia/person121_bacteria_9.jpeg"],
        ["CoronaHack/test/IM-0005-0001.jpeg", "OCT & X-Ray 2017/val/IM-0005-0002.jpeg"],
        ["OCT & X-Ray 2017/test/CNV/CNV-1016042-3.jpeg", "OCT & X-Ray 2017/val/CNV/CNV-1016042-1.jpeg"],
        ["PAD-UFES-20/imgs_part_1/PAT_101_1041_651.png", "PAD-UFES-20/imgs_part_2/PAT_101_9_1.png"],
        ["BreakHis/benign/SOB_B_A-14-22549AB-100-001.png", "BreakHis/benign/SOB_B_A-14-22549AB-400-7.png"],
        ["MAlig Lymph/FL/sj-05-5311-R1_013.tif", "MAlig Lymph/FL/sj-05-5311_002.tif"],
        ["NLM/P/C100P61ThinF_IMG_20150918_144104_cell_165.png", "NLM/U/C100P61ThinF_IMG_2015_1_cell_6.png"],
        [
            "COVIDx CXR-4/test/MIDRC-RICORD-1C-419639-001085-09031-0.png",
            "COVIDx CXR-4/test/MIDRC-RICORD-1C-419639-001085-57702-0.png",
        ],
        ["Covid CT/CT_COVID/2020.03.22.20034041-p18-92-2.png", "Covid CT/CT_COVID/2020.03.22.20034041-p7-52%1.png"],
        ["Chest X-Ray PA/normal/00000577_002.png", "Chest X-Ray PA/normal/00000577_014.png"],
        ["Diabetic Retinopathy/0/10035_right.jpeg", "Diabetic Retinopathy/4/10035_left.jpeg"],
        ["Knee Osteoarthritis/test/0/9003175L.png", "Knee Osteoarthritis/val/2/9003175R.png"],
        ["DeepDRiD/regular-fundus-test/347/347_r1.jpg", "DeepDRiD/regular-fundus-test/347/347_l2.jpg"],
        [
            "OLIVES/train/Prime_FULL_Prime_FULL_01-001_W0_OS_fundus_W0.png",
            "OLIVES/train/Prime_FULL_Prime_FULL_01-001_W20_OD_1.tif",
        ],
        [
            "OLIVES/train/TREX DME_GILA_0203GOS_V10_OD_fundus_OD_V10.tif",
            "OLIVES/train/TREX DME_GILA_0203GOD_V6_OS_TREXK_001.tif",
        ],
        [
            "Mura/MURA-v1.1/valid/XR_ELBOW/patient11186/study1_positive/image2.png",
            "Mura/MURA-v1.1/valid/XR_HUMERUS/patient11186/study2_negative/image1.png",
        ],
        ["MIAS/mdb001.png", "MIAS/mdb002.png"],
        ["Torso CT/slice_002.tif", "Torso CT/slice_131.bmp"],
        ["Radiographs/RG1_UNCR.jpg", "Radiographs/RG1_UNCR_crop0.jpg"],
        ["Fundus/retina.jpg", "Fundus/retina_crop11.jpg"],
        ["Lung CT/lung1_034.png", "Lung CT/lung1_000.jpg"],
        ["MHSMA/test/test_0.jpg", "MHSMA/test/test_0.png"],
    ],
    ids=lambda paths: paths[0],
)
def test_paths_of_one_scan(together: list[str]) -> None:
    assert len({scan_of(f"Images/{path}") for path in together}) == 1


@pytest.mark.parametrize(
    "apart",
    [
        ["RadImageNet/Airspace_opacity/lung000007.png", "RadImageNet/Airspace_opacity/lung000024.png"],
        ["Blood Cell/val/EOSINOPHIL/_0_1616.jpeg", "Blood Cell/val/EOSINOPHIL/_0_1845.jpeg"],
        ["Retinal OCT-C8/test/AMD/amd_test_1001.jpg", "Retinal OCT-C8/test/AMD/amd_test_1003.jpg"],
        ["ISIC2019/train/ISIC_0065275.jpg", "ISIC2019/train/ISIC_0065283.jpg"],
        ["RUS CHN/DIP/1/DIP_1035813.png", "RUS CHN/MCP/5/MCP_533982.png"],
        ["Pulmonary Chest MC/MCUCXR_0002_0.png", "Pulmonary Chest MC/MCUCXR_0004_0.png"],
        ["Chest CT Scan/test/normal/12.png", "Chest CT Scan/test/adenocarcinoma/12.png"],
        ["MIAS/mdb002.png", "MIAS/mdb003.png"],
        ["Yangxi/test_1003.png", "Yangxi/train_1003.png"],
        ["Diabetic Retinopathy/0/10035_right.jpeg", "Knee/0/10035_right.jpeg"],
        ["Lung CT/lung1_034.png", "Lung CT/lung2_034.png"],
    ],
    ids=lambda paths: paths[0],
)
def test_paths_of_different_scans(apart: list[str]) -> None:
    assert len({scan_of(f"Images/{path}") for path in apart}) == 2


def test_groups_are_linked_over_pixels_and_scans() -> None:
    rows = [
        row("a", "v1_1"),
        row("b", "v1_2"),  # the volume of a
        row("c", "copy", image_hash="hash of v1_2"),  # the pixels of b
        row("d", "copy"),  # the file of c, other question
        row("e", "alone"),
    ]
    groups = groups_of(rows)
    assert {key: [member.id for member in members] for key, members in groups.items()} == {
        "hash of copy": ["a", "b", "c", "d"],
        "hash of alone": ["e"],
    }
    assert groups_of(rows[::-1]).keys() == groups.keys()


def test_hold_out_by_hand() -> None:
    fractions = {"test": 0.2, "validation": 0.1}
    singles = hold_out({str(i): 1 for i in range(100)}, fractions, seed=0)
    assert Counter(singles.values()) == {"test": 20, "validation": 10}
    assert hold_out({str(i): 1 for i in range(100)}, fractions, seed=1) != singles
    # Nothing fits: the smallest goes to the test, the next smallest to validation, and never all.
    assert hold_out({"a": 50, "b": 20, "c": 30}, fractions, 0) == {"b": "test", "c": "validation"}
    assert hold_out({"a": 50, "b": 20}, fractions, 0) == {"b": "test"}
    assert hold_out({"a": 50}, fractions, 0) == {}
    # A large group is passed over for those that fit.
    parts = hold_out({"large": 90, **{str(i): 1 for i in range(10)}}, {"test": 0.05}, 0)
    assert len(parts) == 5
    assert "large" not in parts


def test_grouped_splits_agree_and_leak_nothing() -> None:
    rows = [
        row(
            f"{modality}{volume}-{index}",
            f"{modality}{volume}_{index}",
            modality=modality,
            question_type=("Lesion Grading", "Disease Diagnosis")[index % 2],
        )
        for modality in ("CT", "MRI")
        for volume in range(40)
        for index in range(3)
    ]
    rows.append(row("bad", left_out="image file not found", image_hash=None))
    splits = {split.name: split for split in grouped_splits(rows, seed=0)}
    assert list(splits) == ["grouped", "modality-ct", "modality-mri", "type-disease-diagnosis", "type-lesion-grading"]
    grouped = {part: set(ids) for part, ids in splits["grouped"].parts.items()}
    assert {part: len(ids) for part, ids in grouped.items()} == {"train": 180, "validation": 12, "test": 48}
    by_id = {one.id: one for one in rows}
    for split in splits.values():
        assert all(set(split.parts[part]) <= grouped[part] for part in PARTS)
        train, test = ([by_id[id_] for id_ in split.parts[part]] for part in ("train", "test"))
        leak = leakage(train, test)
        assert leak is not None
        assert (leak.shared_image, leak.shared_scan) == (0, 0)
    assert {by_id[id_].modality for id_ in splits["modality-mri"].parts["test"]} == {"MRI"}
    again = next(grouped_splits(rows[::-1], seed=0))
    assert {part: set(ids) for part, ids in again.parts.items()} == grouped
    assert next(grouped_splits(rows, seed=1)).parts != splits["grouped"].parts
    digest = split_digest(splits["grouped"], rows)
    assert digest == split_digest(splits["grouped"], rows)
    changed = [dataclasses.replace(one, stem="Which?") if one.id == "CT0-0" else one for one in rows]
    assert split_digest(splits["grouped"], changed) != digest


def test_leakage_by_hand() -> None:
    train = [
        row("a", "v1_1", perceptual_hash="00000000000000ff"),
        row("b", "plain", perceptual_hash="ffff000000000000", options=("y", "z"), gold_letter="B", gold_text="z"),
    ]
    held_out = [
        row("c", "v1_2", perceptual_hash="000000000000ffff"),  # the volume and the prompt of a; 8 bits from it
        row("d", "new", perceptual_hash="0000000001ffffff", stem="Which?"),  # 17 bits from a
        row("e", "copy", image_hash="hash of plain", perceptual_hash="ffff000000000000", options=("y", "w", "u", "v")),
        row("f", "g", perceptual_hash="aaaaaaaaaaaaaaaa", options=("z", "y"), gold_letter="B", gold_text="y"),
    ]
    # The prior: x (1.25 / 2), y (.25 / 3), z (1.25 / 2), others .25 / 1. c and d right; e's gold y loses; f's too.
    assert leakage(train, held_out) == Leakage(
        questions=4,
        shared_image=0.25,
        near_duplicate=0.5,
        shared_scan=0.25,
        repeated_prompt=0.25,
        blind_prior=0.5,
        chance=(0.5 + 0.5 + 0.25 + 0.5) / 4,
    )
    assert leakage(train, []) is None
    unread = leakage(train, [dataclasses.replace(held_out[0], perceptual_hash=None)])
    assert unread is not None
    assert unread.near_duplicate is None


# Percent of the test questions whose image, and whose exact prompt, is in Med-R1's training file.
RELEASED = {
    "CT(Computed Tomography)": (13.4, 20.1),
    "X-Ray": (32.6, 3.3),
    "ultrasound": (2.1, 0.1),
    "Dermoscopy": (18.5, 11.3),
    "Fundus Photography": (9.7, 15.0),
    "OCT (Optical Coherence Tomography": (29.8, 3.2),
    "Microscopy Images": (27.7, 6.0),
}


@pytest.mark.parametrize("name", RELEASED)
def test_leakage_of_the_released_splits(shared_data: Path, name: str) -> None:
    """2-33 % of a modality's test rows reuse a training image, up to 20 % a prompt; counted apart from this code."""

    def rows_of(part: str) -> list[ManifestRow]:
        file = f"modality/{part}/{name}_{part}.json"
        questions = read_medr1_rows(shared_data / "medr1_splits", file, images_needed=False).questions
        return [of_released(question) for question in questions]

    def of_released(question: Question) -> ManifestRow:
        return ManifestRow(
            question.id,
            "",
            0,
            **{name: getattr(question, name) for name in ("dataset", "modality", "question_type", "stem", "options")},
            gold_letter=question.gold_letter,
            image_path=question.image_path,
            image_hash=question.image_path,
            scan=question.image_path,
        )

    leak = leakage(rows_of("train"), rows_of("test"))
    assert leak is not None
    assert leak.near_duplicate is None
    assert (100 * leak.shared_image, 100 * leak.repeated_prompt) == pytest.approx(RELEASED[name], abs=0.06)


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
    # Of two CT volumes the smaller is the test; MRI, ultrasound and fundus are one volume, film or picture each.
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
    """Ten images with a question each, and Med-R1 rows of six of them; prepared."""
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


def test_released_families_are_splits_of_their_own(small: tuple[Path, Path], tmp_path: Path) -> None:
    def released(family: str, part: str, indices: list[int]) -> None:
        folder = tmp_path / "Splits" / family / part
        folder.mkdir(parents=True)
        rows = [
            {
                "image": f"Images/Chest/{'abcdefghij'[i]}.png",
                "problem": f"What {i}? A)x, B)y",
                "solution": "<answer> A </answer>",
            }
            for i in indices
        ]
        (folder / f"X-Ray_{part}.json").write_text(json.dumps(rows))

    released("modality", "train", [0, 1, 2, 2])  # one twice
    released("modality", "test", [3])
    released("question_type", "train", [3])
    released("question_type", "test", [0, 1])
    assert run(small, "--medr1", str(tmp_path / "Splits")) == 0
    ids = {
        name: {part: [q.id for q in chosen] for part, chosen in read_split(small[1], name).parts.items()}
        for name in ("medr1", "medr1-question-type")
    }
    assert ids["medr1"] == {"train": ["Chest:0", "Chest:1", "Chest:2"], "validation": [], "test": ["Chest:3"]}
    assert ids["medr1-question-type"] == {"train": ["Chest:3"], "validation": [], "test": ["Chest:0", "Chest:1"]}
    assert json.loads((small[1] / "splits" / "medr1.json").read_text())["left_out"] == {
        "released train row that no usable row of the manifest matches": 1,
        "usable row that was not released": 6,
    }


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
    with pytest.raises(ValueError, match="does not fit the manifest"):
        read_split(out, "grouped")
    root.rename(root.with_name("moved"))
    with pytest.raises(ValueError, match=r"its images were in .*which is no folder here"):
        read_split(out, "grouped")
    assert run(small) == 1
    assert "no annotation files" in capsys.readouterr().err
