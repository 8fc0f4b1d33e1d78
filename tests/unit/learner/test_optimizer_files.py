"""The optimizer's state on disk: any range of a parameter, whoever wrote which part of it."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from medr1_ray.learner import optimizer_files
from medr1_ray.learner.optimizer_files import KINDS, OptimizerFiles, write_shard, write_summary

SIZES = {"model.weight": 10, "model.bias": 3}


def _tensors(parameter: str) -> dict[str, Tensor]:
    size = SIZES[parameter]
    return {kind: torch.arange(size, dtype=torch.float32) + 100 * i for i, kind in enumerate(KINDS)}


def _part(parameter: str, start: int, end: int) -> tuple[str, int, dict[str, Tensor]]:
    return parameter, start, {kind: whole[start:end] for kind, whole in _tensors(parameter).items()}


def _write(folder: Path) -> list[str]:
    """Two ranks, of which the second has the bias and the end of the weight."""
    return [
        *write_shard(folder, 0, [_part("model.weight", 0, 4)]),
        *write_shard(folder, 1, [_part("model.weight", 4, 10), _part("model.bias", 0, 3)]),
        write_summary(folder, 7, SIZES),
    ]


def test_any_range_can_be_read(tmp_path: Path) -> None:
    names = _write(tmp_path)
    assert sorted(names) == sorted(path.name for path in tmp_path.iterdir())
    files = OptimizerFiles(tmp_path)
    assert (files.steps, files.sizes) == (7, SIZES)
    for parameter, size in SIZES.items():
        for kind, whole in _tensors(parameter).items():
            for start in range(size):
                for end in range(start + 1, size + 1):
                    assert torch.equal(files.read(parameter, kind, start, end - start), whole[start:end])


# Parameters of a policy, and what their weights are called in Hugging Face files, by us and by a source of other names.
POLICY = {"model.model.visual.blocks.0.weight": 6, "model.model.language_model.norm.weight": 3}
OURS = ("visual.blocks.0.weight", "model.norm.weight")
TRANSFORMERS = ("model.visual.blocks.0.weight", "model.language_model.norm.weight")


def _write_masters_as_weights(checkpoint: Path, names: tuple[str, ...], dtype: torch.dtype) -> Path:
    weights = {"lm_head.weight": torch.zeros(2)}  # not trained
    weights |= {name: torch.arange(size, dtype=dtype) for name, size in zip(names, POLICY.values(), strict=True)}
    weights[names[0]] = weights[names[0]].view(2, 3)
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    folder = checkpoint / "learner_state"
    folder.mkdir()
    for rank, (name, size) in enumerate(POLICY.items()):
        write_shard(folder, rank, [(name, 0, {kind: torch.full((size,), 9.0) for kind in KINDS[1:]})])
    write_summary(folder, 7, POLICY, "weights")
    return folder


@pytest.mark.parametrize("names", [OURS, TRANSFORMERS])
def test_masters_that_are_the_weights_are_read_from_these(tmp_path: Path, names: tuple[str, ...]) -> None:
    files = OptimizerFiles(_write_masters_as_weights(tmp_path, names, torch.float32))
    for parameter, size in POLICY.items():
        assert torch.equal(files.read(parameter, "master", 0, size), torch.arange(float(size)))
        assert torch.equal(files.read(parameter, "master", 1, 2), torch.tensor([1.0, 2.0]))
        assert torch.equal(files.read(parameter, "exp_avg", 0, size), torch.full((size,), 9.0))


def test_weights_that_are_gone_or_rounded_are_no_masters(tmp_path: Path) -> None:
    folder = _write_masters_as_weights(tmp_path, OURS, torch.bfloat16)
    lacks = r"is not complete: master of model\.model\.visual\.blocks\.0\.weight does not have its 6 elements"
    with pytest.raises(ValueError, match=lacks):
        OptimizerFiles(folder)
    save_file({OURS[1]: torch.arange(3.0)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=lacks):
        OptimizerFiles(folder)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"holds no optimizer state that can be read \(.*model\.safetensors"):
        OptimizerFiles(folder)


def test_a_state_of_an_earlier_version_has_its_masters(tmp_path: Path) -> None:
    _write(tmp_path)
    summary = json.loads((tmp_path / "optimizer.json").read_text())
    assert summary.pop("masters") == "here"
    (tmp_path / "optimizer.json").write_text(json.dumps(summary))
    assert torch.equal(OptimizerFiles(tmp_path).read("model.bias", "master", 0, 3), torch.arange(3.0))


def test_a_rank_writes_several_files_rather_than_one_that_needs_much_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer_files, "STATE_FILE_BYTES", 100)
    parts = [_part("model.weight", 0, 10), _part("model.bias", 0, 3)]
    assert write_shard(tmp_path, 3, parts) == [f"optimizer-00003-0000{i}.safetensors" for i in (0, 1)]
    write_summary(tmp_path, 1, SIZES)
    assert torch.equal(OptimizerFiles(tmp_path).read("model.bias", "exp_avg", 1, 2), torch.tensor([101.0, 102.0]))


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / "optimizer-00000-00000.safetensors").unlink()
    with pytest.raises(ValueError, match=r"is not complete: master of model\.weight does not have its 10 elements"):
        OptimizerFiles(tmp_path)


@pytest.mark.parametrize("name", ["optimizer.json", "optimizer-00001-00000.safetensors"])
@pytest.mark.parametrize("size", [None, 0, 5])
def test_files_that_are_gone_or_cut_off_are_a_clear_error(tmp_path: Path, name: str, size: int | None) -> None:
    _write(tmp_path)
    (tmp_path / name).unlink() if size is None else os.truncate(tmp_path / name, size)
    with pytest.raises(ValueError, match=r"holds no optimizer state that can be read|is not complete"):
        OptimizerFiles(tmp_path)


class _Runs:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self._mark,)


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    _write(tmp_path)
    mark = tmp_path / "ran"
    pickle.loads(pickle.dumps(_Runs(mark)))
    mark.unlink()  # it would have run
    for name in ("optimizer.json", "optimizer-00001-00000.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(_Runs(mark)))
        with pytest.raises(ValueError, match="holds no optimizer state that can be read"):
            OptimizerFiles(tmp_path)
    assert not mark.exists()
