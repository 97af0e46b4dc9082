"""The tables of keys in docs/recipes.md, made from the schema.

    python tests/docs/key_tables.py        write them again, after a change of rlpipe/recipe

A table stands between `<!-- keys: Rollout -->` and `<!-- end -->`; the name is a class of rlpipe/recipe. Classes that
have the same keys can share a table, one row each, of the defaults in which they differ: `<!-- defaults: Ppo Rloo -->`.
A test checks that every table is what the schema says, and that every section of the schema has one.
"""

import json
import re
from functools import cache
from pathlib import Path

from rlpipe.recipe import schema

FILE = Path(__file__).parents[2] / "docs" / "recipes.md"
BETWEEN = re.compile(r"(<!-- (keys|defaults): ([\w ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def with_tables(text: str) -> str:
    """The page with every table as the schema has it now."""
    made = {"keys": table, "defaults": defaults}
    return BETWEEN.sub(lambda found: f"{found[1]}{made[found[2]](found[3])}\n{found[4]}", text)


def tables(text: str) -> list[str]:
    """The sections that have a table on the page."""
    return [name for _, _, names, _ in BETWEEN.findall(text) for name in names.split()]


@cache
def sections() -> dict[str, dict]:
    """Every section of a recipe with its keys, by the name of its class."""
    found = schema.adapter().json_schema()["$defs"]
    return {name: section for name, section in found.items() if "properties" in section}


def table(name: str) -> str:
    section = sections()[name]
    rows = [_row(key, value, key in section.get("required", ())) for key, value in section["properties"].items()]
    return "\n".join(["| key | value | default | |", "|---|---|---|---|", *rows])


def defaults(names: str) -> str:
    """One row for each section, one column for each key whose default is not the same in all."""
    found = {name: sections()[name]["properties"] for name in names.split()}
    keys = [
        key for key in next(iter(found.values())) if len({str(of[key].get("default")) for of in found.values()}) > 1
    ]
    rows = [[f"`{of['name']['const']}`", *(_default_of_part(of[key]) for key in keys)] for of in found.values()]
    head = ["`name`", *(f"`{key}`" for key in keys)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, ["---"] * len(head), *rows])


def _row(key: str, value: dict, required: bool) -> str:
    # Of a section's class, only the first line: the rest stands under its own heading.
    words = value.get("description") or schema.resolved(value).get("description", "").partition("\n")[0]
    cells = (f"`{key}`", _value(value), _default(value, required), " ".join(words.split()).rstrip("."))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _value(value: dict) -> str:
    return "a section" if _is_section(value) else schema.describe(value)


def _default(value: dict, required: bool) -> str:
    if required:
        return "**needed**"
    default = value.get("default")
    if default is None or default == {}:
        return "none"
    if isinstance(default, dict) and "discriminator" not in value:
        return ""  # the section's own table has them
    return f"`{_flow(default)}`"


def _default_of_part(value: dict) -> str:
    default = value.get("default")
    return "none" if default is None else f"`{_flow(default)}`"


def _flow(default: object) -> str:
    """A default as a recipe has it; the kind of a part goes without its key."""
    if isinstance(default, dict):
        kind = default.get("kind")
        rest = [
            f"{key}: {_flow(value)}" for key, value in default.items() if key != "kind" and value != {"kind": "fixed"}
        ]
        return f"{kind} {{{', '.join(rest)}}}" if kind and rest else kind or f"{{{', '.join(rest)}}}"
    if isinstance(default, list):
        return f"[{', '.join(map(_flow, default))}]"
    return json.dumps(default).replace('"', "")


def _is_section(value: dict) -> bool:
    """Keys of their own below, described under a heading of their own."""
    if "properties" in schema.resolved(value) or "discriminator" in value:
        return True
    return any(_is_section(member) for member in value.get("oneOf", value.get("anyOf", ())))


if __name__ == "__main__":
    FILE.write_text(with_tables(FILE.read_text(encoding="utf-8")), encoding="utf-8")
