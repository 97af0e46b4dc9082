"""What was asked, as a key: as long as it is the same, so is the answer, and nobody is asked again.

A prompt's responses hang on the prompt, the model, how it is sampled and what its environment says; its labels on those
responses and on who judges them by what. Where a file of principles or a template is edited, the keys of those prompts
change that it concerns, and no others.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import xxhash

from rlpipe.data.flow import Group, Prompt
from rlpipe.data.judge_template import load
from rlpipe.pipelines.judges import drawer
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.critique import ConstitutionEnvironment
from rlpipe.recipe.environment import PythonEnvironment, SingleTurn
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.labelling import LabelRecipe, ReadResponses
from rlpipe.recipe.rewards import ModelReward, PythonReward, RewardMix
from rlpipe.rewards.judging.judged import Drawn
from rlpipe.rollout.environments.critique import CritiqueAndRevision


def asked(stage: Stage, recipe: LabelRecipe, prompts: list[Prompt], part: str) -> list[Prompt]:
    """The prompts under keys of what their responses hang on, each once: `part-KEY`."""
    about, concerns = _about_responses(stage, recipe), _said_by(recipe)
    keyed = [replace(p, prompt_id=f"{part}-{_digest([about, *_content(recipe, p), concerns(p)])}") for p in prompts]
    return list({prompt.prompt_id: prompt for prompt in keyed}.values())


def judged(recipe: LabelRecipe, groups: list[Group]) -> list[Group]:
    """The groups under keys of what their labels hang on."""
    about = _about_labels(recipe.rewards)
    draws = [drawer(reward) for reward in recipe.rewards.mix if isinstance(reward, JudgeReward)]
    return [_judged(group, [about, [_words(draw(group.prompt)) for draw in draws]]) for group in groups]


def _words(principle: Drawn | None) -> str | None:
    """Not the version of its constitution, which counts up when another principle is edited."""
    return None if principle is None else principle.text


def _judged(group: Group, about: Any) -> Group:
    prompt = group.prompt
    said = [group.completions, [[t.role, t.text] for turns in group.conversations for t in turns]]
    digest = _digest([about, prompt.prompt_id, said, prompt.columns])
    part = prompt.prompt_id.partition("-")[0]
    return replace(group, prompt=replace(prompt, prompt_id=f"{part}-{digest}"))


def _about_responses(stage: Stage, recipe: LabelRecipe) -> Any:
    if isinstance(recipe.responses, ReadResponses):
        return recipe.responses.model_dump()
    rollout = recipe.rollout
    how = [rollout.engine, rollout.max_new_tokens, rollout.temperature, list(stage.stop_token_ids), stage.dtype]
    model = [*_model(stage.model_path), getattr(recipe.model, "revision", None), rollout.max_model_len]
    return [model, how, recipe.responses.model_dump(), recipe.seed]


def _said_by(recipe: LabelRecipe) -> Callable[[Prompt], Any]:
    """What the environment says to a prompt, as far as it is known before."""
    environment = recipe.environment
    match environment:
        case ConstitutionEnvironment():
            asking, samples = CritiqueAndRevision(environment), recipe.responses.count
            return lambda prompt: asking.what_decides(prompt.text, samples)
        case PythonEnvironment():
            how = {"implementation", "processes", "batch", "secrets"}
            settings = environment.model_dump(exclude=how) | _code(environment.implementation)
            return lambda prompt: settings
    settings = environment.model_dump()
    return lambda prompt: settings


def _content(recipe: LabelRecipe, prompt: Prompt) -> list[Any]:
    """Columns count where an environment sees them, or where the responses stand in them."""
    seen = not isinstance(recipe.environment, SingleTurn) or isinstance(recipe.responses, ReadResponses)
    return [prompt.tokens.tolist(), prompt.columns if seen else None]


def _about_labels(mix: RewardMix) -> Any:
    """Who judges, and by what. How many processes do, where files lie and what it costs is not part of it."""
    return [_about_reward(reward.model_dump()) | _contents(reward) for reward in mix.mix]


_HOW = {
    "path", "template", "function", "constitution", "prices", "api_key_env", "token_env", "secrets",
    "trust_remote_code", "engines", "ranks", "processes", "requests", "requests_per_minute", "tokens_per_minute",
    "threads", "resources", "deadline", "timeout", "max_restarts", "tensor_parallel", "kv_cache_gib",
    "gpu_memory_utilization", "max_num_seqs", "questions_per_call", "tokens_per_batch",
}  # fmt: skip
"""Keys that change no answer; what stands in the files that some of them name does, and is looked at."""


def _about_reward(settings: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in settings.items() if key not in _HOW}
    return {key: _about_reward(value) if isinstance(value, dict) else value for key, value in kept.items()}


def _contents(reward: Any) -> dict[str, Any]:
    """What stands in the files that a reward names."""
    match reward:
        case JudgeReward():
            template = load(reward.template)
            own = {"asks": [template.name, list(template.messages), template.options, template.values]}
            path = getattr(reward.by, "path", None)
            return own | ({"model": _model(path)} if path else {})
        case ModelReward():
            return {"model": _model(reward.path)}
        case PythonReward():
            return _code(reward.function)
    return {}


def _code(named: str) -> dict[str, str]:
    """What stands in the file of `path/to/file.py:name`, and which name in it."""
    path, _, name = named.rpartition(":")
    file = Path(path)
    return {"name": name, "code": _contents_of(file)} if file.is_file() else {"name": named}


def _model(path: str) -> list[str]:
    """By content, wherever it lies: one that was trained again has files of the same names and sizes. A hub id by
    itself."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return [path]
    return [f"{file.name} {_contents_of(file)}" for file in sorted(folder.iterdir()) if file.is_file()]


def _contents_of(file: Path) -> str:
    digest = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while block := opened.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=12).hexdigest()
