"""What is wrong with a model folder is said in one line that names folder, file and remedy; a good one passes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from medr1_ray.base.manifest import store, write_manifest
from medr1_ray.config import Config
from medr1_ray.config.loading import load_config
from medr1_ray.model.folder.check import check_folder, check_model, stay_offline
from medr1_ray.model.folder.contents import _check_positions, _check_weights, model_config
from medr1_ray.model.folder.files import require_checkpoint
from tests.repository import REPOSITORY
from tests.unit.model.model_folders import (
    as_qwens_tokenizer,
    change_json,
    change_weights,
    in_shards,
    template_in_json_only,
    tiny_in,
)
from tests.unit.model.small_models import qwen2_5_vl, qwen2_vl

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 6212088\n"


def unlink(*names: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in names] and None


def write(name: str, text: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_text(text) and None


def cut(name: str, keep: int) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep]) and None


def settings(**changes: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "config.json", lambda config: config.update(changes))


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, change)


def then(*steps: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda folder: [step(folder) for step in steps] and None


def only(*names: str) -> Callable[[Path], None]:
    return lambda folder: [path.unlink() for path in folder.iterdir() if path.name not in names] and None


def sections(given: object) -> Callable[[Path], None]:
    return lambda folder: change_json(
        folder / "config.json", lambda config: config["text_config"]["rope_parameters"].update(mrope_section=given)
    )


def rope(**changes: object) -> Callable[[Path], None]:
    return lambda folder: change_json(
        folder / "config.json", lambda config: config["text_config"]["rope_parameters"].update(changes)
    )


def rope_scaling(**given: object) -> Callable[[Path], None]:
    """Write the rotary embedding as before transformers 5."""

    def change(config: dict[str, Any]) -> None:
        text = config["text_config"]
        del text["rope_parameters"]
        text.update(rope_theta=10000.0, rope_scaling={"mrope_section": [1, 2, 13], **given})

    return lambda folder: change_json(folder / "config.json", change)


def spoil_shard(folder: Path, name: str) -> None:
    """Make a tensor in one of several files infinite."""
    file = folder / json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"][name]
    tensors = load_file(file)
    tensors[name].fill_(torch.inf)
    save_file(tensors, file, {"format": "pt"})


NORM = "model.norm.weight"
TEXT = "{{ messages[-1].content[1].text }}"
TURN = f"<|im_start|>user\n<|image_pad|>{TEXT}<|im_end|>\n"


def template(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / "chat_template.jinja").read_text()
        assert old in text
        (folder / "chat_template.jinja").write_text(text.replace(old, new))

    return change


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (only(), "is empty; give the folder"),
        (only("README.md"), "is not a checkpoint, it has no config.json"),
        (only("config.json"), "config.json but no weights .*model.shape.; give the folder of a whole checkpoint"),
        (write("adapter_config.json", '{"base_model_name_or_path": "Q/V"}'), "PEFT adapter of 'Q/V', .* merge it"),
        (write("config.json", "{"), "config.json: is not JSON"),
        (write("config.json", POINTER), "config.json: is a Git LFS pointer.*git lfs pull"),
        (settings(model_type="llava"), "a model of type 'llava'; allowed: qwen2_vl, qwen2_5_vl"),
        (settings(model_type=None), "a model of type None; allowed: qwen2_vl"),
        (settings(quantization_config={"quant_method": "awq"}), r"is quantized \(awq\).*give the original one"),
        (settings(quantization_config="fp8"), r"the model is quantized \(fp8\) by its quantization_config"),
        (settings(text_config={"hidden_act": "wide"}), "config.json: transformers cannot read it"),
        (
            then(unlink("model.safetensors"), write("pytorch_model.bin", "x")),
            "weights are in pytorch_model.bin; load it with transformers, save it",
        ),
        (write("model.safetensors", POINTER), "model.safetensors: is a Git LFS pointer.*git lfs pull"),
        (write("tokenizer.json", POINTER), "tokenizer.json: is a Git LFS pointer"),
        (cut("model.safetensors", 100_000), "has 100,000 bytes where its header says 6,212,088; copy or download"),
        (cut("model.safetensors", 900), r"is cut off or not a safetensors file \(900 bytes\)"),
        (cut("model.safetensors", 0), r"is cut off or not a safetensors file \(0 bytes\)"),
        (write("model.safetensors", "\x05\0\0\0\0\0\0\0hello"), "is not a safetensors file"),
        (then(in_shards, unlink("model-00002-of-00002.safetensors")), "00002-of-00002.safetensors: is missing .* 2 f"),
        (then(in_shards, unlink("model.safetensors.index.json")), "neither model.safetensors nor model.saf"),
        (write("adapter_model.safetensors", "x"), "adapter_model.safetensors: is not one of the model's weight files"),
        (weights(lambda found: found.pop(NORM)), "its weights lack the tensor 'model.norm.weight'"),
        (
            weights(lambda found: found.update({NORM: torch.zeros(7)})),
            r"model.safetensors: the tensor 'model.norm.weight' has shape \(7,\), by config.json \(128,\)",
        ),
        (weights(lambda found: found.update(more=torch.zeros(1))), "the tensor 'more' is not part of the model"),
        (
            weights(lambda found: found.update({NORM: torch.zeros(128, dtype=torch.int8)})),
            "'model.norm.weight' is of type I8; allowed: BF16, F16, F32, F64",
        ),
        (settings(text_config={}), "the tensor '.*' has shape"),
        (weights(lambda found: found[NORM][3].fill_(torch.nan)), "'model.norm.weight' holds numbers that are not"),
        (
            then(in_shards, lambda folder: spoil_shard(folder, "visual.blocks.0.attn.qkv.weight")),
            r"model-0000\d-of-00002.safetensors: the tensor 'visual.blocks.0.attn.qkv.weight' holds numbers that",
        ),
        (sections([1, 2, 12]), r"mrope_section is \[1, 2, 12\]; allowed: three whole numbers above 0 with the sum 16"),
        (sections([1, 15]), r"mrope_section is \[1, 15\]; allowed: three whole"),
        (sections([0, 3, 13]), r"mrope_section is \[0, 3, 13\]; allowed: three whole"),
        (sections(["1", 2, 13]), r"mrope_section is \['1', 2, 13\]; allowed: three whole"),
        (sections(16), "mrope_section is 16; allowed: three whole"),
        (sections(None), "mrope_section is None; allowed: three whole"),
        (rope(rope_type="yarn", factor=4.0), "config.json: rope_type of .* is 'yarn', .*allowed: default or mrope;"),
        (rope(rope_type="dynamic", factor=2.0), "config.json: rope_type of .* is 'dynamic', which engine and learner"),
        (rope(type="yarn"), "config.json: type of rope_parameters, or rope_scaling, is 'yarn', which"),
        (rope(mrope_interleaved=True), "config.json: mrope_interleaved of .* is True, .*allowed: False"),
        (rope(partial_rotary_factor=0.5), "config.json: partial_rotary_factor of .* is 0.5, which"),
        (rope_scaling(type="yarn", factor=4, original_max_position_embeddings=2048), "rope_type of .* is 'yarn'"),
        (rope_scaling(rope_type="linear", factor=4), "config.json: rope_type of .* is 'linear', which"),
        (
            lambda folder: change_json(
                folder / "config.json", lambda config: config["vision_config"]["rope_parameters"].update(rope_theta=5e5)
            ),
            "config.json: rope_theta of vision_config is 500000.0, which engines do not read; allowed: 10000;",
        ),
        (settings(eos_token_id=909), "config.json: eos_token_id is 909; allowed: ids from 0 to 908"),
        (settings(eos_token_id="885"), "config.json: eos_token_id is '885'; allowed: ids from 0 to 908"),
        (settings(eos_token_id=[885, -1]), r"config.json: eos_token_id is \[885, -1\]; allowed: ids from 0 to 908"),
        (settings(vision_end_token_id=5000), "config.json: vision_end_token_id is 5000; allowed: ids from 0 to 908"),
        (
            lambda folder: change_json(
                folder / "config.json", lambda config: config["text_config"].update(eos_token_id=909)
            ),
            "config.json: eos_token_id is 909; allowed",
        ),
        (write("generation_config.json", '{"eos_token_id": [885, 909]}'), "config.json: eos_token_id is .885, 909"),
        (write("generation_config.json", '{"pad_token_id": true}'), "generation_config.json: pad_token_id is True"),
        (settings(auto_map={"AutoModel": "evil.Model"}), "config.json: names Python code .*auto_map.* remove the key"),
        (write("tokenizer_config.json", '{"auto_map": {}}'), "tokenizer_config.json: names Python code"),
        (write("processor_config.json", '{"image_processor": {"auto_map": 1}}'), "processor_config.json: names Python"),
        (write("preprocessor_config.json", '[{"auto_map": 1}]'), "preprocessor_config.json: is not a mapping"),
        (unlink("tokenizer.json"), r"has no tokenizer \(tokenizer.json or vocab.json\); copy it from"),
        (write("tokenizer.json", "{}"), "tokenizer.json, with tokenizer_config.json: transformers cannot read it"),
        (
            unlink("tokenizer_config.json"),
            r"a Qwen2Tokenizer, because tokenizer_config.json is missing, which makes other tokens of a text \(\[.*\] "
            r"instead of \[.*\] at its token \d+\); copy tokenizer_config.json from the model",
        ),
        (
            lambda folder: change_json(
                folder / "tokenizer_config.json", lambda config: config.update(tokenizer_class="Qwen2Tokenizer")
            ),
            "as a Qwen2Tokenizer, by tokenizer_class in tokenizer_config.json, which makes other tokens of",
        ),
        (settings(image_token_id=7), r"id of <\|image_pad\|> is 895, config.json's image_token_id 7"),
        (unlink("processor_config.json"), "has no image processor .preprocessor_config.json or processor_config.json"),
        (unlink("chat_template.jinja"), "has no chat template"),
        (write("chat_template.jinja", "{{ messages[0]['content'] + 'x' }}"), "cannot write a turn with an image"),
        (write("chat_template.jinja", "{{ raise_exception('a\n\nb') }}"), "cannot write a turn .*: a b.; copy it"),
        (write("chat_template.jinja", "{{ messages[0]['role'] }}"), r"writes 0 <\|image_pad\|> tokens for one image"),
        (write("chat_template.jinja", "<|image_pad|>What is this?"), "not write the text of the question into"),
        (write("chat_template.jinja", "{{ messages[0].content }}<|image_pad|>"), "not write the text of the question"),
        (
            write("chat_template.jinja", f"<|im_start|>system\n{TEXT}<|im_end|><|im_start|>user\n<|image_pad|>"),
            "not write the text of the question into the user's turn.*copy it from",
        ),
        (
            template("{% if add_generation_prompt %}", "{% if False %}"),
            "chat template opens no turn of the assistant after the user's .*copy it from",
        ),
        (write("chat_template.jinja", f"{TURN}<|im_start|>user\n"), "opens no turn of the assistant after the user's"),
        (
            write("chat_template.jinja", f"<|im_start|>assistant\nHello.<|im_end|>\n{TURN}"),
            "opens no turn of the assistant after the user's",
        ),
    ],
)
def test_what_is_wrong_is_one_line_with_the_folder_and_what_to_do(
    tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    folder = tiny_in(tmp_path / "brought")
    spoil(folder)
    with pytest.raises(ValueError, match=says) as found:
        check_folder(folder)
    assert str(folder) in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: None,
        in_shards,
        template_in_json_only,
        # A head beside a tied embedding, and the names of transformers' modules.
        weights(lambda found: found.update({"lm_head.weight": torch.zeros(909, 128)})),
        weights(lambda found: found.update({f"model.{n}": found.pop(n) for n in list(found) if n[0] == "v"})),
        unlink("generation_config.json"),
        # As published, and as transformers 4 saved it again.
        rope_scaling(type="mrope"),
        rope_scaling(type="default", rope_type="default"),
        rope_scaling(type="mrope", rope_type="default"),
        settings(quantization_config=None),
        as_qwens_tokenizer,
        then(as_qwens_tokenizer, unlink("tokenizer_config.json")),
        lambda folder: change_json(
            folder / "tokenizer.json",
            lambda found: found.update(
                truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
            ),
        ),
        write("chat_template.jinja", "USER: <|image_pad|>" + TEXT),
        # Always open, and already with the start of an answer.
        write("chat_template.jinja", f"{TURN}<|im_start|>assistant\n<think>\n"),
    ],
)
def test_a_folder_that_can_be_used_passes(tmp_path: Path, change: Callable[[Path], object]) -> None:
    folder = tiny_in(tmp_path / "brought")
    change(folder)
    check_folder(folder)


@pytest.mark.parametrize("make", [qwen2_vl, qwen2_5_vl])
def test_weights_of_every_family_are_found_under_their_names(tmp_path: Path, make: Callable[[], Any]) -> None:
    make().save_pretrained(tmp_path)
    config = model_config(tmp_path)
    _check_weights(tmp_path, config)
    change_weights(tmp_path, lambda found: found.pop("visual.blocks.0.norm1.weight"))
    with pytest.raises(ValueError, match=r"its weights lack the tensor 'visual.blocks.0.norm1.weight'"):
        _check_weights(tmp_path, config)


@pytest.mark.parametrize("name", ["qwen2_vl_2b", "qwen2_5_vl_3b"])
def test_the_rotary_embedding_of_published_models_passes(name: str) -> None:
    folder = REPOSITORY / "configs/models" / name
    _check_positions(folder, model_config(folder))


def test_sliding_window_layers_are_refused(tmp_path: Path) -> None:
    folder = tiny_in(tmp_path / "brought")
    layers = ["sliding_attention", *["full_attention"] * 3]
    change_json(folder / "config.json", lambda config: config["text_config"].update(layer_types=layers))
    with pytest.raises(ValueError, match=r"config.json: its language model has sliding-window layers.*use_sliding"):
        check_folder(folder)


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tiny_in(tmp_path / "brought")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ValueError, match=r"has the id 909, of '<extra>', but the model only 909 .*resize_token"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("processor_config.json", [], "processor_config.json: is not a mapping in JSON"),
        ("generation_config.json", None, "generation_config.json: is not JSON"),
        ("processor_config.json", {"patch_size": 16}, "patch_size is 16; allowed: 14, the patch_size in config.json"),
        ("processor_config.json", {"merge_size": 1}, "merge_size is 1; allowed: 2, the spatial_merge_size in"),
        ("config.json", {"max_position_embeddings": 64}, "rollout.max_tokens=8 are .*the model has 64 positions"),
    ],
)
def test_settings_of_a_folder_that_do_not_fit_are_named(tmp_path: Path, name: str, content: Any, says: str) -> None:
    folder = tiny_in(tmp_path / "model")
    if isinstance(content, dict):
        change_json(folder / name, lambda settings: _deepest(settings, next(iter(content))).update(content))
    else:
        (folder / name).write_text("{" if content is None else json.dumps(content))
    with pytest.raises(ValueError, match=says):
        check_model(load_config([REPOSITORY / "configs/phantom_cpu.yaml"], [f"model.path={folder}"]))


def _deepest(settings: dict[str, Any], key: str) -> dict[str, Any]:
    """The mapping that has the key."""
    if key in settings:
        return settings
    return next(_deepest(inner, key) for inner in settings.values() if isinstance(inner, dict) and key in str(inner))


def test_a_checkpoint_of_ours_is_as_it_was_written(tmp_path: Path) -> None:
    folder = tiny_in(tmp_path / "model")
    (folder / "learner_state").mkdir()
    (folder / "learner_state" / "optimizer.json").touch()
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    write_manifest(folder, [store(folder, name) for name in names])
    check_folder(folder)
    (folder / "learner_state" / "optimizer.json").unlink()
    check_folder(folder)  # only a resume needs it
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(ValueError, match=r"is damaged: model\.safetensors has other bytes.*delete its manifest\.json"):
        check_folder(folder)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    folder = tiny_in(tmp_path / "brought")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("../../blobs/123")
    given = {"run": {"dir": "x"}, "data": {"format": "phantoms", "root": "x"}, "train": {"steps": 1}}
    config = Config.model_validate({**given, "model": {"path": str(folder)}})
    with pytest.raises(ValueError, match=r"model.path: .*brought/model.safetensors: cannot be read \(No such file"):
        check_model(config)


def test_a_hub_id_is_not_looked_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"hf download Qwen/Qwen2-VL-2B-Instruct --local-dir models/Qwen2-VL-2B"):
        require_checkpoint(Path("Qwen/Qwen2-VL-2B-Instruct"))
    Path("mine").mkdir()
    for path in ("models/a/b", "./a", "/nowhere", "models/Qwen2-VL-2B-Instruct", "mine/qwen"):
        with pytest.raises(ValueError, match=r"does not exist; give the folder"):
            require_checkpoint(Path(path))
    Path("file").touch()
    with pytest.raises(ValueError, match=r"'file' is a file; give the folder"):
        require_checkpoint(Path("file"))


def test_a_runs_directory_leads_to_its_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "latest").write_text("checkpoint-5\n")
    with pytest.raises(ValueError, match=r"is a run's directory; give its checkpoint .*/checkpoints/checkpoint-5"):
        require_checkpoint(tmp_path)


def test_a_run_without_a_checkpoint_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(ValueError, match=r"is a run's directory without a checkpoint; give one that has saved one"):
        require_checkpoint(tmp_path)


def test_a_shape_that_ships_is_not_a_model() -> None:
    with pytest.raises(ValueError, match=r"which only --dry-run takes .model.shape"):
        check_folder(REPOSITORY / "configs/models/qwen2_vl_2b")


def test_libraries_are_told_to_stay_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    stay_offline()
    assert (os.environ["HF_HUB_OFFLINE"], os.environ["TRANSFORMERS_OFFLINE"]) == ("1", "1")


@pytest.mark.parametrize(
    ("size", "pixels", "allowed"),
    [
        (84, (3136, 153664), None),
        (392, (3136, 153664), None),
        (405, (3136, 153664), None),  # rounded to 392
        (1024, (3136, 153664), "makes 169 visual tokens of such an image, not 1,369; allowed: 56 to 392, or change"),
        (392, (3136, 132496), "makes 169 visual tokens of such an image, not 196; allowed: 56 to 364, or change"),
        (28, (3136, 153664), "makes 4 visual tokens of such an image, not 1; allowed: 56 to 392, or change"),
    ],
)
def test_an_image_size_that_the_processor_would_change_is_refused(
    tmp_path: Path, size: int, pixels: tuple[int, int], allowed: str | None
) -> None:
    folder = tiny_in(tmp_path / "brought")
    least, most = pixels
    limits = {"shortest_edge": least, "longest_edge": most}
    change_json(folder / "processor_config.json", lambda found: found["image_processor"].update(size=limits))
    config = Config.model_validate(
        {
            "run": {"dir": "x"},
            "model": {"path": str(folder)},
            "data": {"format": "phantoms", "root": "x", "image_size": size},
            "train": {"steps": 1},
        }
    )
    if allowed is None:
        check_model(config)
    else:
        with pytest.raises(ValueError, match=rf"data\.image_size={size}: .*{allowed}") as found:
            check_model(config)
        assert "processor_config.json" in str(found.value)
