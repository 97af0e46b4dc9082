"""From a study file to a valid study; what is wrong with it, all at once, with line, key and fix."""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rlpipe.recipe import schema, shipped, yaml_text
from rlpipe.recipe.errors import Problem, RecipeError, choices, dotted, on_command_line
from rlpipe.recipe.study import Study, StudyFile, written
from rlpipe.recipe.tree import Node

AXIS = "a list of values (`seed: [0, 1]`), or labels with a list of changes each (`ppo: [algorithm.name=ppo]`)"
TAKEN = ("cell", "recipe", "steps", "samples", "seconds", "step_seconds", "peak_memory_gib")
"""Columns of results.csv that no axis may be called."""


def read(name: str) -> StudyFile:
    """The study of a file, or a shipped one by name. Raises RecipeError."""
    file = shipped.find_study(name, on_command_line())
    root, problems = yaml_text.read(file, "a study is a mapping with keys such as `recipe` and `grid`")
    try:
        found = StudyFile(Study.model_validate(root.plain()), file, root)
    except ValidationError as error:
        raise RecipeError([*problems, *_explained(root, error.errors(include_url=False))]) from None
    problems += [*_axes(found), *_names(found), *_exclusions(found)]
    if problems:
        raise RecipeError(problems)
    return found


def _explained(root: Node, errors: Iterable[ErrorDetails]) -> list[Problem]:
    """One problem per key: of a union pydantic reports one error per member, and a validator's words say most."""
    problems = {}
    for error in sorted(errors, key=lambda error: error["type"] != "value_error"):
        path = _path(root, error)
        place = root.nearest(path).place
        problems.setdefault(path, Problem(place, dotted(path), _message(root, path, error)))
    return list(problems.values())


def _path(root: Node, error: ErrorDetails) -> tuple[str | int, ...]:
    """Where the error is, without pydantic's names for the members of a union; of an axis, the axis."""
    path: tuple[str | int, ...] = error["loc"][:1]
    for part in error["loc"][1:2] if path == ("grid",) else error["loc"][1:]:
        path = (*path, part) if root.has((*path, part)) else path
    return path


def _message(root: Node, path: tuple[str | int, ...], error: ErrorDetails) -> str:
    key = str(path[0]) if path else ""
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, list(Study.model_fields), n=1)
        fix = f"did you mean `{near[0]}`?" if near else f"its keys are {', '.join(Study.model_fields)}"
        return f"`{key}` is not a key of a study; {fix}"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if path[:1] == ("grid",):
        return f"expected {AXIS}" if len(path) > 1 else f"expected axes; each is {AXIS}"
    expected = schema.describe(Study.model_json_schema()["properties"][key])
    return f"expected {expected}" if root.has((key,)) else f"missing; expected {expected}"


def _axes(found: StudyFile) -> Iterator[Problem]:
    for axis in found.axes:
        if axis in TAKEN:
            place = found.root.nearest(("grid", axis)).place
            yield Problem(
                place, f"grid.{axis}", f"`{axis}` is a column of results.csv already; name the axis otherwise"
            )
    repeat = found.study.repeat_over
    if repeat is not None and repeat not in found.axes:
        message = f"`{repeat}` is no axis of `grid`; expected {choices(found.axes)}"
        yield Problem(found.root.nearest(("repeat_over",)).place, "repeat_over", message)


def _exclusions(found: StudyFile) -> Iterator[Problem]:
    """Entries of `exclude` that leave nothing out, and what leaves nothing in."""
    labels = {axis: [written(v) if isinstance(of, list) else v for v in of] for axis, of in found.study.grid.items()}
    for number, wanted in enumerate(found.study.exclude):
        place, key = found.root.nearest(("exclude", number)).place, f"exclude.{number}"
        for axis, value in wanted.items():
            if axis not in labels:
                yield Problem(place, key, f"`{axis}` is no axis of `grid`; expected {choices(found.axes)}")
            elif written(value) not in labels[axis]:
                yield Problem(place, key, f"`{axis}` is never {written(value)}; expected {choices(labels[axis])}")
    if not found.cells():
        yield Problem(found.root.nearest(("exclude",)).place, "exclude", "leaves out every cell")


def _names(found: StudyFile) -> Iterator[Problem]:
    """Cells that would share a directory: on a file system that takes `A` and `a` for one, too."""
    counts = Counter(cell.name.lower() for cell in found.cells())
    for name in [name for name, count in counts.items() if count > 1]:
        message = f"{counts[name]} cells would be called `{name}`; give the values labels that differ"
        yield Problem(found.root.nearest(("grid",)).place, "grid", message)
