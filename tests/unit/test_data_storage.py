"""Objects of a run directory: whole or not there, on a disk and in an object store."""

import os
import threading

import pytest

from rlpipe.data.storage import Storage


@pytest.fixture(params=["disk", "objects"])
def storage(request, tmp_path):
    return Storage(tmp_path / "run" if request.param == "disk" else f"memory://{tmp_path}")


def test_an_object_is_created_once(storage):
    storage.create("a/b", b"first")
    with pytest.raises(FileExistsError):
        storage.create("a/b", b"second")
    assert storage.read("a/b") == b"first"
    assert storage.names("a/.*") == [], "nothing is left beside it"


def test_what_is_deleted_can_be_created_again(storage):
    storage.create("a", b"first")
    storage.delete("a")
    storage.delete("a")
    assert not storage.exists("a")
    storage.create("a", b"second")
    assert storage.read("a") == b"second"


def test_a_part_of_an_object_can_be_read(storage):
    storage.write("a", b"0123456789")
    with storage.open("a") as file:
        file.seek(4)
        assert file.read(3) == b"456"
    with pytest.raises(FileNotFoundError):
        storage.open("b")


def test_of_many_that_create_one_object_one_succeeds(tmp_path):
    storage, succeeded = Storage(tmp_path), []

    def attempt(number):
        try:
            storage.create("a", str(number).encode())
            succeeded.append(number)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    [winner] = succeeded
    assert storage.read("a") == str(winner).encode()


def test_a_write_that_fails_leaves_what_was_there_and_nothing_beside_it(tmp_path, monkeypatch):
    storage = Storage(tmp_path)
    storage.write("a", b"before")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write("a", b"after")
    assert storage.read("a") == b"before"
    assert os.listdir(tmp_path) == ["a"]
