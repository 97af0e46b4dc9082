"""A network namespace on this machine, and a link to it that can be cut: a node there is reached as one far away is."""

import contextlib
import subprocess
from collections.abc import Iterator

import pytest

HERE, THERE, NAMESPACE, LINK = "10.213.77.1", "10.213.77.2", "rlpipe-cut", "rlpipe-cut0"


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def far_network() -> Iterator[None]:
    """The namespace. Skips the test where that takes rights it does not have."""
    try:
        ip("netns", "add", NAMESPACE)
    except OSError as error:
        pytest.skip(f"needs root, or CAP_NET_ADMIN, and iproute2, for a network namespace: {error}")
    try:
        ip("link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", NAMESPACE)
        ip("addr", "add", f"{HERE}/24", "dev", LINK)
        ip("link", "set", LINK, "up")
        for words in (
            ("addr", "add", f"{THERE}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
        ):
            ip("-n", NAMESPACE, *words)
        yield
    finally:
        ip("netns", "del", NAMESPACE)
