"""A value of a wrong kind in a model folder's small files is one line with the file, never an error of Python's."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medr1_ray.config import Config
from medr1_ray.config.loading import load_config
from medr1_ray.model.folder import contents
from medr1_ray.model.folder.check import check_model
from tests.repository import REPOSITORY
from tests.unit.model.model_folders import change_json, in_shards, tiny_in

WRONG: tuple[Any, ...] = (None, "many", -3, True, ["x"], {"a": 1})
PARTS = ("_check_weights", "_check_numbers", "_check_tokenizer", "_check_template")
# Parts of the check that do not look at a file, left out because they cost most.
NOT_OF_IT = {
    "config.json": PARTS[1:],
    "generation_config.json": PARTS,
    "preprocessor_config.json": PARTS,
    "tokenizer_config.json": PARTS[:2],
    "model.safetensors.index.json": PARTS[1:],
}


def of_folder(folder: Path, *overrides: str) -> Config:
    return load_config([REPOSITORY / "configs/phantom_cpu.yaml"], [f"model.path={folder}", *overrides])


def refusal(config: Config) -> str | None:
    """What the check says, one line; None if the folder passes."""
    try:
        check_model(config)
    except ValueError as error:
        found = error
    else:
        return None
    assert type(found) is ValueError, "one of our own, not one of a library"
    assert "\n" not in str(found)
    return str(found)


def spoilt(content: Any) -> Iterator[tuple[str, Any]]:
    """A JSON value with one value in it replaced by a wrong one, and where; of what is long, the first few."""
    inner = list(content.items() if isinstance(content, dict) else enumerate(content))
    for key, value in inner if len(inner) <= 30 else inner[:3]:
        changed: Any = content.copy()
        for wrong in WRONG:
            changed[key] = wrong
            yield f"{key}={wrong!r}", changed
        for where, within in spoilt(value) if isinstance(value, dict | list) else ():
            changed[key] = within
            yield f"{key}.{where}", changed


def processor_on_its_own(folder: Path) -> None:
    """Give a folder's image processor the file that it had before transformers 5."""
    whole = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").unlink()
    (folder / "preprocessor_config.json").write_text(json.dumps(whole["image_processor"]))


@pytest.mark.parametrize("name", NOT_OF_IT)
def test_a_wrong_value_anywhere_passes_or_is_one_line_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tiny_in(tmp_path / "model")
    if name == "preprocessor_config.json":
        processor_on_its_own(folder)
    if name == "model.safetensors.index.json":
        in_shards(folder)
    for check in NOT_OF_IT[name]:
        monkeypatch.setattr(contents, check, lambda *_: None)
    config = of_folder(folder)
    refusals = 0
    for where, content in spoilt(json.loads((folder / name).read_text())):
        (folder / name).write_text(json.dumps(content))
        said = refusal(config)
        assert said is None or name in said, where
        refusals += said is not None
    assert refusals > 10


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("config.json", {"model_type": ["qwen2_vl"]}, r"config.json: a model of type \['qwen2_vl'\]; allowed: q"),
        ("config.json", {"vision_config": None}, "config.json: vision_config is None; allowed: a mapping; copy it"),
        ("config.json", {"text_config": "x"}, "config.json: text_config is 'x'; allowed: a mapping; copy it from"),
        ("config.json", {"dtype": "int8"}, "config.json: dtype is 'int8'; allowed: float64, float32, float16, bf"),
        ("config.json", {"tie_word_embeddings": 1}, "config.json: tie_word_embeddings is 1; allowed: true or false"),
        ("processor_config.json", {"image_processor": "x"}, "config.json: image_processor is 'x'; allowed: a m"),
        ("processor_config.json", {"video_processor": [1]}, r"video_processor is \[1\]; allowed: a mapping; copy it"),
        ("tokenizer_config.json", {"chat_template": 3}, "tokenizer_config.json: chat_template is 3; allowed: a text"),
        ("tokenizer_config.json", {"pad_token": 3}, "tokenizer_config.json: pad_token is 3; allowed: a text, or"),
        ("tokenizer_config.json", {"pad_token": {}}, "tokenizer_config.json: pad_token is {}; allowed: a text, or"),
        ("tokenizer_config.json", {"extra_special_tokens": [1]}, r"extra_special_tokens is \[1\]; allowed: a list or"),
        ("tokenizer_config.json", {"model_max_length": "x"}, "model_max_length is 'x'; allowed: a number above 0"),
    ],
)
def test_the_line_has_file_key_value_and_what_is_allowed(
    tmp_path: Path, name: str, changes: dict[str, Any], says: str
) -> None:
    folder = tiny_in(tmp_path / "model")
    change_json(folder / name, lambda content: content.update(changes))
    assert re.search(says, str(refusal(of_folder(folder))))


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"temporal_patch_size": 1}, "temporal_patch_size is 1; allowed: 2, the temporal_patch_size in config.json"),
        ({"patch_size": "14"}, "patch_size is '14'; allowed: 14, the patch_size in config.json; copy it from"),
        ({"merge_size": 2.0}, "merge_size is 2.0; allowed: 2, the spatial_merge_size in config.json"),
        ({"image_std": [0, 0, 0]}, r"image_std is \(0, 0, 0\); allowed: three numbers above 0; copy it from"),
        ({"image_mean": None}, "image_mean is None; allowed: three numbers; copy it from"),
        ({"image_mean": "0.5"}, "image_mean is '0.5'; allowed: three numbers; copy it from"),
        ({"rescale_factor": None}, "rescale_factor is None; allowed: a number above 0"),
        ({"resample": True}, "resample is True; allowed: a whole number from 0 to 5"),
        ({"do_normalize": None}, "do_normalize is None; allowed: true or false"),
        ({"size": {"height": 84, "width": 84}}, "shortest_edge of size, or min_pixels, is None; allowed: a whole"),
        ({"min_pixels": 3136, "max_pixels": "x"}, "longest_edge of size, or max_pixels, is 'x'; allowed: a whole"),
        (
            {"size": {"shortest_edge": 30000, "longest_edge": 20000}},
            "shortest_edge of size, or min_pixels, is 30000, more than its longest_edge, or max_pixels, 20000; copy it",
        ),
        ({"do_rescale": False}, r"with do_rescale False, .* values from -\S* to \d{3,4}\S*; allowed: from -10 to 10"),
        ({"rescale_factor": 1}, "with do_rescale True, rescale_factor 1, .* pixels get values from"),
        ({"image_std": [0.3, 0.3, 1e-3]}, "image_std .* pixels get values from .*; copy it from"),
        ({"image_mean": [122, 116, 104], "image_std": [68, 66, 70]}, "from -1.79. to -1.7.*; .* at least 0.1 apart"),
        ({"do_rescale": False, "do_normalize": False}, "do_normalize False, .* from 0 to 255; allowed: from -10"),
        ({"size": {"shortest_edge": 800, "longest_edge": 900}}, "tokens of such an image, not 9; no size fits; change"),
    ],
)
def test_an_image_processor_that_cannot_cut_images_is_refused(
    tmp_path: Path, alone: bool, changes: dict[str, Any], says: str
) -> None:
    folder = tiny_in(tmp_path / "model")
    if alone:
        processor_on_its_own(folder)
        change_json(folder / "preprocessor_config.json", lambda content: content.update(changes))
    else:
        change_json(folder / "processor_config.json", lambda content: content["image_processor"].update(changes))
    said = str(refusal(of_folder(folder)))
    assert re.search(says, said)
    assert f"/{'preprocessor' if alone else 'processor'}_config.json: " in said or "no size fits" in said


@pytest.mark.parametrize(
    "changes",
    [
        {"do_rescale": False, "image_mean": [122.7, 116.7, 104.1], "image_std": [68.5, 66.6, 70.3]},
        {"do_normalize": False},
        {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]},
    ],
)
def test_other_ways_to_small_values_pass(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder = tiny_in(tmp_path / "model")
    change_json(folder / "processor_config.json", lambda content: content["image_processor"].update(changes))
    assert refusal(of_folder(folder)) is None


def test_a_processor_without_what_has_a_default_passes(tmp_path: Path) -> None:
    folder = tiny_in(tmp_path / "model")
    processor_on_its_own(folder)
    kept = ("image_mean", "image_std", "image_processor_type", "merge_size", "patch_size", "temporal_patch_size")
    content = json.loads((folder / "preprocessor_config.json").read_text())
    # As Qwen2-VL was released.
    given = {**{key: content[key] for key in kept}, "min_pixels": 3136, "max_pixels": 12845056}
    (folder / "preprocessor_config.json").write_text(json.dumps(given))
    # Which has no image processor, so that the other file counts.
    (folder / "processor_config.json").write_text('{"processor_class": "Qwen2VLProcessor"}')
    assert refusal(of_folder(folder)) is None


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(("mark", "encoding"), [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le")])
def test_an_encoding_that_transformers_does_not_read_is_said_of_its_file(
    tmp_path: Path, name: str, mark: bytes, encoding: str
) -> None:
    folder = tiny_in(tmp_path / "model")
    (folder / name).write_bytes(mark + (folder / name).read_text().encode(encoding))
    said = str(refusal(of_folder(folder)))
    assert re.search(rf"/{name}: is in utf-.*; save it in UTF-8 without a byte order mark", said)


def test_a_template_that_drops_the_system_message_is_refused_where_there_is_one(tmp_path: Path) -> None:
    folder = tiny_in(tmp_path / "model")
    template = "<|im_start|>user\n<|image_pad|>{{ messages[-1].content[1].text }}<|im_end|><|im_start|>assistant\n"
    (folder / "chat_template.jinja").write_text(template)
    assert refusal(of_folder(folder)) is None
    with_system = of_folder(folder, "prompt.system=Answer briefly.")
    assert "chat template does not write the text of the system message (prompt.system)" in str(refusal(with_system))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content[0].text }}" + template)
    assert refusal(with_system) is None
    raises = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role here') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(raises + template)
    assert refusal(of_folder(folder)) is None
    said = str(refusal(with_system))
    assert "cannot write the system message that prompt.system gives (TemplateError: no system role here); set" in said
    assert "set prompt.system=null, or copy it from" in said
