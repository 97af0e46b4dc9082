"""Ray's token: where it comes from, and whether a cluster takes it."""

import logging
import os

from rlpipe.runtime.roles import NoCluster

SOURCES = (
    "Ray takes the token from RAY_AUTH_TOKEN, else from the file that RAY_AUTH_TOKEN_PATH names, else from "
    "~/.ray/auth_token; on the head node `ray get-auth-token` prints it"
)
ANSWER_SECONDS = 30.0
"""A head that is just being started may take that long."""


class NotAdmitted(RuntimeError):
    """The cluster does not take our token, or there is none."""


def use() -> bool:
    """As `ray.init` without an address: where there is a token, it is sent from here on, unless RAY_AUTH_MODE says
    otherwise. Returns whether one is."""
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available

    # It warns of what is wanted here, and advises what would shut us out.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    return maybe_enable_token_auth_if_token_available(warn_if_disabled=False)


def require_admission(address: str) -> None:
    """Raises `NotAdmitted`, and `NoCluster` for what is no head. See `_require_admission`."""
    from ray.exceptions import AuthenticationError

    try:
        _require_admission(address)
    except AuthenticationError as error:  # RAY_AUTH_MODE=token and no token, or a file that cannot be read
        raise NotAdmitted(f"no token can be sent to the cluster at {address}: {error}. {SOURCES}") from error


def _require_admission(address: str) -> None:
    """Of the cluster whose head is at HOST:PORT. Raises `NotAdmitted`, at once, where `ray.init` tries for two minutes.

    `ray.init` sends a token to a cluster that it found by itself, and to a named one only with RAY_AUTH_MODE=token;
    `ray start` asks for one as soon as its machine has one. So the cluster is asked without it, and with it if it wants
    one. It is not sent unasked: a cluster without authentication would answer this process without a token.
    """
    if not _is_refused(address):
        return
    if not use():
        mode = os.environ.get("RAY_AUTH_MODE")
        why = f" with RAY_AUTH_MODE={mode}" if mode else ""
        raise NotAdmitted(f"the cluster at {address} asks for a token, and none is sent{why}. {SOURCES}")
    if _is_refused(address):
        raise NotAdmitted(f"the cluster at {address} does not take the token that was sent. {SOURCES}")


def _is_refused(address: str) -> bool:
    """By what is set now: with a token, or without."""
    import grpc
    from ray._private.gcs_utils import create_gcs_channel
    from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
    from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

    with create_gcs_channel(address) as channel:
        ask = NodeInfoGcsServiceStub(channel).CheckAlive
        try:
            ask(CheckAliveRequest(), timeout=ANSWER_SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
                raise NoCluster(
                    f"What answers at RAY_ADDRESS={address} is no head of Ray ({error.code().name}): give the port of "
                    "`ray start --head` (6379)"
                ) from error
            return True
    return False
