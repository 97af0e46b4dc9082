"""TRL's GRPOTrainer on the same work, with each way of generating that it has on this machine.

Settings are TRL's defaults except where they would slow it down here: float32, no gradient checkpointing, fused AdamW,
no reference model, nothing logged or saved, prompts as plain text.
"""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from step.work import LEARNING_RATE, SEED, TEMPERATURE, Case, draw_prompts, even_bytes
from step.worker import Turns

STEPS = 1_000
"""More than are ever asked for."""
ROWS_PER_BATCH = {"short": 128, "long": 16}
"""Samples of one forward and backward: the fastest of 32 to 256 and of 16 to 64."""


def run(case: Case, folder: Path, turns: Turns) -> None:
    """As shipped, with `model.generate`."""
    _train(case, folder, turns)


def run_static(case: Case, folder: Path, turns: Turns) -> None:
    _train(case, folder, turns, cache_implementation="static")


def run_continuous(case: Case, folder: Path, turns: Turns) -> None:
    _train(case, folder, turns, use_transformers_continuous_batching=True)


def run_vllm(case: Case, folder: Path, turns: Turns) -> None:
    """TRL's colocated vLLM, as shipped."""
    _train(case, folder, turns, use_vllm=True, vllm_max_model_length=256)


def run_vllm_patched(case: Case, folder: Path, turns: Turns) -> None:
    """The same with what it lacks on CPU: the model's own dtype, and a weight sync that reaches packed weights."""
    from trl.generation import vllm_generation

    plain_llm = vllm_generation.LLM
    vllm_generation.LLM = lambda **settings: plain_llm(**settings, dtype="float32", enforce_eager=True)
    vllm_generation.VLLMGeneration.sync_weights = _sync_packed_weights
    run_vllm(case, folder, turns)


def _sync_packed_weights(generation: Any) -> None:
    llm = generation.llm
    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": generation._iter_named_params()})
    llm.collective_rpc(_repack_tied_head)
    llm.reset_prefix_cache()


def _repack_tied_head(worker: Any) -> None:
    from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    for module in worker.model_runner.get_model().modules():
        if isinstance(module, VocabParallelEmbedding):
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)


def _train(case: Case, folder: Path, turns: Turns, **generation: Any) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    class Timed(GRPOTrainer):
        """Says where the time goes; changes nothing."""

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            with watch.part("generate"):
                answer = super()._generate_single_turn(*args, **kwargs)
            watch.lengths = [len(tokens) for tokens in answer[0]]
            return answer

        def _generate_and_score_completions(self, *args: Any, **kwargs: Any) -> Any:
            with watch.part("generate and score"):
                return super()._generate_and_score_completions(*args, **kwargs)

    watch = Watch(turns)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Some modes stop when the prompts are used up; a few hundred are enough for all steps, over and over.
    prompts = [prompt.text for prompt in draw_prompts(folder, 64 * case.prompts)]
    rows = min(case.samples, ROWS_PER_BATCH[case.name])
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-"),
        max_steps=STEPS,
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=case.samples // rows,
        num_generations=case.group,
        max_completion_length=case.new_tokens,
        temperature=TEMPERATURE,
        beta=0.0,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        seed=SEED,
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        dataloader_pin_memory=False,
        optim="adamw_torch_fused",
        report_to="none",
        logging_steps=STEPS,
        save_strategy="no",
        disable_tqdm=True,
        **generation,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    trainer = Timed(
        model=model,
        reward_funcs=even_bytes,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
        callbacks=[watch],
    )
    watch.settings = {"dtype": "float32", "threads": torch.get_num_threads(), "rows_per_batch": rows} | generation
    trainer.train()


class Watch(TrainerCallback):
    """Lets TRL take one step per turn, and times it from one turn to the next."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns
        self._parts: dict[str, float] = {}
        self.settings: dict[str, Any] = {}
        self.lengths: list[int] = []
        self._begin = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._parts[name] = self._parts.get(name, 0.0) + time.perf_counter() - begin

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._turns.ready(**self.settings)
        self._start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        whole = time.perf_counter() - self._begin
        both, generate = self._parts["generate and score"], self._parts["generate"]
        parts = {"generate": generate, "score": both - generate, "train": whole - both}
        self._turns.done(parts, self.lengths)
        self._start()

    def _start(self) -> None:
        self._parts, self._begin = {}, time.perf_counter()
