"""A policy that counts what it holds."""

from collections.abc import Iterable

import torch

from rlpipe.training.policy import Policy


class CountedPolicy(Policy):
    """One rank."""

    def held(self) -> dict[str, int]:
        """Bytes between two steps, by part; memory that two parts share counts for the first."""
        zero, model = self._engine.module.optimizer, self._engine.model
        buckets = [bucket.buffer for bucket in getattr(zero, "ipg_buckets", {}).values()]
        parts = {
            "weights": [t for p in model.parameters() for t in (p.data, getattr(p, "ds_tensor", p.data))],
            "master weights": _first(
                zero, "single_partition_of_fp32_groups", "fp32_groups_flat_partition", "fp32_partitioned_groups_flat"
            ),
            "optimizer": [v for s in self._engine._adamw.state.values() for v in s.values() if getattr(v, "ndim", 0)],
            "gradients": [
                *getattr(zero, "fp32_groups_gradients_flat", []),
                *[buffer for buffer in [getattr(zero, "grad_partitions_flat_buffer", None)] if buffer is not None],
            ],
            "communication": [buffer for buffer in buckets if isinstance(buffer, torch.Tensor)],
        }
        seen: set[int] = set()
        return {name: _bytes(tensors, seen) for name, tensors in parts.items()}


def _first(zero: object, *names: str) -> list[torch.Tensor]:
    """DeepSpeed has a name for master weights in each of its optimizers; none in stage 0."""
    return next((getattr(zero, name) for name in names if hasattr(zero, name)), [])


def _bytes(tensors: Iterable[torch.Tensor], seen: set[int]) -> int:
    total = 0
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total
