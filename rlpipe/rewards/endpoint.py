"""What is agreed with an endpoint that scores: the JSON of the request and of the answer."""

import json
import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

from rlpipe.data.flow import Failure, Group
from rlpipe.rewards.function import RESERVED, conversations
from rlpipe.rewards.reward import Component


def request_body(groups: Sequence[Group]) -> bytes:
    """Lists of equal length, one entry per response; null where a group's row lacks a column that another has. What
    JSON does not know is sent as text."""
    each = [_lists(group) for group in groups]
    absent = [[None] * len(group.completions) for group in groups]
    names = dict.fromkeys(name for lists in each for name in lists)
    whole = {name: list(chain(*(ls.get(name, no) for ls, no in zip(each, absent, strict=True)))) for name in names}
    return json.dumps(whole, default=str).encode()


def _lists(group: Group) -> dict[str, list[Any]]:
    rows = len(group.completions)
    columns = {name: [value] * rows for name, value in group.prompt.columns.items() if name not in RESERVED}
    columns |= conversations(group, range(rows))
    return columns | {"prompts": [group.prompt.text] * rows, "completions": list(group.completions)}


def read_rewards(text: bytes, rows: int) -> list[Component] | Failure:
    """One component per response, or why there is none for any."""
    try:
        rewards = json.loads(text)["rewards"]
    except (ValueError, TypeError, KeyError, RecursionError):
        rewards = None
    if not isinstance(rewards, list):
        shown = text[:200].decode(errors="replace")
        return Failure("bad_answer", f'expected {{"rewards": [number or null, …]}}, got {shown!r}')
    if len(rewards) != rows:
        return Failure("wrong_length", f"{len(rewards)} rewards for {rows} completions")
    return list(map(_component, rewards))


def _component(reward: Any) -> Component:
    if reward is None:
        return None
    number = not isinstance(reward, bool) and isinstance(reward, int | float) and abs(reward) < math.inf
    if number and abs(reward) <= 1e308:  # beyond lie integers that are no floats
        return float(reward)
    return Failure("not_a_number", f"the reward is {reward!r:.100}")
