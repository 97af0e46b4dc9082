"""The schema as data: its JSON Schema, its keys, and what a value may be in words people use."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

from pydantic import TypeAdapter

from rlpipe.recipe.constitution import Constitution
from rlpipe.recipe.errors import choices
from rlpipe.recipe.study import Study
from rlpipe.recipe.tasks import Recipe
from rlpipe.recipe.tree import Path

_TYPES = {dict: "object", list: "array", str: "string", bool: "boolean", int: "integer", float: "number"}
_WORDS = {
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "integer": "a whole number",
    "number": "a number",
}
_PLURALS = {"string": "texts", "integer": "whole numbers", "number": "numbers"}
_BOUNDS = {
    "exclusiveMinimum": "above",
    "minimum": "of at least",
    "exclusiveMaximum": "below",
    "maximum": "of at most",
}


@cache
def adapter() -> TypeAdapter:
    """Pydantic's validator of any recipe."""
    return TypeAdapter(Recipe)


@cache
def _document() -> dict:
    return adapter().json_schema()


def resolved(schema: dict) -> dict:
    """A schema with its reference, if it is one, followed, and without null beside kinds of sections; words stay."""
    while "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        schema = {**_document()["$defs"][name], **{key: value for key, value in schema.items() if key != "$ref"}}
    return _without_null(schema)


def _without_null(schema: dict) -> dict:
    """A section of several kinds that may be absent as the section of several kinds."""
    kinds = next((member for member in schema.get("anyOf", ()) if "discriminator" in member), None)
    return {**kinds, **{key: value for key, value in schema.items() if key != "anyOf"}} if kinds else schema


def members(schema: dict) -> list[dict]:
    """What a union offers; nothing where the schema is no union."""
    return [resolved(member) for member in schema.get("oneOf", schema.get("anyOf", ()))]


def narrow(schema: dict, value: object) -> dict:
    """The member of a union that `value` was meant to be, chosen as pydantic chooses; a union where none fits."""
    schema = resolved(schema)
    keys = value if isinstance(value, dict) else {}
    if "discriminator" in schema:
        reference = schema["discriminator"]["mapping"].get(str(keys.get(tag_key(schema))))
        return resolved({"$ref": reference}) if reference else schema
    fitting = [member for member in members(schema) if member.get("type") == _TYPES.get(type(value))]
    return max(fitting, key=lambda member: _marks(member, keys), default=schema)


def _marks(section: dict, keys: Iterable[str]) -> int:
    """How much speaks for `keys` being meant as this section: required keys, and keys that only name its kind."""
    naming = [key for key, child in section.get("properties", {}).items() if "const" in child]
    return sum(key in keys for key in (*section.get("required", ()), *naming))


def tag_key(schema: dict) -> str | None:
    """The key that tells the members of a union apart (`kind`), if one key does."""
    return schema.get("discriminator", {}).get("propertyName")


def below(schema: dict, key: str | int) -> dict | None:
    """The schema of what a key or list index of a (narrowed) section holds; None for a key it does not have."""
    if isinstance(key, int):
        return schema.get("items")
    return schema.get("properties", {}).get(key) or schema.get("additionalProperties") or None


def at(path: Sequence[str | int], data: object) -> dict | None:
    """The schema at a path of a recipe that holds `data`; None where there is no such key."""
    schema: dict | None = _document()
    for key in path:
        schema = below(narrow(schema, data), key) if schema else None
        data = inside(data, key)
    return resolved(schema) if schema else None


def inside(data: object, key: str | int) -> object:
    """What a mapping or list holds under a key, or None."""
    if isinstance(data, dict):
        return data.get(key)
    return data[key] if isinstance(data, list) and isinstance(key, int) and key < len(data) else None


def paths(data: object) -> Iterator[Path]:
    """Every key that a recipe like `data` may have."""
    return _paths(_document(), data, ())


def _paths(schema: dict, data: object, path: Path) -> Iterator[Path]:
    schema = narrow(schema, data)
    for member in members(schema):
        yield from _paths(member, data, path)
    for key, child in schema.get("properties", {}).items():
        yield (*path, key)
        yield from _paths(child, inside(data, key), (*path, key))
    if "items" in schema:
        yield from _paths(schema["items"], inside(data, 0), (*path, 0))
    if isinstance(schema.get("additionalProperties"), dict) and isinstance(data, dict):
        for key, value in data.items():
            yield from _paths(schema["additionalProperties"], value, (*path, key))


def describe(schema: dict) -> str:
    """What a value may be: `a whole number above 0, or null`."""
    schema = resolved(schema)
    if "enum" in schema or "const" in schema:
        return choices(schema.get("enum", [schema.get("const")]))
    if tag_key(schema):
        return f"a section with `{tag_key(schema)}`: {choices(schema['discriminator']['mapping'])}"
    if members(schema):
        return schema["description"] if "oneOf" in schema else _describe_any(members(schema))
    if schema.get("type") == "object":
        return _describe_section(schema)
    if schema.get("type") == "array":
        return f"a {_filled(schema, 'minItems')}list{_describe_items(resolved(schema['items']))}"
    return _WORDS[schema["type"]] + _describe_range(schema)


def _describe_any(options: Sequence[dict]) -> str:
    words = [describe(option) for option in options]
    return ", or ".join(word for word in words if not (word == "a whole number" and "a number" in words))


def _describe_section(schema: dict) -> str:
    if "properties" in schema:
        return _describe_keys(schema.get("required"), list(schema["properties"]))
    return (
        f"a {_filled(schema, 'minProperties')}section of names, each holding {describe(schema['additionalProperties'])}"
    )


def _filled(schema: dict, least: str) -> str:
    return "non-empty " if schema.get(least) else ""


def _describe_keys(required: Sequence[str] | None, every: Sequence[str]) -> str:
    quoted = ", ".join(f"`{key}`" for key in required or every[:3])
    return f"a section with {quoted}" if required else f"a section with keys such as {quoted}"


def _describe_items(schema: dict) -> str:
    plural = _PLURALS.get(schema.get("type", ""))
    return f" of {plural}{_describe_range(schema)}" if plural else f", each item {describe(schema)}"


def _describe_range(schema: dict) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    return " and".join(f" {word} {schema[key]:g}" for key, word in _BOUNDS.items() if key in schema)


def json_schema() -> dict:
    """JSON Schema of recipe files, for editors: as the loader reads them, so `extends` stands in any section."""
    return _titled("rlpipe recipe", _for_editors(_document()))


def study_json_schema() -> dict:
    """JSON Schema of study files, for editors."""
    return _titled("rlpipe study", Study.model_json_schema())


def constitution_json_schema() -> dict:
    """JSON Schema of constitutions, for editors."""
    return _titled("rlpipe constitution", Constitution.model_json_schema())


def _titled(title: str, schema: dict) -> dict:
    return {"$schema": "https://json-schema.org/draft/2020-12/schema"} | schema | {"title": title}


def _for_editors(schema: object) -> object:
    if isinstance(schema, list):
        return [_for_editors(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    # A section that extends another file may leave anything to it, so that it fits several members of a union.
    open_ = {{"oneOf": "anyOf"}.get(key, key): _for_editors(value) for key, value in schema.items()}
    if isinstance(open_.get("properties"), dict) and open_.get("type") == "object":
        extends = {"type": "string", "description": "Recipe file, or shipped recipe, that this section changes."}
        required = open_.pop("required", [])
        open_ |= {"properties": {"extends": extends, **open_["properties"]}}
        open_ |= {"anyOf": [{"required": ["extends"]}, {"required": required}]} if required else {}
    return open_
