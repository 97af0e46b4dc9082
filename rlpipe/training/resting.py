"""Tensors that give their memory on the device back for a while."""

from collections.abc import Iterable

import torch


class Resting:
    """Their contents lie in host memory from the construction to `end`.

    The storages are emptied and filled again, not replaced: whoever else holds a view of one, as DeepSpeed does, finds
    it valid afterwards. Until then nobody may read them.
    """

    def __init__(self, tensors: Iterable[torch.Tensor]) -> None:
        storages = {t.untyped_storage()._cdata: t.untyped_storage() for t in tensors if t.numel()}
        self._away = [(storage, _host_copy(storage)) for storage in storages.values()]
        for storage, _ in self._away:
            storage.resize_(0)

    def end(self) -> None:
        """Everything is where it was."""
        for storage, host in self._away:
            storage.resize_(host.nbytes())
            storage.copy_(host)
        self._away = []


def _host_copy(storage: torch.UntypedStorage) -> torch.UntypedStorage:
    """In page-locked memory where there is a GPU, which it copies from several times faster."""
    host = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=storage.is_cuda).untyped_storage()
    host.copy_(storage)
    return host
