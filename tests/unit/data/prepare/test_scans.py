"""Which images belong together."""

from __future__ import annotations

import pytest

from medr1_ray.data.prepare.scans import groups_of, scan_of
from tests.unit.data.prepare.manifest_rows import row


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
        ["CoronaHack/test/person121_bacteria_576.jpeg", "CoronaHack/test/person12_bacteria_576.jpeg"],
        [
            "Mura/MURA-v1.1/valid/XR_ELBOW/patient11186/study1_positive/image2.png",
            "Mura/MURA-v1.1/valid/XR_ELBOW/patient11187/study1_positive/image2.png",
        ],
    ],
    ids=lambda paths: paths[0],
)
def test_paths_of_different_scans(apart: list[str]) -> None:
    assert len({scan_of(f"Images/{path}") for path in apart}) == 2


@pytest.mark.parametrize(
    ("path", "scan"),
    [
        # A patient within its source; Kermany's images are in three sources, so that theirs is left out.
        ("Images/PAD-UFES-20/imgs/PAT_101_1041_651.png", "PAD-UFES-20/PAT_101"),
        ("Images/CoronaHack/test/person121_bacteria_576.jpeg", "person121"),
        ("Images/MIAS/mdb004.png", "MIAS/pair-2"),
        ("Images/Torso CT/slice_002.tif", "Images/Torso CT"),
        ("Images/Lung CT/lung1_034.png", "Images/Lung CT/lung1"),
        ("Images/ISIC/a.b.jpg", "Images/ISIC/a.b"),
        ("mdb004.png", "mdb004.png/pair-2"),
        ("Mammograms/mdb004.png", "Mammograms/pair-2"),
    ],
)
def test_a_scan_has_the_name_of_its_patient_volume_or_picture(path: str, scan: str) -> None:
    assert scan_of(path) == scan


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
