"""What tests of several folders share: pytest puts the folder of this file on the import path, where helpers lie."""

import signal

import pytest
import shrink
import warm

# A shell that runs the tests in the background ignores Ctrl-C for them, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def warm_rlpipe():
    """rlpipe and Python, with their imports done once."""
    return warm.shared()


@pytest.fixture(scope="session")
def local(tmp_path_factory):
    """A tiny model and a few records on disk, instead of the hub."""
    folder = tmp_path_factory.mktemp("local")
    shrink.make_local(folder)
    return folder
