"""Preferences over a story model's own stories: pairs for a reward model.

    python recipes/stories/preferences.py MODEL pairs.jsonl [STORIES]

Continues each opening of openings.jsonl STORIES times (64), up to 80 tokens, and prefers, of two stories, the one that
is happier by `happy` of rewards.py; ties are dropped. Another measure would go into `main` in its place.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from rewards import happy
from transformers import AutoTokenizer, GenerationConfig

from rlpipe.data.chat import render
from rlpipe.data.flow import GroupRequest, Sampling
from rlpipe.data.seeds import sample_seed
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.transformers_engine import TransformersEngine

MAX_NEW_TOKENS = 80
OPENINGS = Path(__file__).with_name("openings.jsonl")


def sample(model: str, openings: list[str], count: int) -> list[list[str]]:
    """`count` continuations of each opening, at temperature 1."""
    tokenizer, ends = AutoTokenizer.from_pretrained(model), GenerationConfig.from_pretrained(model).eos_token_id
    ends = tuple(ends) if isinstance(ends, list) else (ends,)
    prompts = render(openings, openings, tokenizer, continued=True)
    engine = TransformersEngine(EngineSpec("transformers", model, "auto", ends, version=0))
    sampling = Sampling(MAX_NEW_TOKENS, 1.0, ends)
    stories: list[list[str]] = [[] for _ in openings]
    for number, (opening, prompt) in enumerate(zip(openings, prompts, strict=True)):
        seeds = tuple(sample_seed(0, opening, 0, i) for i in range(count))
        tokens = np.array(prompt.ids, dtype=np.int32)
        engine.submit([GroupRequest(str(number), opening, tokens, seeds, sampling)])
    while engine.health().outstanding:
        for story in engine.step():
            text = tokenizer.decode(story.response_tokens, skip_special_tokens=True)
            stories[int(story.group_id)].append(text)
    return stories


def pairs(stories: list[str], measure: Callable[[list[str]], list[float]]) -> Iterator[tuple[str, str]]:
    """(preferred, other), each story once at most."""
    measured = zip(measure(stories), stories, strict=True)
    for one, two in zip(measured, measured, strict=False):
        if one[0] != two[0]:
            yield max(one, two)[1], min(one, two)[1]


def main(model: str, target: str, count: str = "64") -> None:
    openings = [json.loads(line)["prompt"] for line in OPENINGS.read_text(encoding="utf-8").splitlines()]
    stories = sample(model, openings, int(count))
    records = [
        {"prompt": opening, "chosen": chosen, "rejected": rejected}
        for opening, own in zip(openings, stories, strict=True)
        for chosen, rejected in pairs(random.Random(0).sample(own, len(own)), happy)
    ]
    Path(target).write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    print(f"{len(records)} pairs of {sum(map(len, stories))} stories in {target}")


if __name__ == "__main__":
    main(*sys.argv[1:])
