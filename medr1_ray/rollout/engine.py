"""vLLM as the rollout actor uses it: its settings, one request's sampling, and its answer as flat arrays.

Every sampling setting is explicit, so that nothing comes from a checkpoint's generation_config.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medr1_ray.config import Config
from medr1_ray.model.vocabulary import Vocabulary
from medr1_ray.rollout.defaults import KV_CACHE_BYTES_ON_CPU, MAX_NUM_SEQS
from medr1_ray.types import Completions, Continuations, Likelihoods, Prompt, Sampling, Span

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

def set_environment(config: Config) -> None:
    """What vLLM reads from the environment; to be called before vllm is imported.

    Threads are counted but not bound to cores: vLLM's own binding gives every engine of a node the same cores.
    """
    os.environ["OMP_NUM_THREADS"] = str(config.rollout.threads)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["VLLM_LOGGING_COLOR"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"


def engine_arguments(config: Config, model: str, index: int) -> dict[str, Any]:
    """vLLM engine arguments of rollout actor `index`; those of `rollout.engine` win over the defaults here."""
    from medr1_ray.rollout.image_scheduler import scheduler_path
    from medr1_ray.weights.engine.extension import EXTENSION
    from medr1_ray.weights.transports import TRANSPORTS

    rollout = config.rollout
    on_cpu = rollout.gpus_per_actor == 0
    arguments: dict[str, Any] = {
        "model": model,
        "dtype": config.model.dtype,
        "tensor_parallel_size": rollout.tensor_parallel_size,
        "max_model_len": rollout.max_prompt_tokens + rollout.max_tokens,
        "max_num_seqs": MAX_NUM_SEQS,
        "generation_config": "vllm",
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": EXTENSION,
        # vLLM schedules asynchronously wherever it can, which a CPU cannot.
        "scheduler_cls": scheduler_path(rollout.engine.get("async_scheduling", not on_cpu)),
        "weight_transfer_config": {"backend": TRANSPORTS[config.cluster.weight_transport].backend},
        "enable_sleep_mode": config.cluster.colocated,
        "seed": config.train.seed + index,
        # The completions of a group share their prompt through the prefix cache.
        "enable_prefix_caching": True,
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        # A prompt goes in once, so processed images are not met again; and with requests in flight a weight sync
        # would clear the two halves of this cache (here and in the engine process) at different moments.
        "mm_processor_cache_gb": 0,
        "disable_log_stats": True,
    }
    if on_cpu:
        arguments |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": KV_CACHE_BYTES_ON_CPU,
            # A block must be full before it is shared, and short prompts never fill the CPU's default of 128 tokens.
            "block_size": 32,
            "skip_mm_profiling": True,
        }
    if rollout.tensor_parallel_size > 1:
        arguments["distributed_executor_backend"] = "mp"
    elif on_cpu:
        # By its path: under its short name vLLM replaces it on a CPU by one more process.
        arguments["distributed_executor_backend"] = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
    return arguments | rollout.engine


def start_engine(config: Config, model: str, index: int) -> AsyncLLM:
    """Start vLLM (seconds on a CPU, minutes for a large model)."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(config, model, index)))


def engine_prompt(prompt: Prompt) -> Any:
    """The prompt as vLLM takes it: ids with one image-pad token, and the image."""
    from PIL import Image

    return {
        "prompt_token_ids": prompt.token_ids.tolist(),
        "multi_modal_data": {"image": Image.fromarray(prompt.image)},
    }


def sampling_params(sampling: Sampling, vocabulary: Vocabulary, request_id: str) -> SamplingParams:
    """Sampling of one group; with a seed, requests of different ids still draw different numbers."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    seed = sampling.seed
    if seed is not None:
        seed = int.from_bytes(hashlib.blake2b(f"{seed} {request_id}".encode(), digest_size=6).digest(), "big")
    return SamplingParams(
        n=sampling.group_size,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=0.0,
        presence_penalty=0.0,
        frequency_penalty=0.0,
        repetition_penalty=1.0,
        seed=seed,
        logprobs=0,
        flat_logprobs=True,
        logit_bias=vocabulary.logit_bias,
        stop_token_ids=list(vocabulary.stop),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def scoring_params() -> SamplingParams:
    """For a text whose own log-probabilities are asked for; the one token that is sampled is thrown away."""
    from vllm import SamplingParams

    return SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)


def continued_prompts(prompt: Prompt, continuations: Continuations) -> Iterator[Prompt]:
    """The prompt with each continuation behind it."""
    for token_ids in np.split(continuations.token_ids, np.cumsum(continuations.lengths)[:-1]):
        yield replace(prompt, token_ids=np.concatenate([prompt.token_ids, token_ids]))


def to_likelihoods(outputs: Sequence[RequestOutput], prompt: Prompt, lengths: NDArray[np.int32]) -> Likelihoods:
    """Sums of the last `lengths` log-probabilities of vLLM's outputs, one for each continuation of the prompt."""
    sums = []
    for output, length in zip(outputs, lengths.tolist(), strict=True):
        token_ids = output.prompt_token_ids[-length:]
        scored = output.prompt_logprobs[-length:]
        sums.append(sum(at[token].logprob for at, token in zip(scored, token_ids, strict=True)))
    return Likelihoods(prompt.id, np.array(sums, np.float32), lengths)


def to_completions(
    output: RequestOutput, prompt: Prompt, actor: str, vocabulary: Vocabulary, tokenizer: Any, span: Span
) -> Completions:
    """vLLM's final output of a group as flat arrays.

    Raises RuntimeError when a completion ended neither by a stop token nor at the length limit.
    """
    answers = output.outputs
    reasons = {str(answer.finish_reason) for answer in answers}
    if not reasons <= {"stop", "length"}:
        raise RuntimeError(f"{actor}: the engine broke off prompt {prompt.id!r} (finish reasons {sorted(reasons)})")
    token_ids = [list(answer.token_ids) for answer in answers]
    logprobs = [logprob for answer in answers for logprob in answer.logprobs.logprobs]
    lengths = np.array([len(ids) for ids in token_ids], np.int32)
    versions = [
        np.full(held.end - held.start, int(held.version), np.int32)
        for answer in answers
        for held in answer.weight_versions
    ]
    return Completions(
        prompt_id=prompt.id,
        actor=actor,
        token_ids=np.concatenate([np.array(ids, np.int32) for ids in token_ids]),
        rollout_logprobs=np.array(logprobs, np.float32),
        versions=np.concatenate(versions),
        lengths=lengths,
        truncated=np.array([answer.finish_reason == "length" for answer in answers]),
        texts=tuple(tokenizer.batch_decode(token_ids, skip_special_tokens=True)),
        visual_tokens=list(output.prompt_token_ids).count(vocabulary.image_pad),
        span=span,
    )
