"""What `rlpipe plan` says a training rank takes, beside what it takes.

    python benchmarks/memory.py                       every way, about 10 minutes on two cores
    python benchmarks/memory.py --only "ZeRO-2, 2 ranks"

Each way is an RL recipe on a Qwen2 of 113 M parameters (random weights, float32): its policy is built and takes two
optimizer steps, each rank in a process of its own. Measured is the largest resident memory of rank 0 from its first
step on, above what it was with everything imported and nothing loaded (Linux); predicted is what the plan says of the
same recipe, without its constant for the process.

Bytes in use are compared: glibc is told to give every larger piece of memory back when it is freed
(MALLOC_MMAP_THRESHOLD_). With --heap it is left as it is, and what it keeps for later counts, too.
"""

import argparse
import json
import os
import socket
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1])]

from rlpipe.recipe.model import ScratchModel  # noqa: E402

MODEL = ScratchModel(
    scratch="qwen2", hidden_size=768, layers=12, heads=12, kv_heads=12, intermediate_size=3072,
    tie_word_embeddings=True,
)  # fmt: skip
PROMPT, RESPONSE = 32, 32
COMMON = (
    "algorithm.name=grpo", "algorithm.group_size=4", "schedule.prompts_per_step=2", "evaluation.every=1",
    f"rollout.max_new_tokens={RESPONSE}", "model.dtype=float32", "rollout.engine=transformers",
)  # fmt: skip
LORA = ("adapter.kind=lora", "adapter.r=16")
QLORA = (*LORA, "model.quantization.load_in_4bit=true")
WAYS: dict[str, tuple[str, ...]] = {
    "full": (),
    "full, checkpointing": ("train.gradient_checkpointing=true",),
    "full, 4 micro-batches": ("train.tokens_per_micro_batch=128",),
    "full, adamw_8bit": ("train.optimizer.optim=adamw_8bit",),
    "LoRA": LORA,
    "LoRA, checkpointing": (*LORA, "train.gradient_checkpointing=true"),
    "QLoRA": QLORA,
    "full, 2 ranks": ("train.ranks=2",),
    "ZeRO-1, 2 ranks": ("train.ranks=2", "train.zero_stage=1"),
    "ZeRO-2, 2 ranks": ("train.ranks=2", "train.zero_stage=2"),
    "ZeRO-3, 2 ranks": ("train.ranks=2", "train.zero_stage=3"),
    "ZeRO-2, LoRA, 2 ranks": ("train.ranks=2", "train.zero_stage=2", *LORA),
    "ZeRO-3, LoRA, 2 ranks": ("train.ranks=2", "train.zero_stage=3", *LORA),
    "ZeRO-3, QLoRA, 2 ranks": ("train.ranks=2", "train.zero_stage=3", *QLORA),
    "ZeRO-2, offload_optimizer, 2 ranks": ("train.ranks=2", "train.zero_stage=2", "train.offload_optimizer=true"),
}
STEPS = 2


def recipe_of(way: str, folder: str) -> Any:
    """The recipe that is both planned and run."""
    from rlpipe.recipe.load import load

    return load("arithmetic/grpo", [f"model.path={folder}", *COMMON, *WAYS[way]])


def predicted(way: str, folder: str) -> tuple[str, dict[str, int]]:
    """The plan's fullest moment, and bytes by part."""
    from rlpipe.plan.hardware import Cluster, Node
    from rlpipe.plan.stage import Asked
    from rlpipe.plan.whole import plan

    here = Cluster((Node("here", 0, 0, None),), "here")
    [stage] = plan(recipe_of(way, folder), here, Asked(prompt=PROMPT)).stages
    usage = next(role.usage for role in stage.scenes[0].roles if role.name == "policy")
    return usage.fullest, {part: count for part, count in usage.peak.items() if part != "process"}


def measured(way: str, folder: str, index: int, port: int) -> dict[str, int]:
    """Bytes of one rank, in this process."""
    import torch

    from rlpipe.recipe.algorithm import PRESETS  # noqa: F401  (imported by the driver, before anything is counted)
    from rlpipe.training.distributed import Rank, join
    from rlpipe.training.policy import Policy

    recipe = recipe_of(way, folder)
    rank = Rank(index, recipe.train.ranks, index, "127.0.0.1", port)
    torch.set_num_threads(1)
    join(rank, 600)
    _import_everything(recipe)
    start = resident("VmRSS")
    policy = Policy(_spec(recipe, folder), rank)
    built = resident("VmHWM") - start
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    for _ in range(STEPS):
        policy.update(_shards(recipe)[index])
    return {"loading": built, "training": resident("VmHWM") - start}


def _import_everything(recipe: Any) -> None:
    import bitsandbytes  # noqa: F401
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    from transformers import AutoModelForCausalLM, Qwen2ForCausalLM  # noqa: F401


def _spec(recipe: Any, folder: str) -> Any:
    from types import SimpleNamespace

    from rlpipe.pipelines import roles

    stage = SimpleNamespace(recipe=recipe, model_path=folder, debug=False)
    return _as_rl(roles, stage)


def _as_rl(roles: Any, stage: Any) -> Any:
    """The specification that the pipeline gives its ranks."""
    from rlpipe.runtime.roles import Seat

    return roles.policy(stage).arguments(Seat(0, 1, 0, 1, "127.0.0.1", 0))[0]


def _shards(recipe: Any) -> list[Any]:
    """A batch of the recipe's size, every sequence of the greatest length, in its micro-batches."""
    import numpy as np

    from rlpipe.data.flow import TokenBatch
    from rlpipe.training.microbatch import plan_step

    count, length = recipe.schedule.prompts_per_step * recipe.algorithm.group_size, PROMPT + RESPONSE
    mask_N = np.tile(np.repeat(np.array([0, 1], np.float32), [PROMPT, RESPONSE]), count)
    batch = TokenBatch(
        tokens_N=np.random.default_rng(0).integers(6, 200, count * length, dtype=np.int32),
        offsets_B1=np.arange(count + 1) * length,
        mask_N=mask_N,
        behaviour_logprobs_N=-mask_N,
        advantages_N=mask_N,
        old_logprobs_N=-mask_N,
        weights_N=mask_N / mask_N.sum(),
    )
    return plan_step(batch, range(count), recipe.train.ranks, recipe.train.tokens_per_micro_batch)


def resident(figure: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(figure)]
    return int(line.split()[1]) * 1024


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def compared(way: str, folder: str) -> dict[str, Any]:
    """One way, in processes of its own."""
    ranks = recipe_of(way, folder).train.ranks
    port, spawn = _free_port(), get_context("spawn")
    with ProcessPoolExecutor(ranks, spawn, max_tasks_per_child=1) as processes:
        found = [processes.submit(measured, way, folder, index, port) for index in range(ranks)]
        taken, *_ = [one.result() for one in found]
    moment, parts = predicted(way, folder)
    return taken | {"predicted": sum(parts.values()), "moment": moment, "parts": parts}


def _build(folder: str) -> None:
    from rlpipe.models.scratch import build

    build(MODEL, 0, Path(folder))


def _table(found: dict[str, dict[str, Any]]) -> str:
    lines = ["| | predicted, MiB | measured, MiB | off by | fullest moment |", "|---|---:|---:|---:|---|"]
    for way, one in found.items():
        off = one["predicted"] / one["training"] - 1
        cells = f"{one['predicted'] / 2**20:,.0f} | {one['training'] / 2**20:,.0f} | {off:+.0%}"
        lines.append(f"| {way} | {cells} | {one['moment']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=WAYS, nargs="*", help="these ways alone")
    parser.add_argument("--folder", help="keep the model here")
    parser.add_argument("--heap", action="store_true", help="leave glibc's heap as it is")
    parser.add_argument("--json", help="write every figure to this file")
    arguments = parser.parse_args()
    if not arguments.heap:
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # read by the processes that are started from here
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or temporary
        if not (Path(folder) / "config.json").exists():
            with ProcessPoolExecutor(1, get_context("spawn")) as process:
                process.submit(_build, folder).result()
        found = {}
        for way in arguments.only or WAYS:
            found[way] = compared(way, folder)
            print(way, found[way], file=sys.stderr, flush=True)
    print(_table(found))
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
