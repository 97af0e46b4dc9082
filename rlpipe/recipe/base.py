"""The base of every part of a recipe: strict, immutable, documented."""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """A recipe section. Unknown keys and silently converted types are errors."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        defer_build=True,  # sections hold sections: each is built once, with the first recipe that has it
    )


# Formats say what a text is, so that the loader finds local files beside the recipe, whatever key holds them.
FilePath = Annotated[str, Field(json_schema_extra={"format": "path"})]
PathOrHubId = Annotated[str, Field(json_schema_extra={"format": "path-or-hub-id"})]
PythonFunction = Annotated[str, Field(json_schema_extra={"format": "python-function"})]


def variable_name(name: str) -> str:
    """Raises ValueError for what names no variable of the environment."""
    # Not repeated in the message: it may be the token.
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", name):
        raise ValueError("expected the name of an environment variable, in capitals; the token is its value")
    return name


SecretName = Annotated[str, AfterValidator(variable_name)]
"""Names the variable of the environment that holds a key."""


def _folder_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(f"`{name}` names a folder; expected letters, digits, `-`, `_`, `.`, and no mark first")
    return name


FolderName = Annotated[str, AfterValidator(_folder_name)]
"""Names a folder of a run."""
