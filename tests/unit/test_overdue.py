"""What the error of a missed deadline adds must never take its place: it neither raises nor hangs."""

import time

import pytest

from rlpipe.runtime import ray_overdue


def test_the_calls_of_a_process_on_one_line():
    assert ray_overdue.queue([]) == "No call of its process is unfinished."
    assert ray_overdue.queue(["Policy.update"]) == "Its process is at Policy.update, and none waits behind it."
    said = "Its process is at Policy.update; behind it wait 2: Policy.export, Policy.probe."
    assert ray_overdue.queue(["Policy.update", "Policy.export", "Policy.probe"]) == said


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(ray_overdue, "_WAIT_SECONDS", 0.1)


def test_a_cluster_that_cannot_be_asked_is_said_to_be_so(impatient, monkeypatch):
    def gone():
        raise ConnectionError("no head")

    monkeypatch.setattr(ray_overdue, "_cluster", gone)
    assert ray_overdue.cluster() == "What the cluster has not given cannot be found out (ConnectionError: no head)."


def test_a_cluster_that_does_not_answer_is_not_waited_for(impatient, monkeypatch):
    monkeypatch.setattr(ray_overdue, "_cluster", lambda: time.sleep(2))
    assert ray_overdue.cluster() == "The cluster's head did not answer within 0.1 s."
