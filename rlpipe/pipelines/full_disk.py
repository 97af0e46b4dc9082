"""A run whose disk is full: what it says."""

import errno
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from rlpipe.data.remote import storage_of
from rlpipe.ledger.book import LedgerError
from rlpipe.ledger.standing import standing
from rlpipe.pipelines import checkpoints

_WORDS = ("No space left on device", "Disk quota exceeded")
"""As safetensors' writer, which raises errors of its own, puts it."""
_TORCH_WRITER = "inline_container.cc"
"""What torch's tells is where in itself it failed."""
_HARDLY_ANY_BYTES = 1 << 20


def told(error: BaseException, stages: Sequence[Path]) -> str:
    """What happened and what is safe, by stage; empty if `error` did not come of a full disk."""
    hardly_any = any(shutil.disk_usage(place).free < _HARDLY_ANY_BYTES for place in stages if place.is_dir())
    cause = next((each for each in _chain(error) if _is_full(each, hardly_any)), None)
    if cause is None:
        return ""
    where = getattr(cause, "filename", None) or f"a file of {stages[0]}"
    safe = [f"  {place}: {_safe(place)}" for place in stages if place.is_dir()]
    return "\n".join([
        f"The disk is full: {where} could not be written ({type(cause).__name__}: {cause}). Safe are:",
        *safe,
        "Make room and go on with `rlpipe resume`. (train.save_total_limit sets how many checkpoints are kept.)",
    ])  # fmt: skip


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_full(error: BaseException, hardly_any: bool) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    words = (*_WORDS, _TORCH_WRITER) if hardly_any else _WORDS
    return any(each in str(error) for each in words)


def _safe(place: Path) -> str:
    found = [f"the checkpoint of step {checkpoints.last_step(place)}"] if checkpoints.newest(place) else []
    try:
        ledger = standing(storage_of(place))
    except (OSError, LedgerError):  # said when the run goes on
        ledger = None
    if ledger is not None:
        found.append(f"all steps up to {ledger.step}, and the answers that were stored since")
    return " and ".join(found) or "nothing of it yet; it begins anew"
