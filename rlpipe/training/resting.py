"""Tensors that give their memory on the device back for a while."""

import gc
from collections.abc import Iterable, Iterator

import torch


class Resting:
    """Their contents lie in host memory from the construction to `end`.

    The storages are emptied and filled again, not replaced: whoever else holds a view of one, as DeepSpeed does, finds
    it valid afterwards. Until then nobody may read them.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        # Left alone: what rests already, and files in memory, which take no room of their own.
        every = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors}
        storages = {key: storage for key, storage in every.items() if storage.nbytes() and storage.resizable()}
        self._away = [(storage, _host_copy(storage)) for storage in storages.values()]
        for storage, _ in self._away:
            storage.resize_(0)

    def end(self) -> None:
        """Everything is where it was."""
        for storage, host in self._away:
            storage.resize_(host.nbytes())
            storage.copy_(host)
        self._away = []


def tensors_in(holder: object, depth: int = 4) -> Iterator[torch.Tensor]:
    """The tensors in an object's attributes, and in lists, tuples and dictionaries there; objects below it are passed
    over."""
    inside = holder if isinstance(holder, list | tuple | dict) else getattr(holder, "__dict__", {})
    for value in inside.values() if isinstance(inside, dict) else inside:
        if isinstance(value, torch.Tensor):
            yield value
        elif depth and isinstance(value, list | tuple | dict):
            yield from tensors_in(value, depth - 1)


def give_to_other_processes() -> None:
    """Memory that is free in this process's allocator goes back to the GPU."""
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()


def _host_copy(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """In page-locked memory where there is a GPU, which it copies from several times faster."""
    host = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=storage.is_cuda).untyped_storage()
    host.copy_(storage)
    return host
