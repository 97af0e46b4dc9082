"""What a judge is asked, as a YAML file:

    version: 1                    goes into the provenance of every label
    options: [A, B]               which of two responses is better, the first or the second; or of one response
    options: {"yes": 1, "no": 0}  what each answer is worth
    messages:
      - role: user
        content: |-
          … {prompt} … {first} … {second} …        or … {prompt} … {response} …

Besides those: {principle}, of a constitution; and {NAME} for any column of the data. What is put in is not looked at
for further marks.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rlpipe.data.records import DataError

SHIPPED = Path(__file__).parent / "judge_templates"
_MARK = re.compile(r"\{([A-Za-z_][\w]*)\}")
_COMPARED, _GRADED = {"first", "second"}, {"response"}


@dataclass(frozen=True)
class Template:
    """See above."""

    name: str
    """The file's, without its ending, and its version: `compare@1`."""
    messages: tuple[dict[str, str], ...]
    options: tuple[str, ...]
    values: tuple[float, ...]
    """What each option is worth; empty where two responses are compared."""

    @property
    def compares(self) -> bool:
        return not self.values

    @cached_property
    def marks(self) -> frozenset[str]:
        """The names that are to be filled in."""
        return frozenset(name for message in self.messages for name in _MARK.findall(message["content"]))

    def filled(self, values: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
        """The messages. Raises KeyError for a name without a value."""
        return tuple(
            {"role": m["role"], "content": _MARK.sub(lambda mark: str(values[mark[1]]), m["content"])}
            for m in self.messages
        )


def load(name: str) -> Template:
    """The shipped template of this name, or the one in this file. Raises `DataError` for one that cannot be."""
    file = SHIPPED / f"{name}.yaml"
    if not re.fullmatch(r"\w+", name) or not file.is_file():
        file = Path(name).expanduser()
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError:
        shipped = ", ".join(sorted(path.stem for path in SHIPPED.glob("*.yaml")))
        raise DataError(f"template: there is no file {name}; shipped ones are {shipped}") from None
    except yaml.YAMLError as error:
        raise DataError(f"template {file}: not YAML: {error}") from None
    return _template(file, found)


def _template(file: Path, found: Any) -> Template:
    if not isinstance(found, dict) or set(found) != {"version", "options", "messages"}:
        raise DataError(f"template {file}: expected the keys version, options and messages, and no others")
    options, values = _options(file, found["options"])
    template = Template(f"{file.stem}@{found['version']}", _messages(file, found["messages"]), options, values)
    wanted = _COMPARED if template.compares else _GRADED
    if missing := sorted(wanted - template.marks):
        kind = "a list, so two responses are compared" if template.compares else "worth something, so one is graded"
        raise DataError(f"template {file}: its options are {kind}, and {{{missing[0]}}} stands nowhere in it")
    return template


def _options(file: Path, found: Any) -> tuple[tuple[str, ...], tuple[float, ...]]:
    if isinstance(found, list) and len(found) == 2 and all(isinstance(option, str) and option for option in found):
        return tuple(found), ()
    graded = isinstance(found, dict) and len(found) > 1 and all(isinstance(option, str) for option in found)
    if graded and all(isinstance(value, int | float) and not isinstance(value, bool) for value in found.values()):
        return tuple(found), tuple(map(float, found.values()))
    raise DataError(
        f"template {file}: options must be two texts ([A, B]), or texts with numbers ({{'yes': 1, 'no': 0}}); texts "
        "that YAML takes for something else (yes, no, 1) need quotes"
    )


def _messages(file: Path, found: Any) -> tuple[dict[str, str], ...]:
    rows = found if isinstance(found, list) else []
    good = [row for row in rows if isinstance(row, dict) and {type(row.get("role")), type(row.get("content"))} == {str}]
    if not good or len(good) < len(rows):
        raise DataError(f"template {file}: messages must be a list of {{role: ..., content: ...}}, both texts")
    return tuple({"role": row["role"], "content": row["content"]} for row in good)
