"""What vLLM is asked, and its answers as flat arrays; vLLM itself is not imported here."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from medr1_ray.config import (
    LARGEST_SEED,
    ClusterSettings,
    LoraSettings,
    ModelSettings,
    RolloutSettings,
    tiny_model_path,
)
from medr1_ray.data.encoding import continuations
from medr1_ray.model.vocabulary import load_vocabulary
from medr1_ray.rewards.parsing import parse_answer
from medr1_ray.rollout.actor import EngineLostError
from medr1_ray.rollout.defaults import EngineSettings
from medr1_ray.rollout.engine import (
    continued_prompts,
    engine_arguments,
    engine_prompt,
    likelihood_params,
    sampled_text,
    sampling_params,
    set_environment,
    start_error,
    to_completions,
    to_likelihoods,
)
from medr1_ray.types import Continuations, Prompt, Question, Sampling, Span, pixels_of
from tests.unit.rollout import fake_vllm
from tests.unit.rollout.fake_vllm import answer

QUESTION = Question("q", "", "Which?", ("CT", "MRI"), 0, "CT", "Modality", "d")
PROMPT = Prompt("p", QUESTION, np.array([1, 2, 3], np.int32), np.full((2, 4, 3), 9, np.uint8))
# vLLM 0.32's own words; the exit code is that of the process.
NOT_STARTED = "Engine core initialization failed. See root cause above. Failed core proc(s): {}"
VOCABULARY = load_vocabulary(tiny_model_path())
MODEL = str(tiny_model_path())
SPAN = Span("rollout-0", "rollout", 0.0, 1.0)


@pytest.fixture(autouse=True)
def _vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_vllm.install(monkeypatch)


def settings(cluster: dict[str, Any] | None = None, **rollout: Any) -> EngineSettings:
    return EngineSettings(
        ModelSettings(dtype="bfloat16"),
        RolloutSettings(max_prompt_tokens=100, max_tokens=20, **rollout),
        ClusterSettings(**({"weight_transport": "object_store"} | (cluster or {}))),
        seed=40,
        logs=Path("logs"),
    )


def test_every_engine_has_room_for_a_prompt_with_its_completion_and_a_seed_of_its_own() -> None:
    first, second = (engine_arguments(settings(), MODEL, index) for index in range(2))
    assert (first["model"], first["dtype"], first["max_model_len"]) == (MODEL, "bfloat16", 120)
    assert (first["seed"], second["seed"]) == (40, 41)
    largest = replace(settings(), seed=LARGEST_SEED)
    assert [engine_arguments(largest, MODEL, index)["seed"] for index in range(2)] == [LARGEST_SEED, 0]
    assert first["worker_extension_cls"] == "the extension"


def test_an_engine_is_told_the_class_of_its_model(tmp_path: Path) -> None:
    # transformers 4.57 writes it into text_config, and vLLM would take the model for one that embeds.
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    overrides = engine_arguments(settings(), str(tmp_path), 0)["hf_overrides"]
    assert overrides == {"architectures": ["Qwen2_5_VLForConditionalGeneration"]}


def test_log_probabilities_are_those_of_what_is_sampled_and_nothing_comes_from_the_checkpoint() -> None:
    arguments = engine_arguments(settings(), MODEL, 0)
    assert (arguments["logprobs_mode"], arguments["generation_config"]) == ("processed_logprobs", "vllm")


@pytest.mark.parametrize(
    ("cluster", "backend", "sleeps"),
    [
        ({}, "medr1_ray_object_store", False),
        ({"weight_transport": "nccl"}, "medr1_ray_nccl", False),
        ({"weight_transport": "ipc", "colocated": True}, "medr1_ray_ipc", True),
    ],
)
def test_the_transport_decides_how_weights_arrive_and_colocation_who_sleeps(
    cluster: dict[str, Any], backend: str, sleeps: bool
) -> None:
    arguments = engine_arguments(settings(cluster, gpus_per_actor=1), MODEL, 0)
    assert arguments["weight_transfer_config"] == {"backend": backend}
    assert arguments["enable_sleep_mode"] is sleeps


def test_workers_are_told_of_adapters() -> None:
    assert "additional_config" not in engine_arguments(settings(), MODEL, 0)
    model = ModelSettings(lora=LoraSettings(rank=4, alpha=12), train_vision_tower=False)
    arguments = engine_arguments(replace(settings(), model=model), MODEL, 0)
    assert arguments["additional_config"] == {"medr1_ray_adapters": {"rank": 4, "alpha": 12, "vision": False}}


def test_on_a_cpu_an_engine_is_one_process_and_eager_and_on_gpus_it_is_neither() -> None:
    on_cpu = engine_arguments(settings(), MODEL, 0)
    on_gpu = engine_arguments(settings(gpus_per_actor=1), MODEL, 0)
    on_two = engine_arguments(settings(gpus_per_actor=2, tensor_parallel_size=2), MODEL, 0)
    assert on_cpu["enforce_eager"]
    assert on_cpu["distributed_executor_backend"].endswith("UniProcExecutor")
    assert not {"enforce_eager", "kv_cache_memory_bytes", "block_size"} & (on_gpu.keys() | on_two.keys())
    assert "distributed_executor_backend" not in on_gpu
    assert (on_two["tensor_parallel_size"], on_two["distributed_executor_backend"]) == (2, "mp")
    assert [each["scheduler_cls"] for each in (on_cpu, on_gpu)] == ["asynchronous False", "asynchronous True"]


def test_what_the_user_sets_wins() -> None:
    given = {"max_num_seqs": 8, "block_size": 16, "async_scheduling": True, "enable_prefix_caching": False}
    arguments = engine_arguments(settings(engine=given), MODEL, 0)
    assert arguments.items() >= given.items()
    assert arguments["scheduler_cls"] == "asynchronous True"


def test_threads_are_set_and_not_bound_to_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_LOGGING_COLOR", "VLLM_NO_USAGE_STATS"):
        monkeypatch.setenv(name, "before")
    set_environment(3)
    assert (os.environ["OMP_NUM_THREADS"], os.environ["VLLM_CPU_OMP_THREADS_BIND"]) == ("3", "nobind")
    assert os.environ["VLLM_NO_USAGE_STATS"] == "1"


def test_a_group_is_sampled_as_the_settings_say_and_in_no_other_way() -> None:
    params = sampling_params(Sampling(4, 20, 0.7, top_p=0.9, top_k=5), VOCABULARY, "a")
    sampled = (params.n, params.max_tokens, params.temperature, params.top_p, params.top_k)
    assert sampled == (4, 20, 0.7, 0.9, 5)
    assert (params.min_p, params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0, 0, 0, 1)
    assert (params.logprobs, params.flat_logprobs, params.seed) == (0, True, None)
    assert params.stop_token_ids == list(VOCABULARY.stop)
    assert params.logit_bias == VOCABULARY.logit_bias
    assert set(params.logit_bias) == set(VOCABULARY.banned)


def test_a_seed_repeats_a_prompt_and_gives_every_other_one_its_own() -> None:
    def seed(of: int, prompt_id: str) -> int:
        found = sampling_params(Sampling(1, 20, 1.0, seed=of), VOCABULARY, prompt_id).seed
        assert isinstance(found, int)
        assert 0 <= found < 2**63, "what vLLM takes"
        return found

    assert seed(1, "a") == seed(1, "a")
    assert len({seed(1, "a"), seed(1, "b"), seed(2, "a"), seed(2, "b")}) == 4


def test_likelihoods_are_of_the_plain_distribution() -> None:
    params = likelihood_params()
    assert (params.prompt_logprobs, params.max_tokens) == (0, 1)
    assert not hasattr(params, "logit_bias")


def test_a_prompt_goes_with_its_image() -> None:
    made = engine_prompt(PROMPT, pixels_of(PROMPT.image))
    assert made["prompt_token_ids"] == [1, 2, 3]
    image = made["multi_modal_data"]["image"]
    assert (image.size, np.asarray(image).tolist()) == ((4, 2), PROMPT.image.tolist())


def test_completions_are_laid_end_to_end() -> None:
    output: Any = SimpleNamespace(
        outputs=[
            answer([11, 12, 13], [(0, 2, 4), (2, 3, 5)]),  # the weights changed after two tokens
            answer([14], [(0, 1, 5)], "length"),
        ],
        prompt_token_ids=[1, VOCABULARY.image_pad, VOCABULARY.image_pad, 3],
    )
    tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda ids: list(map(str, ids)), decode=str)
    found = to_completions(output, PROMPT, "rollout-0", VOCABULARY, tokenizer, SPAN)
    assert found.token_ids.tolist() == [11, 12, 13, 14]
    assert found.rollout_logprobs.tolist() == [-5.5, -6.0, -6.5, -7.0]
    assert found.versions.tolist() == [4, 4, 5, 5]
    assert (found.lengths.tolist(), found.truncated.tolist()) == ([3, 1], [False, True])
    assert found.texts == ("[11, 12, 13]", "[14]")
    assert (found.prompt_id, found.actor, found.visual_tokens, found.span) == ("p", "rollout-0", 2, SPAN)
    arrays = (found.token_ids, found.rollout_logprobs, found.versions, found.lengths, found.truncated)
    assert [str(array.dtype) for array in arrays] == ["int32", "float32", "int32", "int32", "bool"]


def test_the_text_is_what_was_sampled_without_its_stop_token(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_path())
    tokenizer.add_special_tokens({"extra_special_tokens": [*tokenizer.extra_special_tokens, "<answer>", "</answer>"]})
    tokenizer.save_pretrained(tmp_path)
    with_special_tags = AutoTokenizer.from_pretrained(tmp_path)
    encoded = with_special_tags.encode("<answer>C</answer>", add_special_tokens=False)
    assert with_special_tags.decode(encoded, skip_special_tokens=True) == "C", "the case that must not be lost"
    start, (end, pad) = with_special_tags.convert_tokens_to_ids("<|im_start|>"), VOCABULARY.stop

    def text(*token_ids: int) -> str:
        return sampled_text(token_ids, VOCABULARY, with_special_tags)

    assert text(*encoded, end) == text(*encoded, pad) == text(*encoded) == "<answer>C</answer>"
    assert text(*encoded[:2], start, encoded[2], end) == "<answer>C<|im_start|></answer>"
    # Logits beyond the tokenizer's last id.
    beyond = len(with_special_tags)
    assert text(*encoded[:2], beyond, beyond + 1, encoded[2], end) == "<answer>C\ufffd\ufffd</answer>"
    assert text(end) == text() == ""


@pytest.mark.parametrize("slipped_in", ["<|im_start|>", "\ufffd"])
def test_what_the_model_must_not_write_costs_the_format(slipped_in: str) -> None:
    assert parse_answer("<answer>A</answer>", QUESTION, "no_think").well_formed
    inside = parse_answer(f"<answer>A{slipped_in}</answer>", QUESTION, "no_think")
    outside = parse_answer(f"<answer>A</answer>{slipped_in}", QUESTION, "no_think")
    assert (inside.letter, outside.letter, outside.well_formed) == (None, "A", False)


def test_a_group_that_the_engine_gave_up_is_an_error() -> None:
    output: Any = SimpleNamespace(outputs=[answer([1], [(0, 1, 4)]), answer([2], [(0, 1, 4)], "abort")])
    with pytest.raises(RuntimeError, match=r"rollout-0: the engine aborted prompt 'p' .*\['abort', 'stop'\]"):
        to_completions(output, PROMPT, "rollout-0", VOCABULARY, None, SPAN)


def test_likelihoods_are_sums_over_the_continuation_alone() -> None:
    texts = continuations(lambda text: [ord(each) for each in text], ["A", "BC"])
    asked = [prompt.token_ids.tolist() for prompt in continued_prompts(PROMPT, texts)]
    assert asked == [[1, 2, 3, 65], [1, 2, 3, 66, 67]]

    def scored(token_ids: list[int]) -> Any:
        """Each token has minus its number; vLLM also names the likeliest token of each place."""
        logprobs = [None, *({token: SimpleNamespace(logprob=-float(token)), 999: None} for token in token_ids[1:])]
        return SimpleNamespace(prompt_token_ids=token_ids, prompt_logprobs=logprobs)

    found = to_likelihoods([scored(ids) for ids in asked], PROMPT, texts.lengths)
    assert found.logprobs.tolist() == [-65.0, -66.0 - 67.0]
    assert (found.prompt_id, found.lengths.tolist(), str(found.logprobs.dtype)) == ("p", [1, 2], "float32")


def test_a_single_continuation_is_one_prompt() -> None:
    one = Continuations(np.array([7, 8], np.int32), np.array([2], np.int32))
    (prompt,) = continued_prompts(PROMPT, one)
    assert prompt.token_ids.tolist() == [1, 2, 3, 7, 8]
    assert (prompt.id, prompt.image is PROMPT.image) == ("p", True)


@pytest.mark.parametrize(
    ("processes", "by"),
    [
        ("{'EngineCore': -9}", "SIGKILL"),
        ("{'EngineCore_DP0': -11, 'EngineCore_DP1': -9}", "SIGSEGV"),
        ("{}", "a signal"),  # of a large process that was killed, which the kernel has not taken down yet
    ],
)
def test_an_engine_that_a_signal_ended_is_lost(processes: str, by: str, tmp_path: Path) -> None:
    log = tmp_path / "rollout-0.log"
    log.write_text("ValueError: of an earlier start\n")
    error = start_error(RuntimeError(NOT_STARTED.format(processes)), log, log.stat().st_size)
    assert isinstance(error, EngineLostError)
    assert str(error) == f"the engine process was ended by {by} while it started"


@pytest.mark.parametrize("processes", ["{'EngineCore': 1}", "{'EngineCore_DP0': 1, 'EngineCore_DP1': -15}", "{}"])
def test_one_that_ended_itself_is_an_error_with_its_cause(processes: str, tmp_path: Path) -> None:
    log = tmp_path / "rollout-0.log"
    raised = RuntimeError(NOT_STARTED.format(processes))
    log.write_text(f"ValueError: no such dtype\nRuntimeError: {raised}\n")
    error = start_error(raised, log, 0)
    assert not isinstance(error, EngineLostError)
    assert str(error) == "vLLM did not start: ValueError: no such dtype"


def test_an_error_of_vllms_own_process_is_one_without_a_log_too(tmp_path: Path) -> None:
    error = start_error(TypeError("an unexpected keyword"), tmp_path / "rollout-0.log", 0)
    assert str(error) == "vLLM did not start: TypeError: an unexpected keyword"
    assert not isinstance(error, EngineLostError)
