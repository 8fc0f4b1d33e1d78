"""vLLM as the rollout actor uses it: engine arguments, sampling of one request, and the answer as flat arrays.

Every sampling parameter is set explicitly, so that nothing comes from a checkpoint's generation_config.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medr1_ray.base.process_output import last_error
from medr1_ray.config import LARGEST_SEED
from medr1_ray.model.family import architecture_of
from medr1_ray.model.folder.check import stay_offline
from medr1_ray.model.vocabulary import Vocabulary
from medr1_ray.rollout.actor import EngineLostError
from medr1_ray.rollout.defaults import KV_CACHE_BYTES_ON_CPU, MAX_NUM_SEQS, EngineSettings
from medr1_ray.types import Completions, Continuations, Likelihoods, Prompt, Sampling, Span
from medr1_ray.weights.messages import ADAPTERS, AdapterShape

if TYPE_CHECKING:
    from vllm import RequestOutput, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

UNKNOWN_TOKEN = "\ufffd"


def set_environment(threads: int) -> None:
    """Set the environment variables that vLLM reads; call it before vllm is imported.

    Threads are not bound to cores: vLLM's own binding would give every engine of a node the same cores.
    """
    stay_offline()
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["VLLM_LOGGING_COLOR"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"


def engine_arguments(settings: EngineSettings, model: str, index: int) -> dict[str, Any]:
    """vLLM engine arguments of rollout actor `index`; `rollout.engine` overrides the defaults here."""
    from medr1_ray.rollout.image_scheduler import scheduler_path
    from medr1_ray.weights.engine.extension import EXTENSION
    from medr1_ray.weights.transports import TRANSPORTS

    rollout = settings.rollout
    on_cpu = rollout.gpus_per_actor == 0
    arguments: dict[str, Any] = {
        "model": model,
        # transformers 4.57 does not write it where vLLM reads it, which then takes the model for one of embeddings.
        "hf_overrides": {"architectures": [architecture_of(Path(model))]},
        "dtype": settings.model.dtype,
        "tensor_parallel_size": rollout.tensor_parallel_size,
        "max_model_len": rollout.max_prompt_tokens + rollout.max_tokens,
        "max_num_seqs": MAX_NUM_SEQS,
        # Qwen's generation_config.json sets top_k, top_p and temperature, which would apply by default.
        "generation_config": "vllm",
        # With logit bias and temperature applied (vLLM's default is without): importance ratios need the distribution
        # that was sampled from.
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": EXTENSION,
        # vLLM 0.32 schedules asynchronously by default, except on a CPU.
        "scheduler_cls": scheduler_path(rollout.engine.get("async_scheduling", not on_cpu)),
        "weight_transfer_config": {"backend": TRANSPORTS[settings.cluster.weight_transport].backend},
        "enable_sleep_mode": settings.cluster.colocated,
        # With the same seed, engines would draw the same random numbers.
        "seed": (settings.seed + index) % (LARGEST_SEED + 1),
        # The completions of a group share their prompt through the prefix cache.
        "enable_prefix_caching": True,
        # With videos allowed, vLLM sizes its encoder budget for the longest one.
        "limit_mm_per_prompt": {"image": 1, "video": 0},
        # A prompt is submitted once per group, so this cache would never hit; and a weight sync with requests in flight
        # would clear its two halves (in this process and in the engine's) at different moments.
        "mm_processor_cache_gb": 0,
        "disable_log_stats": True,
    }
    if on_cpu:
        arguments |= {
            "enforce_eager": True,
            "kv_cache_memory_bytes": KV_CACHE_BYTES_ON_CPU,
            # Only full blocks are shared between completions, and short prompts never fill the CPU's default of 128
            # tokens.
            "block_size": 32,
            # The cache has a fixed size, so encoding the largest image at start-up would measure nothing that is used.
            "skip_mm_profiling": True,
        }
    if settings.model.lora is not None:
        lora = settings.model.lora
        arguments["additional_config"] = {
            ADAPTERS: asdict(AdapterShape(lora.rank, lora.alpha, vision=settings.model.train_vision_tower))
        }
    if rollout.tensor_parallel_size > 1:
        # Inside a placement group vLLM chooses Ray workers by default, for which the actor's bundle has no room.
        arguments["distributed_executor_backend"] = "mp"
    elif on_cpu:
        # Given by its path, because vLLM replaces the short name "uni" by a multiprocessing executor on a CPU.
        arguments["distributed_executor_backend"] = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
    # Last, so that the user's values win; `config/sections.py` refuses the keys that must stay ours.
    return arguments | rollout.engine


def start_engine(settings: EngineSettings, model: str, index: int) -> AsyncLLM:
    """Start vLLM (seconds on a CPU, minutes for a large model)."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_arguments(settings, model, index)))


def start_error(error: Exception, log: Path, log_begin: int) -> RuntimeError:
    """What to raise where vLLM raised `error` when it started: EngineLostError if its process was killed, which no
    setting causes and another start may remedy. `log` has the engine's output, from `log_begin` on."""
    # vLLM says "see root cause above", in a log of hundreds of lines.
    cause = last_error(log, log_begin)
    # vLLM 0.32 names its processes that have ended, each with its exit code; a signal's is negative. It names none
    # where it looks before the kernel has taken down one that is killed, which then has left no word in the log.
    ended = re.search(r"Failed core proc\(s\): \{(.*?)\}", str(error))
    codes = [int(code) for code in re.findall(r": (-?\d+)", ended[1])] if ended else []
    if ended and max(codes, default=0 if cause else -1) < 0:
        by = signal.Signals(-codes[0]).name if codes else "a signal"
        return EngineLostError(f"the engine process was ended by {by} while it started")
    return RuntimeError(f"vLLM did not start: {cause or f'{type(error).__name__}: {error}'}")


def engine_prompt(prompt: Prompt, pixels: NDArray[np.uint8]) -> Any:
    """The prompt in vLLM's form: ids with one image-pad token, and its image's pixels."""
    from PIL import Image

    return {
        "prompt_token_ids": prompt.token_ids.tolist(),
        "multi_modal_data": {"image": Image.fromarray(pixels)},
    }


def sampling_params(sampling: Sampling, vocabulary: Vocabulary, prompt_id: str) -> SamplingParams:
    """Sampling parameters of one group; with a seed, different prompts still draw different numbers."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    seed = sampling.seed
    if seed is not None:
        seed = int.from_bytes(hashlib.blake2b(f"{seed} {prompt_id}".encode(), digest_size=6).digest(), "big")
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
        # 0 asks for the log-probability of the sampled token alone.
        logprobs=0,
        # One flat list per completion; by default vLLM makes a dict with objects for every token.
        flat_logprobs=True,
        logit_bias=vocabulary.logit_bias,
        stop_token_ids=list(vocabulary.stop),
        # Texts are decoded at the end, in one batch, instead of token by token.
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def likelihood_params() -> SamplingParams:
    """Parameters for the log-probabilities of a given text; vLLM must sample one token, which is ignored."""
    from vllm import SamplingParams

    # vLLM 0.32 applies neither temperature nor bias to prompt log-probabilities, and does not read the prefix cache for
    # such a request.
    return SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)


def continued_prompts(prompt: Prompt, continuations: Continuations) -> Iterator[Prompt]:
    """The prompt followed by each continuation."""
    for token_ids in np.split(continuations.token_ids, np.cumsum(continuations.lengths)[:-1]):
        yield replace(prompt, token_ids=np.concatenate([prompt.token_ids, token_ids]))


def to_likelihoods(outputs: Sequence[RequestOutput], prompt: Prompt, lengths: NDArray[np.int32]) -> Likelihoods:
    """Sums of the last `lengths` log-probabilities of vLLM's outputs, one for each continuation of the prompt."""
    sums = []
    for output, length in zip(outputs, lengths.tolist(), strict=True):
        # Counted from the end: in the output the image pad has been expanded to the visual tokens.
        token_ids = output.prompt_token_ids[-length:]
        scored = output.prompt_logprobs[-length:]
        sums.append(sum(at[token].logprob for at, token in zip(scored, token_ids, strict=True)))
    return Likelihoods(prompt.id, np.array(sums, np.float32), lengths)


def to_completions(
    output: RequestOutput, prompt: Prompt, actor: str, vocabulary: Vocabulary, tokenizer: Any, span: Span
) -> Completions:
    """vLLM's final output of a group as flat arrays.

    Raises RuntimeError when a completion ended neither at a stop token nor at the length limit.
    """
    answers = output.outputs
    # For example "abort": such a text was cut off at an arbitrary place.
    reasons = {str(answer.finish_reason) for answer in answers}
    if not reasons <= {"stop", "length"}:
        raise RuntimeError(f"{actor}: the engine aborted prompt {prompt.id!r} (finish reasons {sorted(reasons)})")
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
        texts=tuple(sampled_text(ids, vocabulary, tokenizer) for ids in token_ids),
        # The engine's prompt has its image pad expanded, so this is what the engine's own image processor made of the
        # image.
        visual_tokens=list(output.prompt_token_ids).count(vocabulary.image_pad),
        span=span,
    )


def sampled_text(token_ids: Sequence[int], vocabulary: Vocabulary, tokenizer: Any) -> str:
    """The text of a completion as it was sampled, without the stop token that ends it.

    Special tokens stay, because tags may be special tokens, and others cost the format where they do not belong. An id
    that the tokenizer lacks is shown as U+FFFD for the same reason.
    """
    if token_ids and token_ids[-1] in vocabulary.stop:
        token_ids = token_ids[:-1]
    tokens = tokenizer.convert_ids_to_tokens(token_ids)
    runs = groupby(zip(token_ids, tokens, strict=True), key=lambda pair: pair[1] is not None)
    return "".join(
        tokenizer.decode([id_ for id_, _ in run]) if known else UNKNOWN_TOKEN * len(list(run)) for known, run in runs
    )
