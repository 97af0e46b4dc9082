"""Training and held-out records of a recipe's `data` section, checked row by row."""

import logging
from dataclasses import dataclass

from rlpipe.data.arithmetic import preferences, problems
from rlpipe.data.files import read
from rlpipe.data.guess import games
from rlpipe.data.records import DataError, Format, Record, check, labelled_format, preference_format, sft_format
from rlpipe.recipe.data import ArithmeticData, Data, GuessNumberData, MixtureData, PreferenceData, RecordsData, SftData

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Records:
    """What a task learns from, what it is measured on, and how both become text."""

    train: list[Record]
    heldout: list[Record]
    format: Format
    chat: bool
    system: str | None


@dataclass(frozen=True, slots=True)
class Source:
    """Records of a mixture, and their share of it in any unit."""

    name: str
    weight: float
    records: Records


def load_records(data: Data, only_prompts: bool) -> Records:
    """Read and check all records. `only_prompts` is online RL: a prompt suffices, other columns feed the rewards."""
    if isinstance(data, ArithmeticData | GuessNumberData):
        train, heldout = problems(data) if isinstance(data, ArithmeticData) else games(data)
        return Records(train, heldout, Format.PROMPT if only_prompts else Format.PROMPT_COMPLETION, True, None)
    train, heldout = _split(data)
    expected = Format.PROMPT if only_prompts else sft_format(train[0], heldout[0])
    return _checked(train, heldout, expected, data)


def load_sources(data: SftData) -> list[Source]:
    """What SFT learns from; data that is no mixture is the only source."""
    if not isinstance(data, MixtureData):
        return [Source("", 1.0, load_records(data, only_prompts=False))]
    return [Source(name, data.weights[name], load_records(part, False)) for name, part in data.sources.items()]


def load_preferences(data: PreferenceData) -> Records:
    """Read and check pairs of responses, of which the first is the better one."""
    if isinstance(data, ArithmeticData):
        return Records(*preferences(data), Format.PREFERENCE, True, None)
    train, heldout = _split(data)
    return _checked(train, heldout, preference_format(train[0], heldout[0]), data)


def load_judged(data: PreferenceData) -> Records:
    """Read and check responses that are good or bad, or pairs of one of each."""
    if isinstance(data, ArithmeticData):
        return load_preferences(data)
    train, heldout = _split(data)
    return _checked(train, heldout, labelled_format(train[0], heldout[0]), data)


def _checked(train: list[Record], heldout: list[Record], expected: Format, data: RecordsData) -> Records:
    for record in (*heldout, *train):
        check(record, expected, data.chat)
    _warn_of_overlap(train, heldout)
    return Records(train, heldout, expected, data.chat, data.system)


def _split(data: RecordsData) -> tuple[list[Record], list[Record]]:
    """(training, held-out) records, at least one of each."""
    train, heldout = _parts(data)
    if not train or not heldout:
        which = "data.path" if not train else "data.heldout"
        raise DataError(f"{which}: no records found.")
    return train, heldout


def _parts(data: RecordsData) -> tuple[list[Record], list[Record]]:
    train = _renamed(read(data.path, data.config, data.split, "data.path", data.data_dir), data)
    kept = data.heldout
    if kept.path is None and kept.split is None:
        if kept.count >= len(train):
            raise DataError(
                f"data.path: {data.path} has {len(train)} records and data.heldout.count={kept.count} of them are held "
                "out, which leaves none to train on. Lower data.heldout.count, or give data.heldout.path."
            )
        return train[kept.count :], train[: kept.count]
    split = kept.split or data.split
    rows = read(kept.path or data.path, data.config, split, "data.heldout.path", data.data_dir)
    if rows and rows[0].origin == train[0].origin:
        raise DataError(
            f"data.heldout: {rows[0].origin} is also the first training record. A single file has no splits: give "
            "data.heldout.path, or leave data.heldout.split out to hold out the first data.heldout.count records."
        )
    return train, _renamed(rows[: kept.count], data)


def _renamed(records: list[Record], data: RecordsData) -> list[Record]:
    """The file's own column stays beside its standard name: a reward may ask for either."""
    if not data.columns or not records:
        return records
    missing = [own for own in data.columns.values() if all(own not in record.fields for record in records)]
    if missing:
        raise DataError(
            f"data.columns: no record of {data.path} has `{missing[0]}`; it has {sorted(records[0].fields)}."
        )
    return [
        Record(r.fields | {name: r.fields.get(own) for name, own in data.columns.items()}, r.origin) for r in records
    ]


def _warn_of_overlap(train: list[Record], heldout: list[Record]) -> None:
    def content(record: Record) -> str:
        names = ("prompt", "messages", "text", "chosen")
        return str(next((record.fields[name] for name in names if record.fields.get(name)), None))

    trained_on = {content(record) for record in train}
    shared = sum(content(record) in trained_on for record in heldout)
    if shared:
        logger.warning("%d of %d held-out records are also training records; they flatter.", shared, len(heldout))
