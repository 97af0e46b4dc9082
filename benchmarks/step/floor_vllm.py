"""The floor under generation with vLLM: `vllm.LLM.generate`, in-process, and nothing around it."""

import time
from pathlib import Path

from step.work import SEED, TEMPERATURE, Case, draw_prompts
from step.worker import Turns

KV_CACHE_BYTES = 1 << 30


def run(case: Case, folder: Path, turns: Turns) -> None:
    """With what an RL step needs of its samples: log-probabilities of the tempered distribution, a seed per sample."""
    _run(case, folder, turns, seeded=True)


def run_unseeded(case: Case, folder: Path, turns: Turns) -> None:
    """The same without a seed per sample: what reproducibility costs."""
    _run(case, folder, turns, seeded=False)


def _run(case: Case, folder: Path, turns: Turns, seeded: bool) -> None:
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=str(folder),
        dtype="float32",
        seed=SEED,
        skip_tokenizer_init=True,
        generation_config="vllm",
        logprobs_mode="processed_logprobs",
        max_num_seqs=case.samples,
        enforce_eager=True,  # as rlpipe's engine on CPU
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        disable_log_stats=True,
    )
    step = 0
    turns.ready(dtype="float32", eager=True, seeded=seeded)
    while True:
        prompts = draw_prompts(folder, (step + 1) * case.prompts)[-case.prompts :]
        rows = [{"prompt_token_ids": prompt.tokens.tolist()} for prompt in prompts]
        params = [
            SamplingParams(
                n=case.group,
                temperature=TEMPERATURE,
                max_tokens=case.new_tokens,
                seed=SEED + step * case.prompts + i if seeded else None,
                logprobs=0,
                detokenize=False,
            )
            for i in range(case.prompts)
        ]
        begin = time.perf_counter()
        outputs = llm.generate(rows, params, use_tqdm=False)
        seconds = time.perf_counter() - begin
        step += 1
        turns.done({"generate": seconds}, [len(sample.token_ids) for output in outputs for sample in output.outputs])
