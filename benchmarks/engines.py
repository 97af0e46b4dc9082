"""How many tokens a second one engine and two engines generate, on the same cores and prompts.

    python benchmarks/engines.py                  # transformers engines; --engine vllm for the others
    python benchmarks/engines.py --quick          # shrunk: does all of it work? Its figures mean nothing

Real engines in Ray actors under the real pool. Each way has engines of its own, which are all up before anything is
measured; rounds of the ways take turns, so that what else the machine does hits all of them. Quote the ratios.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import numpy as np

from rlpipe.data.flow import GroupRequest, Sampling
from rlpipe.models.scratch import build_model, build_tokenizer
from rlpipe.recipe.model import ScratchModel
from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.training import Resources
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.pool import EnginePool
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.ray_runtime import RayRuntime, connected
from rlpipe.runtime.roles import RoleSpec

WAYS = {"one engine, one thread": (1, 1), "one engine, two threads": (1, 2), "two engines, one thread each": (2, 1)}
NEVER = (-1,)
"""No token ends a response: all have the same length."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shrunk; the figures mean nothing")
    parser.add_argument("--engine", choices=["transformers", "vllm"], default="transformers")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--groups", type=int, default=16, help="of 8 responses each, in a round")
    parser.add_argument("--tokens", type=int, default=128, help="of a response")
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.groups, asked.tokens = 1, 2, 8
    with tempfile.TemporaryDirectory() as folder, connected():
        runtime = RayRuntime(Deadlines(start=600, placement=120))
        try:
            pools = pools_of(runtime, asked.engine, model_in(Path(folder)))
            measure(pools, 0, asked.groups, asked.tokens)  # what happens once happens here
            rounds = [measure(pools, number, asked.groups, asked.tokens) for number in range(1, asked.rounds + 1)]
        finally:
            runtime.stop()
    show(asked.engine, rounds, f"{asked.groups} groups of 8 responses of {asked.tokens} tokens")


def model_in(folder: Path) -> Path:
    """The embedded default of 2.8 M parameters, with random weights."""
    spec = ScratchModel(scratch="qwen2")
    tokenizer = build_tokenizer(spec.max_position_embeddings)
    build_model(spec, 0, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pools_of(runtime: RayRuntime, engine: str, model: Path) -> dict[str, EnginePool]:
    """Of each way, ready to be asked."""
    one, paths = Resources(cpus=0.1, gpus=0.0), {"PYTHONPATH": os.pathsep.join(sys.path)}
    specs = []
    for way, (count, threads) in WAYS.items():
        spec = EngineSpec(engine, str(model), "float32", NEVER, version=0, max_num_seqs=128, kv_cache_gib=0.2)
        role = RoleSpec(way, RolloutWorker, lambda seat, spec=spec: (spec,), count, one, threads, "rollout", paths)
        specs.append(role)
    started = runtime.start(specs)
    started.ready()
    return {way: EnginePool({"policy": started.handles[way]}, Deadlines(), max_restarts=0) for way in WAYS}


def measure(pools: dict[str, EnginePool], number: int, groups: int, tokens: int) -> dict[str, float]:
    """Tokens per second of each way in one round, all with the same requests."""
    rng = np.random.default_rng(number)
    sampling = Sampling(tokens, 1.0, NEVER)
    requests = [
        GroupRequest(
            f"{number}/{i}", f"p{i}", rng.integers(6, 200, 24).astype(np.int32), tuple(range(i, i + 8)), sampling
        )
        for i in range(groups)
    ]
    return {way: speed(pool, requests) for way, pool in pools.items()}


def speed(pool: EnginePool, requests: Sequence[GroupRequest]) -> float:
    began, written = time.perf_counter(), 0
    pool.submit("policy", requests)
    while pool.outstanding:
        written += sum(len(t.response_tokens) for group in pool.finished(1.0) for t in group)
    return written / (time.perf_counter() - began)


def show(engine: str, rounds: Sequence[dict[str, float]], what: str) -> None:
    """Medians, and of the ratios the median, the least and the most over the rounds."""
    base = next(iter(WAYS))
    print(f"\n{engine}, {what} a round, {len(rounds)} rounds:\n")
    print(f"| | tokens/s | beside {base} |\n|---|---:|---:|")
    for way in WAYS:
        ratios = sorted(each[way] / each[base] for each in rounds)
        spread = f"{median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {way} | {median(each[way] for each in rounds):,.0f} | {spread} |")


if __name__ == "__main__":
    main()
