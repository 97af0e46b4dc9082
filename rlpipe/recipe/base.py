"""The base of every part of a recipe: strict, immutable, documented."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A recipe section. Unknown keys and silently converted types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
