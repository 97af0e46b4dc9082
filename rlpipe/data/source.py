"""Training and held-out records of a recipe's `data` section, checked row by row."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from rlpipe.data.arithmetic import preferences, problems
from rlpipe.data.conversions import converted, recognised
from rlpipe.data.files import read
from rlpipe.data.guess import games
from rlpipe.data.judge_questions import questions
from rlpipe.data.judge_template import load
from rlpipe.data.labelled import is_labelled, paired
from rlpipe.data.records import (
    DataError,
    Format,
    Record,
    Records,
    check,
    labelled_format,
    preference_format,
    sft_format,
)
from rlpipe.recipe.data import (
    ArithmeticData,
    ComparisonsData,
    Data,
    GuessNumberData,
    MixtureData,
    PreferenceData,
    RecordsData,
    SftData,
)

logger = logging.getLogger(__name__)

Prepare = Callable[[list[Record], RecordsData], list[Record]]
"""What is made of records before some are held out."""


@dataclass(frozen=True, slots=True)
class Source:
    """Records of a mixture, and their share of it in any unit."""

    name: str
    weight: float
    records: Records


def load_records(data: Data | ComparisonsData, only_prompts: bool) -> Records:
    """Read and check all records. `only_prompts` is online RL: a prompt suffices, other columns feed the rewards."""
    if isinstance(data, ComparisonsData):
        return questions(load_preferences(data.pairs), load(data.template))
    if isinstance(data, ArithmeticData | GuessNumberData):
        train, heldout = problems(data) if isinstance(data, ArithmeticData) else games(data)
        return Records(train, heldout, Format.PROMPT if only_prompts else Format.PROMPT_COMPLETION, True, None, True)
    train, heldout = _split(data)
    expected = Format.PROMPT if only_prompts else sft_format(train[0], heldout[0])
    _warn_of_overlap(train, heldout)
    return _checked(train, heldout, expected, data)


def load_all(data: RecordsData) -> Records:
    """Read and check the prompts of all records of data.path, as held-out ones; none are to be trained on."""
    rows = _standard(read(data.path, data.config, data.split, "data.path", data.data_dir), data)
    if not rows:
        raise DataError("data.path: no records found.")
    return _checked([], rows, Format.PROMPT, data)


def load_sources(data: SftData) -> list[Source]:
    """What SFT learns from; data that is no mixture is the only source."""
    if not isinstance(data, MixtureData):
        return [Source("", 1.0, load_records(data, only_prompts=False))]
    return [Source(name, data.weights[name], load_records(part, False)) for name, part in data.sources.items()]


def load_preferences(data: PreferenceData) -> Records:
    """Read and check pairs of responses, of which the first is the better one; labelled ones are paired here.

    No prompt is on both sides: a model that has seen which answer is right does not show that it can tell."""
    if isinstance(data, ArithmeticData):
        return Records(*preferences(data), Format.PREFERENCE, True, None, True)
    train, heldout = _split(data, _as_pairs)
    records = _checked(train, heldout, preference_format(train[0], heldout[0]), data)
    if records.format is Format.PREFERENCE:
        return replace(records, train=_without_prompts_of(heldout, train))
    _warn_of_overlap(train, heldout)
    return records


def _as_pairs(records: list[Record], data: RecordsData) -> list[Record]:
    if not records or not is_labelled(records[0]):
        return records
    return paired(_usable(records, partial(_fitting, Format.LABELLED, data.chat), data), data.chat)


def _without_prompts_of(heldout: list[Record], train: list[Record]) -> list[Record]:
    asked = {str(record.fields.get("prompt")) for record in heldout}
    apart = [record for record in train if str(record.fields.get("prompt")) not in asked]
    if len(apart) < len(train):
        count = len(train) - len(apart)
        logger.warning("%d training pairs answer a prompt that is held out; they are left out.", count)
    if not apart:
        raise DataError("data.heldout: every training pair answers a prompt that is held out. Hold out other records.")
    return apart


def load_judged(data: PreferenceData) -> Records:
    """Read and check responses that are good or bad, or pairs of one of each."""
    if isinstance(data, ArithmeticData):
        return load_preferences(data)
    train, heldout = _split(data)
    records = _checked(train, heldout, labelled_format(train[0], heldout[0]), data)
    if records.format is Format.WHOLE_PREFERENCE:
        return records
    return replace(records, train=_without_prompts_of(heldout, train))


def _checked(train: list[Record], heldout: list[Record], expected: Format, data: RecordsData) -> Records:
    heldout, train = (_usable(part, partial(_fitting, expected, data.chat), data) for part in (heldout, train))
    return Records(train, heldout, expected, data.chat, data.system, data.add_eos)


def _fitting(expected: Format, chat: bool, record: Record) -> Record:
    check(record, expected, chat)
    return record


def _usable(records: list[Record], use: Callable[[Record], Record], data: RecordsData) -> list[Record]:
    """What `use` makes of each. A record that it refuses is an error, or left out where the recipe says so."""
    found, refused = [], []
    for record in records:
        try:
            found.append(use(record))
        except DataError as error:
            if not data.skip_unusable:
                raise
            refused.append(str(error))
    if refused and not found:
        raise DataError(f"None of {len(records)} records can be used. {refused[0]}")
    if refused:
        logger.warning("%d of %d records cannot be used and are left out (data.skip_unusable). The first: %s",
                       len(refused), len(records), refused[0])  # fmt: skip
    return found


def _as_they_are(records: list[Record], data: RecordsData) -> list[Record]:
    return records


def _split(data: RecordsData, prepare: Prepare = _as_they_are) -> tuple[list[Record], list[Record]]:
    """(training, held-out) records, at least one of each."""
    train, heldout = _parts(data, prepare)
    if not train or not heldout:
        which = "data.path" if not train else "data.heldout"
        raise DataError(f"{which}: no records found.")
    return train, heldout


def _parts(data: RecordsData, prepare: Prepare) -> tuple[list[Record], list[Record]]:
    rows = _standard(read(data.path, data.config, data.split, "data.path", data.data_dir), data)
    kept = data.heldout
    if kept.path is None and kept.split is None:
        return _first_held_out(prepare(rows, data), data)
    split = kept.split or data.split
    others = read(kept.path or data.path, data.config, split, "data.heldout.path", data.data_dir)
    if others and rows and others[0].origin == rows[0].origin:
        raise DataError(
            f"data.heldout: {rows[0].origin} is also the first training record. A single file has no splits: give "
            "data.heldout.path, or leave data.heldout.split out to hold out the first data.heldout.count records."
        )
    return prepare(rows, data), prepare(_standard(others, data), data)[: kept.count]


def _first_held_out(records: list[Record], data: RecordsData) -> tuple[list[Record], list[Record]]:
    count = data.heldout.count
    if count >= len(records):
        raise DataError(
            f"data.path: {data.path} has {len(records)} records and data.heldout.count={count} of them are held "
            "out, which leaves none to train on. Lower data.heldout.count, or give data.heldout.path."
        )
    return records[count:], records[:count]


def _standard(records: list[Record], data: RecordsData) -> list[Record]:
    """The records with TRL's fields."""
    found = renamed(records, data.columns)
    style = recognised(found, data.format)
    if style != data.format and style != "trl":
        logger.warning("%s has records in the format `%s` and is read so (data.format=%s).", data.path, style, style)
    return _usable(found, partial(converted, style=style, chat=data.chat), data)


def renamed(records: list[Record], columns: dict[str, str]) -> list[Record]:
    """The file's own column stays beside its standard name: a reward may ask for either."""
    if not columns or not records:
        return records
    missing = [own for own in columns.values() if all(own not in record.fields for record in records)]
    if missing:
        raise DataError(
            f"data.columns: no record of {records[0].file} has `{missing[0]}`; it has {sorted(records[0].fields)}."
        )
    return [Record(r.fields | {name: r.fields.get(own) for name, own in columns.items()}, r.origin) for r in records]


def _warn_of_overlap(train: list[Record], heldout: list[Record]) -> None:
    def content(record: Record) -> str:
        names = ("prompt", "messages", "text", "chosen")
        return str(next((record.fields[name] for name in names if record.fields.get(name)), None))

    trained_on = {content(record) for record in train}
    shared = sum(content(record) in trained_on for record in heldout)
    if shared:
        logger.warning("%d of %d held-out records are also training records; they flatter.", shared, len(heldout))
