"""Standard benchmarks of every model, by lm-evaluation-harness in a process of its own on this machine.

The harness brings its own prompts, engines and metrics. Of a metric that it computes question by question the values
are kept, so that models are compared as on any other prompts; of another one its value and standard error. Names:
`TASK/METRIC`, and `TASK/METRIC@FILTER` where a task has several ways to read an answer.
"""

import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from rlpipe.pipelines.evaluating import harness, keys
from rlpipe.pipelines.evaluating.ends import BenchmarksFailed
from rlpipe.pipelines.evaluating.served import Served
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe import secrets
from rlpipe.recipe.benchmarks import Benchmarks
from rlpipe.recipe.evaluating import EvalRecipe
from rlpipe.rollout.engine import vllm_rank

PACKAGE = "lm_eval"
_OF_RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_")
_LAST_LINES = 15
_PLAIN_VLLM = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@dataclass(frozen=True)
class Measured:
    """Of one model."""

    questions: dict[str, list[float]] = field(default_factory=dict)
    """By metric, of each question; NaN where one has no value."""
    wholes: dict[str, tuple[float, float]] = field(default_factory=dict)
    """By metric that is no mean over questions, or of a group of tasks: value and standard error."""
    lower_is_better: list[str] = field(default_factory=list)


def require(recipe: EvalRecipe) -> None:
    """Raises `BenchmarksFailed` where the harness is not installed: before anything is started."""
    if recipe.benchmarks is not None and importlib.util.find_spec(PACKAGE) is None:
        raise BenchmarksFailed(
            "benchmarks: lm-evaluation-harness is not installed. Install it with `pip install 'rlpipe[eval]'`, or "
            "leave benchmarks out."
        )


def run(stage: Stage, recipe: EvalRecipe, models: Mapping[str, Served]) -> dict[str, Measured]:
    """By model; what was measured before is read."""
    if recipe.benchmarks is None:
        return {}
    return {name: _of(stage, recipe.benchmarks, model) for name, model in models.items()}


def _of(stage: Stage, settings: Benchmarks, model: Served) -> Measured:
    folder = stage.directory / "benchmarks" / model.name
    command = _command(settings, model, folder / "output")
    key = json.dumps([command, keys.weights(model), _task_files(settings)])
    done = folder / "done.json"
    if done.is_file() and json.loads(done.read_text())["key"] == key:
        return read(folder / "output")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with stage.events.phase("benchmarks", says=f"{model.name}: {', '.join(settings.tasks)}"):
        _harness(command, settings, folder / "log.txt")
    found = read(folder / "output")
    done.write_text(json.dumps({"key": key}))
    return found


def _command(settings: Benchmarks, model: Served, output: Path) -> list[str]:
    backend, arguments = _model_arguments(settings, model)
    options = {
        "--model": backend,
        "--model_args": ",".join(f"{key}={value}" for key, value in arguments.items()),
        "--tasks": ",".join(settings.tasks),
        "--output_path": str(output),
        "--batch_size": "auto" if backend == "vllm" else str(settings.batch_size),
        "--seed": str(model.recipe.seed),
        **({"--include_path": settings.include_path} if settings.include_path else {}),
        **({"--num_fewshot": str(settings.num_fewshot)} if settings.num_fewshot is not None else {}),
        **({"--limit": str(settings.limit)} if settings.limit else {}),
    }
    words = [word for pair in options.items() for word in pair]
    template = ["--apply_chat_template"] if settings.apply_chat_template else []
    return [sys.executable, "-m", harness.__name__, "run", *words, *template, "--log_samples"]


def _model_arguments(settings: Benchmarks, model: Served) -> tuple[str, dict[str, Any]]:
    spec, rollout = model.recipe.model, model.recipe.rollout
    engine = {"vllm": "vllm", "transformers": "hf"}[rollout.engine]
    backend = engine if settings.backend == "auto" else settings.backend
    found: dict[str, Any] = {"pretrained": model.model_path, "dtype": model.dtype}
    if getattr(spec, "revision", None):
        found["revision"] = spec.revision
    if getattr(spec, "trust_remote_code", False):
        found["trust_remote_code"] = True
    if backend == "hf":
        return backend, found | ({"peft": str(model.adapter)} if model.adapter else {})
    found |= {"tensor_parallel_size": rollout.tensor_parallel, "enforce_eager": True}
    found |= {"gpu_memory_utilization": rollout.gpu_memory_utilization, "max_num_seqs": rollout.max_num_seqs}
    if rollout.max_model_len:
        found["max_model_len"] = rollout.max_model_len
    if model.adapter:
        found |= {"lora_local_path": str(model.adapter), "max_lora_rank": vllm_rank(model.lora_rank)}
    return backend, found


def _is_for_the_harness(name: str) -> bool:
    """No keys but the hub's; and nothing that a training in this process (--debug) has left for its ranks, of which
    the harness would take itself for one."""
    return (name in secrets.HUB or not secrets.is_secret(name)) and not name.startswith(_OF_RANKS)


def _harness(command: list[str], settings: Benchmarks, log: Path) -> None:
    own = {name: value for name, value in os.environ.items() if _is_for_the_harness(name)}
    environment = own | _PLAIN_VLLM | {"TOKENIZERS_PARALLELISM": "false"}
    with log.open("w") as out:
        try:
            done = subprocess.run(
                command, stdout=out, stderr=subprocess.STDOUT, env=environment, timeout=settings.deadline
            )
        except subprocess.TimeoutExpired:
            raise BenchmarksFailed(
                f"lm_eval had not finished after {settings.deadline:g} s (benchmarks.deadline); its words: {log}"
            ) from None
    if done.returncode:
        last = "\n".join(log.read_text(errors="replace").strip().splitlines()[-_LAST_LINES:])
        raise BenchmarksFailed(f"lm_eval ended with {done.returncode}; its last words, of {log}:\n{last}")


def read(output: Path) -> Measured:
    """What the harness has written. Raises `BenchmarksFailed` where that is nothing."""
    files = sorted(output.rglob("results_*.json"))
    if not files:
        raise BenchmarksFailed(f"lm_eval has written no results into {output}")
    results = json.loads(files[-1].read_text())
    measured = Measured()
    for task, metrics in results["results"].items():
        better = results.get("higher_is_better", {}).get(task, {})
        docs = _questions(files[-1].parent, task)
        for entry, value in metrics.items():
            metric, _, reading = entry.partition(",")
            if not reading or metric.endswith("_stderr") or not isinstance(value, Real):
                continue
            name = f"{task}/{metric}" + ("" if reading == "none" else f"@{reading}")
            values = docs.get((metric, reading), [])
            if values and math.isclose(sum(values) / len(values), value, abs_tol=1e-6):
                measured.questions[name] = values
            else:
                error = metrics.get(f"{metric}_stderr,{reading}")
                measured.wholes[name] = (float(value), float(error) if isinstance(error, Real) else math.nan)
            if better.get(metric) is False:
                measured.lower_is_better.append(name)
    return measured


def _questions(folder: Path, task: str) -> dict[tuple[str, str], list[float]]:
    """By metric and reading, the value of each question in order; empty for a group of tasks."""
    files = sorted(folder.glob(f"samples_{task}_20*.jsonl"))
    rows = [json.loads(line) for line in files[-1].open(encoding="utf-8")] if files else []
    found: dict[tuple[str, str], list[float]] = {}
    for row in sorted(rows, key=lambda row: row["doc_id"]):
        for metric in row.get("metrics", []):
            if isinstance(row.get(metric), Real):
                found.setdefault((metric, row["filter"]), []).append(float(row[metric]))
    return found


def _task_files(settings: Benchmarks) -> list[tuple[str, int]]:
    """An edited task is another one."""
    folder = Path(settings.include_path) if settings.include_path else None
    return sorted((str(file), file.stat().st_mtime_ns) for file in folder.rglob("*.*")) if folder else []
