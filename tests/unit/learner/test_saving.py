"""A rank's part of a checkpoint: what is copied, what is written behind, and weights that are not finite."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import nn

from medr1_ray.base.manifest import NotSavedError, StoredFile
from medr1_ray.learner.optimizer_files import KINDS, Fragment, Masters, OptimizerFiles
from medr1_ray.learner.saving import CheckpointPart, require_finite
from tests.faults.processes import PATIENCE


class Rank:
    """Weights and an optimizer of a rank of two, which has one part of `w`. Writing waits for `may_write`."""

    def __init__(self, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rank = rank
        self.value = 1.0
        self.seen: list[str] = []
        self.written: list[dict[str, list[float]]] = []
        self.may_write = Event()
        self.may_write.set()
        self.full = False
        optimizer: Any = self
        adapters: Any = self
        self.part = CheckpointPart(f"learner-{rank}", rank, Path("source"), self, optimizer, adapters)
        monkeypatch.setattr("medr1_ray.learner.saving.save_model", self._save_model)

    def factors(self) -> dict[str, torch.Tensor]:
        self.seen.append("gather factors")
        return {"factor": torch.full((1,), self.value)}

    def merged(self, factors: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        shared = torch.empty(2)
        for name, more in (("frozen", 0), ("a", 0), ("b", 1)):
            self.seen.append(f"gather {name}")
            yield name, shared.fill_(factors["factor"].item() + more)

    def save(self, factors: Mapping[str, torch.Tensor], folder: Path) -> None:
        """As `Adapters` does."""
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_text(" ".join(factors))

    def copied(self) -> Iterator[Fragment]:
        self.seen.append("copy state")
        yield "w", 2 * self.rank, {kind: torch.full((2,), self.value) for kind in KINDS}

    def summary(self) -> tuple[int, dict[str, int], Masters]:
        return int(self.value), {"w": 4}, "here"

    def _save_model(self, whole: dict[str, torch.Tensor], source: Path, folder: Path) -> None:
        assert self.may_write.wait(PATIENCE)
        self.seen.append("write")
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.written.append({name: tensor.tolist() for name, tensor in whole.items()})
        (folder / "chat_templates").mkdir()
        for name in ("model.safetensors", "chat_templates/one"):
            (folder / name).write_text(name)


def saved(rank: Rank, folder: Path, *, behind: bool = True) -> list[StoredFile]:
    rank.part.begin(folder, behind=behind)
    files = rank.part.finish()
    assert not isinstance(files, NotSavedError)
    return files


@pytest.mark.parametrize("number", [0, 1])
def test_one_rank_writes_the_weights_and_all_gather_them(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = Rank(number, monkeypatch)
    # Of another rank, which may be writing at the same time.
    (tmp_path / "learner_state").mkdir()
    (tmp_path / "learner_state" / "optimizer-7").touch()
    files = saved(rank, tmp_path)
    own = [f"learner_state/optimizer-0000{number}-00000.safetensors"]
    of_model = ["adapter/adapter_model.safetensors", "chat_templates/one", "model.safetensors"]
    of_first = sorted([*of_model, *own, "learner_state/optimizer.json"])
    assert sorted(file.name for file in files) == (of_first if number == 0 else own)
    assert all(file.bytes == (tmp_path / file.name).stat().st_size for file in files)
    assert rank.seen[:4] == ["gather factors", "gather frozen", "gather a", "gather b"]
    whole = {"frozen": [1.0, 1.0], "a": [1.0, 1.0], "b": [2.0, 2.0]}  # although a and b came in one memory
    assert rank.written == ([whole] if number == 0 else [])


def test_what_is_written_is_that_of_the_moment_when_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Rank(0, monkeypatch), Rank(1, monkeypatch)
    monkeypatch.setattr("medr1_ray.learner.saving.save_model", first._save_model)
    assert not first.part.is_writing()
    first.may_write.clear()
    for rank in (first, second):
        rank.part.begin(tmp_path, behind=True)
        rank.value = 7.0  # an update
    assert first.part.is_writing()
    assert first.written == []
    first.may_write.set()
    for rank in (first, second):
        assert not isinstance(rank.part.finish(), NotSavedError)
        assert not rank.part.is_writing()
    assert first.written == [{"frozen": [1.0, 1.0], "a": [1.0, 1.0], "b": [2.0, 2.0]}]
    state = OptimizerFiles(tmp_path / "learner_state")
    assert (state.steps, state.read("w", "master", 0, 4).tolist()) == (1, [1.0] * 4)


@pytest.mark.parametrize(("behind", "order"), [(True, ["copy state", "write"]), (False, ["write", "copy state"])])
def test_not_behind_the_state_is_copied_as_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: bool, order: list[str]
) -> None:
    rank = Rank(0, monkeypatch)
    rank.part.begin(tmp_path, behind=behind)
    if not behind:
        assert not rank.part.is_writing()
    rank.part.finish()
    assert rank.seen[4:] == order


def test_no_room_is_an_answer_and_the_next_save_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = Rank(0, monkeypatch)
    rank.full = True
    rank.part.begin(tmp_path, behind=True)
    error = rank.part.finish()
    assert isinstance(error, NotSavedError)
    assert str(error) == f"learner-0 cannot write {tmp_path}: [Errno {errno.ENOSPC}] No space left on device"
    # Or the others would wait for it.
    assert rank.seen[:4] == ["gather factors", "gather frozen", "gather a", "gather b"]
    rank.full = False
    assert saved(rank, tmp_path)


def test_what_went_wrong_otherwise_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank = Rank(0, monkeypatch)
    monkeypatch.setattr("medr1_ray.learner.saving.save_model", lambda *_: {}["a defect"])
    rank.part.begin(tmp_path, behind=True)
    with pytest.raises(KeyError, match="a defect"):
        rank.part.finish()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_element_of_a_trainable_parameter_is_enough(value: float, dtype: torch.dtype) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)
    require_finite(module)
    with torch.no_grad():
        module[1].weight[1, 2] = value
    with pytest.raises(FloatingPointError, match=r"no longer finite \(1\.weight\).*smaller learner\.learning_rate"):
        require_finite(module)
    module[1].weight.requires_grad_(False)
    require_finite(module)  # not trained, and so as it was loaded


def test_the_part_that_a_rank_has_of_a_cut_parameter_counts() -> None:
    """As ZeRO-3 leaves it: the parameter is empty."""
    module = nn.Linear(2, 2, bias=False)
    module.weight.data = torch.empty(0)
    module.weight.ds_tensor = torch.tensor([1.0, float("nan")])  # type: ignore[assignment]
    with pytest.raises(FloatingPointError, match="weight"):
        require_finite(module)
