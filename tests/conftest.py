"""What tests of several folders share: pytest puts the folder of this file on the import path, where helpers lie."""

import gc
import signal

import pytest
import shrink
import warm

LONGEST = (
    "test_commands.py", "test_real_data.py", "test_offline_adapters.py", "test_recipes.py", "test_sft.py",
    "test_model_reward.py", "test_preference.py", "test_vllm_serve.py", "test_offline_virtual_tokens.py",
    "test_offline_quantized.py", "test_online_roles.py", "test_online_resume.py", "test_online.py", "test_adalora.py",
    "test_studies.py", "test_reward_model.py", "test_offline_resume.py", "test_online_lora.py", "test_submit.py",
    "test_object_store.py", "test_giving_way.py",
)  # fmt: skip
"""Files that take minutes. They go first: two processes share out files, and the last ones should be short."""

# A shell that runs the tests in the background ignores Ctrl-C for them, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    items.sort(key=turn)


def pytest_collection_finish():
    gc.freeze()  # thousands of tests and their modules stay: nothing in them is to be looked for


def turn(item):
    """The longest files, others with real engines, unit tests; each in the order in which pytest found them."""
    rest = len(LONGEST) + (item.path.parent.name == "unit")
    return LONGEST.index(item.path.name) if item.path.name in LONGEST else rest


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
