"""Settings of tables, and with which formats they go."""

from __future__ import annotations

from pathlib import Path

import pytest

from medr1_ray.config import Config
from medr1_ray.config.loading import config_yaml, load_config

GIVEN = ["run.dir=r", "train.steps=1", "data.root=d"]


def load(*overrides: str) -> Config:
    return load_config([], [*GIVEN, *overrides])


def test_a_table_needs_its_file_and_nothing_else(tmp_path: Path) -> None:
    config = load("data.format=table", "data.table.file=x.csv")
    assert config.data.table is not None
    assert config.data.table.columns.image is None
    (tmp_path / "config.yaml").write_text(config_yaml(config))
    assert load_config([tmp_path / "config.yaml"]) == config
    with pytest.raises(ValueError, match=r"data\.table\.file=null: data\.format=table needs the table's file"):
        load("data.format=table")


def test_columns_and_answers() -> None:
    table = load(
        "data.format=table", "data.table={file: x.csv, columns: {options: [A, B]}, answers: letter}"
    ).data.table
    assert table is not None
    assert (table.columns.options, table.answers) == (("A", "B"), "letter")
    with pytest.raises(ValueError, match=r"data\.table\.columns\.img is not a setting; did you mean .*image"):
        load("data.format=table", "data.table={file: x.csv, columns: {img: y}}")


def test_the_same_options_for_all_rows(tmp_path: Path) -> None:
    given = ["data.format=table", "data.table={file: [a.csv, b.csv], options: [yes, no], where: {kind: CLOSED}}"]
    config = load(*given)
    assert config.data.table is not None
    assert (config.data.table.files, config.data.table.options) == (("a.csv", "b.csv"), ("yes", "no"))
    (tmp_path / "config.yaml").write_text(config_yaml(config))
    assert load_config([tmp_path / "config.yaml"]) == config
    with pytest.raises(ValueError, match=r"data\.table\.options=.*data\.table\.columns\.options=o: .*give one of them"):
        load(*given, "data.table.columns.options=o")
    for file in ("[]", '""', '[a.csv, ""]'):
        with pytest.raises(ValueError, match=r"data\.table\.file=.* names no file; give one, relative to data\.root"):
            load(*given, f"data.table.file={file}")
    for options in ("[yes]", "[yes, yes]", str(["a" + str(n) for n in range(27)])):
        with pytest.raises(ValueError, match=r"data\.table\.options=.*give 2 to .* different options, or none"):
            load(*given, f"data.table.options={options}")


@pytest.mark.parametrize("given", ["data.table.file=x.csv", "data.image_root=images"])
def test_settings_of_tables_are_refused_for_other_formats(given: str) -> None:
    key = ".".join(given.partition("=")[0].split(".")[:2])
    with pytest.raises(ValueError, match=rf"{key} is given, but data\.format=omnimedvqa.*{key}=null"):
        load("data.format=omnimedvqa", given)
    load("data.format=omnimedvqa", given, f"{key}=null")
