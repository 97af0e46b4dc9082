"""The resolved recipe as YAML, without what looks like a credential."""

import re
from collections.abc import Callable

from rlpipe.recipe.base import Strict
from rlpipe.recipe.yaml_text import dump

FILE = "recipe.yaml"
"""What it is called in the directory of a run, and in what a job brings along."""
REDACTED = "[redacted]"
"""What stands where a credential was."""
_NAMES = r"(?:api_?key|access_?key|secret|password|passwd|token|credentials?|signature|sig)"
_SECRET_KEY = re.compile(rf"(?:.*[_-])?{_NAMES}$", re.IGNORECASE)
_SECRET_TEXTS = [
    re.compile(r"\w+://(?P<secret>[^/@\s]+)@"),
    re.compile(rf"(?:^|[?&])[\w.-]*{_NAMES}=(?P<secret>[^&\s]+)", re.IGNORECASE),
    re.compile(r"\b(?P<secret>(?:hf_|sk-|gh[pousr]_|github_pat_|xox[a-z]-|AKIA)[\w-]{12,})"),
]
"""Credentials in URLs and overrides, and tokens that are told by their shape."""


def names_a_secret(key: str) -> bool:
    """Whether what is called so is a credential."""
    return _SECRET_KEY.match(key) is not None


def names_a_key(variable: str) -> bool:
    """The same of a variable of the environment, many of which are called ..._KEY."""
    return names_a_secret(variable) or variable.endswith(("_KEY", "_CONNECTION_STRING"))


def to_yaml(recipe: Strict, hidden: Callable[[object], object] = lambda value: value) -> str:
    """A recipe with every default written out; loading it gives the same recipe. `hidden` replaces what else is secret
    in its values."""
    return dump(hidden(redacted(recipe.model_dump())))


def redacted(value: object, key: str = "") -> object:
    """The same values with credentials replaced."""
    if isinstance(value, dict):
        return {name: redacted(child, name) for name, child in value.items()}
    if isinstance(value, list):
        return [redacted(child, key) for child in value]
    if not isinstance(value, str):
        return value
    if names_a_secret(key):
        return REDACTED
    for pattern in _SECRET_TEXTS:
        value = pattern.sub(_redacted, value)
    return value


def _redacted(found: re.Match) -> str:
    start, end = (position - found.start() for position in found.span("secret"))
    return found[0][:start] + REDACTED + found[0][end:]


def credentials(value: object, key: str = "") -> list[str]:
    """What `redacted` would replace; of `user:password` also the password alone."""
    if isinstance(value, dict):
        return [found for name, child in value.items() for found in credentials(child, name)]
    if isinstance(value, list):
        return [found for child in value for found in credentials(child, key)]
    if not isinstance(value, str):
        return []
    found = [value] if names_a_secret(key) else []
    found += [match["secret"] for pattern in _SECRET_TEXTS for match in pattern.finditer(value)]
    pairs = [text.partition(":")[::2] for text in found if ":" in text]
    return found + [password for user, password in pairs if password != user]
