"""What is done beside the run."""

import threading

import pytest

from rlpipe.pipelines.online.beside import Beside


def fails():
    raise OSError("no space left on device")


def test_nobody_waits_for_what_is_started_until_the_next_one():
    beside, may_end, done = Beside(debug=False), threading.Event(), []
    beside.start(lambda: (may_end.wait(10), done.append("first")))
    assert done == []
    threading.Timer(0.05, may_end.set).start()
    beside.start(lambda: done.append("second"))
    assert done[0] == "first"
    beside.finish()
    assert done == ["first", "second"]


def test_what_it_failed_of_is_raised_once_where_it_is_waited_for():
    beside = Beside(debug=False)
    beside.start(fails)
    with pytest.raises(OSError, match="no space"):
        beside.start(lambda: None)
    beside.finish()


def test_in_one_process_it_is_done_at_once():
    with pytest.raises(OSError, match="no space"):
        Beside(debug=True).start(fails)
    here = []
    Beside(debug=True).start(lambda: here.append(threading.current_thread()))
    assert here == [threading.main_thread()]
