"""What is said where there is no Ray to run on, and that it is said soon."""

import socket
import threading
import time

import pytest

from rlpipe.pipelines.run import TOLD, is_mendable
from rlpipe.runtime import joining
from rlpipe.runtime.local import free_port
from rlpipe.runtime.roles import AddressWrong, NoCluster


@pytest.fixture
def begun(monkeypatch):
    """What Ray was asked for, in place of asking it: first whether it wants a token, where it has a head's port."""
    asked = []
    monkeypatch.setattr(joining.ray, "init", lambda **options: asked.append(options))
    monkeypatch.setattr(joining, "require_admission", asked.append)
    monkeypatch.delenv(joining.ACTOR_LOGS, raising=False)
    return asked


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_head_that_is_not_there_is_told_with_its_address_before_ray_waits_for_it(monkeypatch, begun, scheme):
    monkeypatch.setattr(joining, "_PATIENCE_SECONDS", 0.0)
    monkeypatch.setenv("RAY_ADDRESS", address := f"{scheme}127.0.0.1:{free_port()}")
    with pytest.raises(NoCluster) as told:
        joining.join()
    assert str(told.value) == (
        f"Nothing answers at RAY_ADDRESS={address} (Connection refused): is the cluster up? "
        "`env -u RAY_ADDRESS rlpipe …` starts Ray on this machine instead"
    )
    assert begun == []
    assert isinstance(told.value, TOLD) and is_mendable(told.value)


def test_a_head_that_comes_up_a_little_later_is_joined(monkeypatch, begun):
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{(port := free_port())}")

    def come_up():
        time.sleep(0.3)
        with socket.create_server(("127.0.0.1", port)) as server:
            server.accept()

    head = threading.Thread(target=come_up)
    head.start()
    joining.join()
    head.join()
    joined = {"address": f"127.0.0.1:{port}", "log_to_driver": False, "logging_level": "error"}
    assert begun == [f"127.0.0.1:{port}", joined]


@pytest.mark.parametrize("address", ["http://head:8265", "head", "head:port", ":6379"])
def test_what_can_be_no_head_is_a_mistake_that_is_not_tried_again(monkeypatch, begun, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(AddressWrong, match=r"HOST:PORT.*\(6379\).*rlpipe submit --address") as told:
        joining.join()
    assert f"RAY_ADDRESS={address} " in str(told.value) and begun == []
    assert isinstance(told.value, TOLD) and not is_mendable(told.value)


@pytest.mark.parametrize("address", [None, ""])
def test_without_an_address_ray_is_started_here_with_its_logs_shown_on_demand(monkeypatch, begun, address):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    joining.join()
    monkeypatch.setenv("RLPIPE_ACTOR_LOGS", "1")
    joining.join()
    assert [(each["address"], each["include_dashboard"]) for each in begun] == [("local", False)] * 2
    assert [each["log_to_driver"] for each in begun] == [False, True]


def test_ray_that_does_not_start_is_told_in_one_paragraph(monkeypatch):
    def fails(**_):
        raise Exception("The current node timed out during startup. This could happen because of much.\nMore of it.")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(joining.ray, "init", fails)
    with pytest.raises(NoCluster) as told:
        joining.join()
    assert str(told.value).startswith("Ray did not start on this machine: The current node timed out during startup.")
    assert "\n" not in str(told.value) and "`--debug` does without Ray" in str(told.value)
