"""The resolved recipe as YAML, without what looks like a credential."""

import re

from rlpipe.recipe.base import Strict
from rlpipe.recipe.yaml_text import dump

REDACTED = "[redacted]"
"""What stands where a credential was."""
_NAMES = r"(?:api_?key|access_?key|secret|password|passwd|token|credentials?|signature|sig)"
_SECRET_KEY = re.compile(rf"(?:.*[_-])?{_NAMES}$", re.IGNORECASE)
_SECRET_TEXTS = [
    (re.compile(r"(\w+://)[^/@\s]+@"), rf"\1{REDACTED}@"),
    (re.compile(rf"((?:^|[?&])[\w.-]*{_NAMES}=)[^&\s]+", re.IGNORECASE), rf"\1{REDACTED}"),
    (re.compile(r"\b(?:hf_|sk-|gh[pousr]_|github_pat_|xox[a-z]-|AKIA)[\w-]{12,}"), REDACTED),
]
"""Credentials in URLs and overrides, and tokens that are told by their shape."""


def to_yaml(recipe: Strict) -> str:
    """A recipe with every default written out; loading it gives the same recipe."""
    return dump(redacted(recipe.model_dump()))


def redacted(value: object, key: str = "") -> object:
    """The same values with credentials replaced."""
    if isinstance(value, dict):
        return {name: redacted(child, name) for name, child in value.items()}
    if isinstance(value, list):
        return [redacted(child, key) for child in value]
    if not isinstance(value, str):
        return value
    if _SECRET_KEY.match(key):
        return REDACTED
    for pattern, replacement in _SECRET_TEXTS:
        value = pattern.sub(replacement, value)
    return value
