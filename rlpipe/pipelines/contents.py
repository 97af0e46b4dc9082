"""What stands in the files that an answer or its score hangs on, for keys: as long as it is the same, nobody is asked
again, wherever the files lie and whenever they were written."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import xxhash

from rlpipe.data.judge_template import load
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.rewards import ModelReward, PythonReward, RewardMix


def about_rewards(mix: RewardMix) -> Any:
    """Who judges, and by what. How many processes do, where files lie and what it costs is not part of it."""
    return [about_reward(reward) for reward in mix.mix]


def about_reward(reward: Any) -> dict[str, Any]:
    """Of one. Not its constitution, of which each prompt sees one principle."""
    return _settings(reward.model_dump()) | _files(reward)


_HOW = {
    "path", "template", "function", "constitution", "prices", "api_key_env", "token_env", "secrets",
    "trust_remote_code", "engines", "ranks", "processes", "requests", "requests_per_minute", "tokens_per_minute",
    "threads", "resources", "deadline", "timeout", "max_restarts", "tensor_parallel", "kv_cache_gib",
    "gpu_memory_utilization", "max_num_seqs", "questions_per_call", "tokens_per_batch",
}  # fmt: skip
"""Keys that change no answer; what stands in the files that some of them name does, and is looked at."""


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if key not in _HOW}
    return {key: _settings(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _files(reward: Any) -> dict[str, Any]:
    """What stands in the files that a reward names."""
    match reward:
        case JudgeReward():
            template = load(reward.template)
            own = {"asks": [template.name, list(template.messages), template.options, template.values]}
            path = getattr(reward.by, "path", None)
            return own | ({"model": model(path)} if path else {})
        case ModelReward():
            return {"model": model(reward.path)}
        case PythonReward():
            return code(reward.function)
    return {}


def code(named: str) -> dict[str, str]:
    """What stands in the file of `path/to/file.py:name`, and which name in it."""
    path, _, name = named.rpartition(":")
    file = Path(path)
    return {"name": name, "code": contents_of(file)} if file.is_file() else {"name": named}


def model(path: str) -> list[str]:
    """By content, wherever it lies: one that was trained again has files of the same names and sizes. A hub id by
    itself."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return [path]
    return [f"{file.name} {contents_of(file)}" for file in sorted(folder.iterdir()) if file.is_file()]


def contents_of(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while block := opened.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=12).hexdigest()


def files_in(settings: Any) -> list[str]:
    """Contents of the files that settings name, as a path or as `path/to/file.py:name`, in their order."""
    match settings:
        case dict():
            return [each for value in settings.values() for each in files_in(value)]
        case list() | tuple():
            return [each for value in settings for each in files_in(value)]
        case str():
            file = Path(settings.partition(".py:")[0] + ".py" if ".py:" in settings else settings)
            return [contents_of(file)] if os.path.isfile(file) else []  # of Path, long texts would be an OSError
    return []
