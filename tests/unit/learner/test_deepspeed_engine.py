"""What DeepSpeed is told, and whole parameters out of its shards; DeepSpeed itself is not imported here."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from medr1_ray.config import ClusterSettings, LearnerSettings


class Fake(ModuleType):
    """Takes down what it is told; `gathered` are the sizes of what was whole at the same time."""

    def __init__(self) -> None:
        super().__init__("deepspeed")
        # The real one's, whose files the check of setting names reads.
        self.__spec__ = importlib.util.find_spec("deepspeed")
        self.told: dict[str, Any] = {}
        self.gathered: list[list[int]] = []
        self.utils = SimpleNamespace(logger=SimpleNamespace(setLevel=lambda level: None))
        adam = SimpleNamespace(DeepSpeedCPUAdam=lambda groups, **told: ("cpu adam", groups, told))
        self.ops = SimpleNamespace(__compatible_ops__={}, adam=adam)
        self.zero = SimpleNamespace(GatheredParameters=self._gathered)

    def init_distributed(self, backend: str, **told: Any) -> None:
        self.told["backend"] = backend
        self.told["group"] = told

    def initialize(self, **told: Any) -> Any:
        self.told["engine"] = told
        return "the engine", None, None, None

    @contextmanager
    def _gathered(self, parameters: list[torch.nn.Parameter]) -> Iterator[None]:
        self.gathered.append([parameter.numel() for parameter in parameters])
        yield


@pytest.fixture
def deepspeed(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setitem(sys.modules, "deepspeed", fake)
    return fake


@pytest.fixture
def module(deepspeed: Fake) -> Any:
    """A copy of the module around the fake, which nobody else sees."""
    spec = importlib.util.find_spec("medr1_ray.learner.deepspeed_engine")
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


@pytest.mark.parametrize(
    ("gpus", "backend", "device", "meeting", "interface"),
    [(0, "gloo", "cpu", "file:///tmp/ranks", "lo"), (1, "nccl", "cuda:0", "tcp://10.0.0.1:1234", None)],
)
def test_a_rank_joins_the_others_on_its_own_device(
    module: Any,
    deepspeed: Fake,
    monkeypatch: pytest.MonkeyPatch,
    gpus: float,
    backend: str,
    device: str,
    meeting: str,
    interface: str | None,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "before")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "before")  # so that it is restored
    monkeypatch.delenv("GLOO_SOCKET_IFNAME")
    learner = LearnerSettings(world_size=4, gpus_per_rank=gpus)
    found = module.join(meeting, 3, learner, ClusterSettings(update_timeout_seconds=70))
    assert str(found) == device
    assert deepspeed.told["backend"] == backend
    group = deepspeed.told["group"]
    assert (group["rank"], group["world_size"], group["init_method"]) == (3, 4, meeting)
    assert group["timeout"] == timedelta(seconds=70)
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["3", "4", "0"]
    assert os.environ.get("GLOO_SOCKET_IFNAME") == interface, "among nodes gloo needs a network"


def test_micro_batches_are_cut_by_the_learner_and_the_loss_is_not_rescaled(module: Any) -> None:
    config = module.engine_config(LearnerSettings(max_grad_norm=0.25, zero_stage=2), "float32", 1000)
    assert (config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]) == (1, 1)
    assert config["gradient_clipping"] == 0.25
    assert config["bf16"] == {"enabled": False}
    assert "data_types" not in config
    assert config["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}


def test_under_bfloat16_gradients_are_added_up_in_float32(module: Any) -> None:
    config = module.engine_config(LearnerSettings(), "bfloat16", 10**12)
    assert config["bf16"] == {"enabled": True}
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["zero_optimization"]["reduce_bucket_size"] == 200_000_000, "at most"


def test_what_the_user_sets_of_the_sharding_is_added_to_ours(module: Any) -> None:
    given = {"zero_optimization": {"overlap_comm": True, "reduce_bucket_size": 7}, "wall_clock_breakdown": True}
    config = module.engine_config(LearnerSettings(zero_stage=3, deepspeed=given), "float32", 1000)
    assert config["zero_optimization"] == {"stage": 3, "overlap_comm": True, "reduce_bucket_size": 7}
    assert (config["wall_clock_breakdown"], config["gradient_accumulation_steps"]) == (True, 1)


class Model(torch.nn.Module):
    """A trained layer, a frozen one and a trained one; 6 + 2, 8 + 4 and 3 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(3, 2)
        self.tower = torch.nn.Linear(2, 4).requires_grad_(False)
        self.last = torch.nn.Linear(3, 1, bias=False)


def test_only_matrices_that_are_trained_decay(module: Any, deepspeed: Fake) -> None:
    settings = LearnerSettings(weight_decay=0.1, learning_rate=1e-3, betas=(0.8, 0.9))
    assert module.build_engine(Model(), settings, "float32") == "the engine"
    optimizer = deepspeed.told["engine"]["optimizer"]
    assert isinstance(optimizer, torch.optim.AdamW)
    found = [(each["weight_decay"], [tuple(p.shape) for p in each["params"]]) for each in optimizer.param_groups]
    assert found == [(0.1, [(2, 3), (1, 3)]), (0.0, [(2,)])]
    assert (optimizer.defaults["lr"], optimizer.defaults["betas"]) == (1e-3, (0.8, 0.9))
    assert deepspeed.told["engine"]["config"]["zero_optimization"]["reduce_bucket_size"] == 8 + 12 + 3


def test_an_optimizer_in_main_memory_needs_a_compiler(
    module: Any, deepspeed: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    offload = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}
    settings = LearnerSettings(deepspeed=offload, weight_decay=0.1)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="needs a C\\+\\+ compiler, and 'no-such-compiler' is not on the PATH"):
        module.build_engine(Model(), settings, "float32")
    monkeypatch.setenv("CXX", sys.executable)
    module.build_engine(Model(), settings, "float32")
    kind, groups, told = deepspeed.told["engine"]["optimizer"]
    assert (kind, told["adamw_mode"], [each["weight_decay"] for each in groups]) == ("cpu adam", True, [0.1, 0.0])


def test_parameters_are_whole_a_bucket_at_a_time_and_every_one_comes(
    module: Any, deepspeed: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GATHER_BYTES", 40)  # ten numbers
    model = Model()
    found = dict(module.whole_parameters(model.named_parameters()))
    assert deepspeed.gathered == [[6, 2], [8], [4, 3]], "first, the tower's weight, its bias and last"
    assert all(torch.equal(found[name], parameter) for name, parameter in model.named_parameters())
    assert not any(tensor.requires_grad for tensor in found.values())
    deepspeed.gathered.clear()
    monkeypatch.setattr(module, "GATHER_BYTES", 4)
    assert len(list(module.whole_parameters(model.named_parameters()))) == 5
    assert deepspeed.gathered == [[6], [2], [8], [4], [3]], "at least one, whatever its size"


def test_a_shard_counts_as_the_whole_that_it_is_part_of(
    module: Any, deepspeed: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GATHER_BYTES", 40)
    model = Model()
    vars(model.first.weight)["ds_numel"] = 60
    list(module.whole_parameters(model.named_parameters()))
    assert deepspeed.gathered == [[6], [2, 8], [4, 3]]


def test_a_source_has_the_frozen_parameters_or_the_others_under_their_checkpoint_names(module: Any) -> None:
    model = Model()
    vars(model.last.weight)["ds_shape"] = (7, 5)  # as DeepSpeed keeps it of what it has cut
    source = module.ShardedWeights(model, lambda name: name.startswith("tower"), lambda name: f"model.{name}")
    frozen, others = (source.specs(frozen=frozen) for frozen in (True, False))
    assert [(spec.name, spec.shape) for spec in frozen] == [("model.tower.weight", (4, 2)), ("model.tower.bias", (4,))]
    assert [(spec.name, spec.shape) for spec in others] == [
        ("model.first.weight", (2, 3)),
        ("model.first.bias", (2,)),
        ("model.last.weight", (7, 5)),
    ]
    assert {(spec.dtype, spec.offset) for spec in (*frozen, *others)} == {("float32", 0)}
    for of_kind, is_frozen in ((frozen, True), (others, False)):
        assert [name for name, _ in source.tensors(frozen=is_frozen)] == [spec.name for spec in of_kind]


def test_a_source_with_adapters_sends_their_factors_and_all_else_as_frozen(module: Any) -> None:
    model, factor = Model(), torch.nn.Parameter(torch.ones(2, 3))

    class Adapters:
        def named_parameters(self) -> Any:
            return model.named_parameters()

        def factors(self) -> Any:
            yield "last.lora_A.weight", factor

        def merged(self, weights: Any, factors: Any) -> Any:
            return ((name, tensor + factors["last.lora_A.weight"].sum()) for name, tensor in weights)

    # `frozen` is of the parameters, none of which are trained.
    source = module.ShardedWeights(model, lambda name: False, lambda name: f"model.{name}", Adapters())
    assert [name for name, _ in source.tensors(frozen=False)] == ["model.last.lora_A.weight"]
    for frozen in (False, True):
        told = [(spec.name, spec.shape) for spec in source.specs(frozen=frozen)]
        assert told == [(name, tuple(tensor.shape)) for name, tensor in source.tensors(frozen=frozen)]
    names = [f"model.{name}" for name, _ in model.named_parameters()]
    assert [name for name, _ in source.tensors(frozen=True)] == names
    copies = source.factors()
    assert copies["last.lora_A.weight"].data_ptr() != factor.data_ptr()
    found = dict(source.merged(copies))
    assert list(found) == names
    assert torch.equal(found["model.last.weight"], model.last.weight.detach() + 6)


def test_a_source_without_adapters_merges_nothing(module: Any) -> None:
    model = Model()
    source = module.ShardedWeights(model, lambda name: name.startswith("tower"), lambda name: name)
    assert source.factors() == {}
    found = dict(source.merged({}))
    assert found.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(found[name], parameter) for name, parameter in model.named_parameters())
