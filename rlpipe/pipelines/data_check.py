"""Checks data and prints what is found."""

from typing import TYPE_CHECKING, get_args

from rich.console import Console

from rlpipe.data.check.inspect import Reading, inspect
from rlpipe.data.records import FIELDS, DataError
from rlpipe.observe.data_check import show
from rlpipe.recipe.data import RecordFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FINE, WRONG = 0, 1


def check(
    file: str,
    heldout: str | None,
    model: str | None,
    style: str,
    columns: str,
    max_length: int | None,
    near: bool,
    every: bool,
) -> int:
    """Returns the exit code. Raises `DataError` for what is wrong with the call or stops all reading."""
    if style not in get_args(RecordFormat):
        raise DataError(f"--format={style}: expected one of {', '.join(get_args(RecordFormat))}.")
    named = _columns(columns)
    reading = Reading(style, named, _tokenizer(model) if model else None, max_length, near)
    report = inspect(file, heldout, reading)
    show(Console(soft_wrap=True, highlight=False), report, every)
    return WRONG if report.count("error") else FINE


def _columns(text: str) -> dict[str, str]:
    """`prompt=question,completion=answer` as standard name -> the file's own."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    known = dict.fromkeys(name for names in FIELDS.values() for name in names)
    for name, _, own in pairs:
        if name not in known or not own:
            raise DataError(f"--columns {text}: expected NAME=COLUMN,... with NAME one of {', '.join(known)}.")
    return {name: own for name, _, own in pairs}


def _tokenizer(path: str) -> "PreTrainedTokenizerBase":
    from rlpipe.models.load import ModelError, load_tokenizer
    from rlpipe.recipe.model import PretrainedModel

    try:
        return load_tokenizer(PretrainedModel(path=path), path)
    except ModelError as error:
        raise DataError(str(error).replace("model.path", "--model")) from None
