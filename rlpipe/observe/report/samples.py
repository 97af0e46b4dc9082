"""Texts for the report: held-out answers before and after, and rollouts token by token. Plain values: the template
escapes them."""

import json
import math
from collections.abc import Callable
from typing import Any

from rlpipe.observe.report.collect import Stage, problem_of

GROUPS_SHOWN = 4
ROWS_PER_GROUP = 4
DARKEST_NATS = 4.0


def comparison(stage: Stage) -> list[dict[str, Any]]:
    """For each held-out prompt of the evaluations: its answer, and what the model said at first and at last."""
    if not stage.evaluations:
        return []
    first, last = stage.evaluations[0], stage.evaluations[-1]
    before = {problem_of(sample): sample for sample in first["samples"]}
    return [
        {
            "prompt": sample["prompt"],
            "answer": sample.get("columns", {}).get("answer"),
            "before": before.get(problem_of(sample)) if last is not first else None,
            "before_step": first["step"],
            "after": sample,
            "after_step": last["step"],
        }
        for sample in last["samples"]
    ]


def token_rows(stage: Stage) -> list[dict[str, Any]]:
    """A few groups of the last step, each response as tokens with their log-probability and version."""
    if not stage.rollouts:
        return []
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in stage.rollouts[max(stage.rollouts)]:
        groups.setdefault(row["group_id"], []).append(row)
    shown = [group[:ROWS_PER_GROUP] for group in list(groups.values())[:GROUPS_SHOWN]]
    return [
        {
            "prompt": rows[0]["prompt"],
            "answer": json.loads(rows[0]["columns"]).get("answer"),
            "of": len(groups[rows[0]["group_id"]]),
            "rows": [row | {"tokens": _tokens(row, stage.token_text), "components": _components(row)} for row in rows],
        }
        for rows in shown
    ]


def _components(row: dict[str, Any]) -> dict[str, float | None]:
    return {name.removeprefix("reward/"): value for name, value in row.items() if name.startswith("reward/")}


def _tokens(row: dict[str, Any], text: Callable[[int], str]) -> list[dict[str, Any]]:
    """Text, what hovering says, and how dark: a token the policy found unlikely is darker."""
    versions = [_version(row["versions"], i) for i in range(len(row["response_tokens"]))]
    parts = zip(row["response_tokens"], row["behaviour_logprobs"], row["response_mask"], versions, strict=True)
    return [_token(text(token), token, logprob, mask, version) for token, logprob, mask, version in parts]


def _token(text: str, token: int, logprob: float, mask: int, version: int | None) -> dict[str, Any]:
    if not mask:
        return {"text": text, "tip": f"token {token}\nfrom the environment", "shade": 0.0, "own": False}
    tip = f"token {token}\nlog-probability {logprob:.3f} (p = {math.exp(logprob):.3g})\nweights version {version}"
    return {"text": text, "tip": tip, "shade": round(min(-logprob / DARKEST_NATS, 1.0), 2), "own": True}


def _version(spans: list[dict[str, int]], index: int) -> int | None:
    return next((span["version"] for span in reversed(spans) if span["first_token"] <= index), None)
