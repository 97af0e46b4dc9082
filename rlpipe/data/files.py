"""Rows of local files, folders and hub data sets, each with the place it stands at.

JSON lines and CSV are read here and not through `datasets`: a malformed line must be named, and a CSV value must stay
the text it is (`007` is not 7).
"""

import csv
import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from rlpipe.data.records import DataError, Record

_PLAIN = (".txt", ".md")
_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".parquet", *_PLAIN)


Row = Record | DataError
"""A row that could be read, or what is wrong with it."""


def read(path: str, config: str | None, split: str, key: str, data_dir: str | None = None) -> list[Record]:
    """All records of a file, or of `split` of a folder or hub data set, there in `data_dir`. `key` names the recipe
    line."""
    return list(_good(rows(path, config, split, key, data_dir)))


def _good(found: Iterable[Row]) -> Iterator[Record]:
    for row in found:
        if isinstance(row, DataError):
            raise row
        yield row


def rows(path: str, config: str | None, split: str, key: str, data_dir: str | None = None) -> Iterable[Row]:
    """The same, but a row that cannot be read does not end it. Raises `DataError` where there is no file at all."""
    local = Path(path).expanduser()
    if local.is_file():
        return _file(local)
    if local.is_dir():
        return _folder(local / (data_dir or "."), split, key)
    if path.startswith((".", "/", "~")) or _suffix(local):
        raise DataError(f"{key}: there is no file or folder {path} (looked from {Path.cwd()}).")
    return _hub(path, config, split, key, data_dir)


def _suffix(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")


def _folder(folder: Path, split: str, key: str) -> Iterable[Row]:
    if not folder.is_dir():
        raise DataError(f"data.data_dir: there is no folder {folder}.")
    names = (f"{split}.", f"{split}-", f"{split}_")
    files = [path for path in sorted(folder.iterdir()) if _suffix(path) and path.name.startswith(names)]
    if files:
        return [row for file in files for row in _file(file)]
    if split == "train" and (texts := _texts(folder)):
        return [_text(file) for file in texts]
    return _hub(str(folder), None, split, key)


def _texts(folder: Path) -> list[Path]:
    """All plain texts below the folder, in the order of their names; none if it has data of another kind."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and _suffix(path)]
    return files if all(_suffix(path) in _PLAIN for path in files) else []


def _file(path: Path) -> Iterator[Row]:
    suffix = _suffix(path)
    if not suffix:
        raise DataError(f"{path}: unknown kind of file; expected one of {', '.join(_SUFFIXES)} (also with .gz).")
    if suffix in _PLAIN:
        return iter([_text(path)])
    if suffix == ".parquet":
        return _parquet(path)
    return _csv(path) if suffix == ".csv" else _json(path)


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _json(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.lstrip().startswith(b"["):
                yield from _json_array(path)
                return
            if line.strip():
                yield _json_row(line, f"{path}, line {number}")


def _json_row(line: bytes, origin: str) -> Row:
    try:
        value = json.loads(line.strip())
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, column {error.colno}"
        return DataError(f"{origin}: not valid JSON ({reason}); each line must hold one JSON object.")
    except UnicodeDecodeError as error:
        return DataError(f"{origin}: not valid JSON ({error}); each line must hold one JSON object.")
    return _row(value, origin)


def _json_array(path: Path) -> Iterator[Row]:
    try:
        with _open(path) as file:
            values = json.load(file)
    except ValueError as error:
        yield DataError(f"{path}: not valid JSON ({error}).")
        return
    for number, value in enumerate(values, 1):
        yield _row(value, f"{path}, record {number}")


def _row(value: Any, origin: str) -> Row:
    if not isinstance(value, dict):
        return DataError(f"{origin}: expected a JSON object with fields, got {type(value).__name__}.")
    return Record(value, origin)


def _csv(path: Path) -> Iterator[Row]:
    with _open(path) as raw:
        text = (line.decode("utf-8-sig" if number == 0 else "utf-8") for number, line in enumerate(raw))
        table = csv.DictReader(text, strict=True)
        try:
            for row in table:
                yield _csv_row(row, f"{path}, line {table.line_num}")
        except (csv.Error, UnicodeDecodeError) as error:
            yield DataError(f"{path}, line {table.line_num + 1}: not valid CSV ({error}).")


def _csv_row(row: dict[Any, Any], origin: str) -> Row:
    if None in row:
        return DataError(
            f"{origin}: {len(row[None])} more values than the header has columns; quote values with commas."
        )
    return Record(row, origin)


def _text(path: Path) -> Row:
    """A whole file is one record: what stands in it belongs together."""
    try:
        with _open(path) as file:
            return Record({"text": file.read().decode("utf-8-sig")}, f"{path}, line 1")
    except UnicodeDecodeError as error:
        return DataError(f"{path}: not UTF-8 text ({error}).")


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches()
    except pyarrow.ArrowInvalid as error:
        yield DataError(f"{path}: not a Parquet file ({error}).")
        return
    values = (row for batch in batches for row in batch.to_pylist())
    for number, row in enumerate(values, 1):
        yield Record(row, f"{path}, row {number}")


def _hub(path: str, config: str | None, split: str, key: str, data_dir: str | None = None) -> list[Record]:
    import datasets  # seconds of import, needed for hub ids and unusual folders only

    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(path, config, data_dir=data_dir, split=split)
    except Exception as error:  # whatever `datasets`, the hub client or the network raises, the fix is the same
        raise DataError(
            f"{key}: cannot load split `{split}` of {path}"
            + (f" ({config})" if config else "")
            + f": {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}\n"
            f"If this is a hub id, check the name and the network; for local data give a file or folder: {key}=PATH. "
            "The split and configuration are data.split, data.heldout.split and data.config."
        ) from error
    return [Record(row, f"{path} {split}, row {number}") for number, row in enumerate(table, 1)]
