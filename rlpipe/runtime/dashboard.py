"""What a Ray cluster has, as its dashboard's HTTP API says it: nothing of Ray is imported, no job is started."""

import json
import os
from collections.abc import Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from rlpipe.plan.hardware import Cluster, HardwareError, Node

SECONDS = 10.0
"""How long each answer may take."""
_MOST_NODES = 10_000


def machines(address: str) -> Cluster:
    """The nodes that are alive behind the dashboard at `address`. Raises `HardwareError` where it does not answer."""
    alive = _asked(
        address,
        f"/api/v0/nodes?detail=1&limit={_MOST_NODES}&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE",
    )
    try:
        states = alive["data"]["result"]["result"]
        summary = {one["raylet"]["nodeId"]: one for one in _asked(address, "/nodes?view=summary")["data"]["summary"]}
    except (KeyError, TypeError):
        raise HardwareError(
            f"--cluster {address}: what answers there is no Ray dashboard; give its address, http://HEAD:8265"
        ) from None
    nodes = tuple(_nodes(states, summary))
    if not nodes:
        raise HardwareError(f"--cluster {address}: no node is alive there")
    return Cluster(nodes, f"{len(nodes)} node{'s' * (len(nodes) > 1)} of {address}")


def _nodes(states: list[dict[str, Any]], summary: Mapping[str, dict[str, Any]]) -> Iterator[Node]:
    for state in states:
        has, told = state["resources_total"], summary.get(state["node_id"], {})
        each = [gpu["memoryTotal"] for gpu in told.get("gpus") or ()]
        count = int(has.get("GPU", 0))
        if count and not each:
            raise HardwareError(
                f"node {state['node_ip']} has {count} GPUs and does not say how large they are; describe the cluster "
                "with --gpus 8x80GB --nodes 4"
            )
        memory = int(told["mem"][0]) if told.get("mem") else int(has.get("memory", 0)) or None
        yield Node(state["node_ip"], count, min(each, default=0) * 2**20, memory, has.get("CPU", 0.0))


def _asked(address: str, path: str) -> dict[str, Any]:
    token = _token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urlopen(Request(address.rstrip("/") + path, headers=headers), timeout=SECONDS) as answer:
            return json.loads(answer.read())
    except HTTPError as error:
        if error.code in (401, 403):
            raise HardwareError(
                f"--cluster {address} refuses {'this token' if token else 'to answer without a token'}: put the "
                "cluster's into RAY_AUTH_TOKEN, or its file's path into RAY_AUTH_TOKEN_PATH"
            ) from None
        raise HardwareError(
            f"--cluster {address} answers {error.code} to {path.split('?')[0]}; is that its dashboard?"
        ) from None
    except (OSError, HTTPException, ValueError) as error:  # URLError and timeouts are OSErrors
        reason = getattr(error, "reason", error)
        raise HardwareError(
            f"--cluster {address} does not answer ({reason}): give the dashboard's address, http://HEAD:8265, or "
            "describe the cluster with --gpus and --nodes"
        ) from None


def _token() -> str:
    """Where Ray looks for it."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""
