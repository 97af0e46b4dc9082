"""What can be found out, for the report of a missed deadline, without waiting for what may hang."""

from collections.abc import Sequence

import ray
from ray.exceptions import RayError

_WAIT_SECONDS = 5.0


def answers(asked: Sequence["ray.ObjectRef[str]"]) -> list[str]:
    """What each of several processes says, such as its stacks, or that it does not; after 5 s at most."""
    there = ray.wait(list(asked), num_returns=len(asked), timeout=_WAIT_SECONDS)[0] if asked else []
    return [_answer(ref) if ref in there else "(its process does not answer)" for ref in asked]


def _answer(ref: "ray.ObjectRef[str]") -> str:
    try:
        return ray.get(ref, timeout=_WAIT_SECONDS)
    except RayError as error:
        return f"(its process does not answer: {type(error).__name__})"
