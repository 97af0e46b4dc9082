"""A model that only answers, whole on this rank or split over the ranks of its role."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from rlpipe.training.distributed import Rank, device_of, join
from rlpipe.training.sharding import Sharding, deepspeed_config, loaded, size

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Frozen:
    """One rank of a frozen model. Whole (stage 0), ranks do not know of each other; split (stage 3), every rank must
    compute as often as the others."""

    def __init__(
        self,
        load: "Callable[[], PreTrainedModel]",
        dtype: torch.dtype,
        sharding: Sharding,
        rank: Rank,
        timeout_seconds: float,
    ) -> None:
        split = sharding.zero_stage == 3
        self.device = join(rank, timeout_seconds) if split else device_of(rank)
        model = loaded(load, sharding, dtype).eval().requires_grad_(False)
        self.config = model.config
        self._model = _split(model, dtype, sharding) if split else model
        self._host = list(map(_pinned, model.parameters())) if sharding.offload_param and not split else None
        if not split:
            _move(model, self.device, with_parameters=self._host is None)

    @contextmanager
    def answering(self) -> Iterator[torch.nn.Module]:
        """The model, its weights where they can compute within the block. What lies on the host is never written, so
        that leaving copies nothing."""
        parameters = [] if self._host is None else list(zip(self._model.parameters(), self._host, strict=True))
        for parameter, host in parameters:
            parameter.data = host.to(self.device, non_blocking=True)
        try:
            yield self._model
        finally:
            for parameter, host in parameters:
                parameter.data = host


def _split(model: torch.nn.Module, dtype: torch.dtype, sharding: Sharding) -> torch.nn.Module:
    import deepspeed

    parameters = sum(size(p).numel() for p in model.parameters())
    config = deepspeed_config(dtype, sharding, 0.0, parameters, torch.cuda.is_available())
    return deepspeed.initialize(model=model, config=config, dist_init_required=False)[0]


def _pinned(parameter: torch.nn.Parameter) -> torch.Tensor:
    """In page-locked memory where there is a GPU, which it copies from several times faster."""
    return parameter.data.pin_memory() if torch.cuda.is_available() else parameter.data


def _move(model: torch.nn.Module, device: torch.device, with_parameters: bool) -> None:
    if with_parameters:
        model.to(device)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
