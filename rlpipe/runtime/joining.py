"""Joining a Ray cluster, or starting Ray on this machine; where neither works, words that say what to do."""

import os
import socket
import time

import ray
from ray.exceptions import AuthenticationError

from rlpipe.runtime.ray_token import SOURCES, NotAdmitted, require_admission
from rlpipe.runtime.reservation import OWN_MACHINE
from rlpipe.runtime.roles import AddressWrong, NoCluster, OtherVersions

ADDRESS = "RAY_ADDRESS"
ACTOR_LOGS = "RLPIPE_ACTOR_LOGS"
"""Shows the raw output of role processes, which says much and seldom what matters."""
ALONE = f"`env -u {ADDRESS} rlpipe …` starts Ray on this machine instead"
CLIENT = "ray://"
"""Begins the address of a Ray Client server, through which rlpipe has not been tried."""
PATIENCE = "RLPIPE_HEAD_SECONDS"
_PATIENCE_SECONDS = 10.0
"""For a head that is about to come up, where PATIENCE does not say another."""
_CALL_SECONDS = 5.0
_LONGEST = 600
"""Characters of what Ray says."""


def join() -> None:
    """Connect this process to the cluster that RAY_ADDRESS names, or start Ray on this machine. Raises `NoCluster`,
    `OtherVersions`, `NotAdmitted`, and `AddressWrong` for what can be no cluster's address."""
    address = os.environ.get(ADDRESS) or "local"
    if address not in ("local", "auto"):
        _require_answer(address)
        if not address.startswith(CLIENT):  # which has no head's port to ask
            require_admission(address)
    local = {"include_dashboard": False, "resources": {OWN_MACHINE: 1}} if address == "local" else {}
    try:
        ray.init(address=address, log_to_driver=ACTOR_LOGS in os.environ, logging_level="error", **local)
    except AuthenticationError as error:
        raise NotAdmitted(f"The cluster at {ADDRESS}={address} cannot be joined: {error}. {SOURCES}") from error
    except Exception as error:  # bare ones, among others
        kind = OtherVersions if "Version mismatch" in str(error) else NoCluster
        raise kind(_told(address, error)) from error


def _require_answer(address: str) -> None:
    """Ray itself would wait for minutes for a head that is not there, and say nothing of it."""
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if "://" in host or not host or not port.isdecimal():
        raise AddressWrong(
            f"{ADDRESS}={address} is no address of a cluster's head: HOST:PORT, with the port of `ray start --head` "
            f"(6379), or auto for the one on this machine. A dashboard's address is for `rlpipe submit --address`. "
            f"{ALONE}"
        )
    until = time.monotonic() + float(os.environ.get(PATIENCE, _PATIENCE_SECONDS))
    while why := _unanswered(host.strip("[]"), int(port)):
        if time.monotonic() > until:
            raise NoCluster(f"Nothing answers at {ADDRESS}={address} ({why}): is the cluster up? {ALONE}")
        time.sleep(0.5)


def _unanswered(host: str, port: int) -> str:
    try:
        socket.create_connection((host, port), timeout=_CALL_SECONDS).close()
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


def _told(address: str, error: Exception) -> str:
    why = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
    if address == "local":
        return (
            f"Ray did not start on this machine: {why} A machine that is busy may just need a second try: "
            "`rlpipe resume`. `rlpipe doctor` looks at memory, /dev/shm and disk; `--debug` does without Ray; what Ray "
            "itself said lies in session_latest/logs of RAY_TMPDIR (/tmp/ray)."
        )
    return f"The cluster at {ADDRESS}={address} cannot be joined: {why} {ALONE}"
