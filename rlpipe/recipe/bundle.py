"""A recipe with the local files it names, in one folder that can be read anywhere: what a job takes to a cluster.

    FOLDER/recipe.yaml    resolved; what it extends is in it
    FOLDER/files-0/…      files of one folder of this machine: reward functions, data, small models
    FOLDER/PACKAGE/…      modules that the recipe names as `package.module:function`

Modules beside a Python file that it imports come with it. Paths that are not here stay as they are if they are
absolute: the cluster has them, or says that it lacks them.
"""

import ast
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlpipe.recipe import schema
from rlpipe.recipe.errors import Problem, RecipeError, dotted, on_command_line, shown
from rlpipe.recipe.load import Loaded
from rlpipe.recipe.resolved import FILE, redacted
from rlpipe.recipe.tree import Path as KeyPath
from rlpipe.recipe.yaml_text import dump

LARGEST_BYTES = 64 * 2**20
"""Of all files together. Ray's job server takes uploads up to 100 MiB, and keeps them in the head node's memory."""


@dataclass
class Bundle:
    """What stands in `folder`."""

    folder: Path
    brought: list[Path] = field(default_factory=list)
    """Files and folders of this machine that are in it."""
    left: list[str] = field(default_factory=list)
    """Paths and modules that the cluster must have."""


def write(loaded: Loaded, folder: Path, shared: Sequence[Path] = ()) -> Bundle:
    """Fill an empty folder. What lies below one of `shared` is seen by the cluster, too, and stays where it is.

    Raises RecipeError for credentials in the recipe, for files that are together larger than `LARGEST_BYTES`, and for
    relative paths that are not here.
    """
    data = loaded.recipe.model_dump()
    _refuse_credentials(data)
    packing = _Packing(Bundle(folder), [path.expanduser().resolve() for path in shared])
    packed = packing.pack(data)
    _refuse_missing(loaded, packing.bundle.left)
    _refuse_large(packing.sources)
    for target, source in packing.sources.items():
        _copy(source, target)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_text(dump(packed), encoding="utf-8")
    return packing.bundle


class _Packing:
    """Where each file goes; nothing is copied yet."""

    def __init__(self, bundle: Bundle, shared: Sequence[Path]) -> None:
        self.bundle, self._shared = bundle, shared
        self.sources: dict[Path, Path] = {}
        """By target."""
        self._folders: dict[Path, str] = {}
        self._data: object = None

    def pack(self, data: object) -> object:
        """A recipe's data with paths of the bundle."""
        self._data = data
        return self._packed(data, ())

    def _packed(self, value: object, path: KeyPath) -> object:
        if isinstance(value, dict):
            return {key: self._packed(child, (*path, key)) for key, child in value.items()}
        if isinstance(value, list | tuple):
            return [self._packed(child, (*path, i)) for i, child in enumerate(value)]
        if not isinstance(value, str) or not value:
            return value
        match schema.narrow(schema.at(path, self._data) or {}, value).get("format"):
            case "path" | "path-or-hub-id":
                return self._file(value)
            case "python-function":
                return self._function(value)
        return value

    def _file(self, text: str) -> str:
        if not (source := Path(text)).is_absolute():
            return text  # a hub id, a reference to a stage; or missing, which is told of
        if not source.exists() or any(source.is_relative_to(folder) for folder in self._shared):
            self.bundle.left.append(text)
            return text
        return str(self._bring(source).relative_to(self.bundle.folder))

    def _function(self, text: str) -> str:
        source, _, name = text.rpartition(":")
        if source.endswith(".py"):
            placed = self._file(source)
            if placed != source:
                for beside in _imported_by(Path(source)):
                    self._bring(beside)
            return f"{placed}:{name}"
        if (top := source.partition(".")[0]) == "rlpipe":
            return text  # goes along by itself, or is the cluster's own
        found = next((path for path in (Path(top).absolute(), Path(f"{top}.py").absolute()) if path.exists()), None)
        if found is None:
            self.bundle.left.append(f"the Python module {source}")
        else:
            for part in (found, *_imported_by(found)):
                self._add(part, self.bundle.folder / part.name)
        return text

    def _bring(self, source: Path) -> Path:
        """Its place in the bundle; files of one folder stay together."""
        folder = self._folders.setdefault(source.parent, f"files-{len(self._folders)}")
        return self._add(source, self.bundle.folder / folder / source.name)

    def _add(self, source: Path, target: Path) -> Path:
        if target not in self.sources:
            self.sources[target] = source
            self.bundle.brought.append(source)
        return target


def _imported_by(module: Path) -> Iterator[Path]:
    """Modules and packages beside a module or package that it imports, and those that they import."""
    seen, waiting = {module}, list(module.rglob("*.py")) if module.is_dir() else [module]
    while waiting:
        for name in _imports(waiting.pop()):
            for beside in (module.with_name(f"{name}.py"), module.with_name(name)):
                if beside not in seen and (beside.is_file() or (beside / "__init__.py").is_file()):
                    seen.add(beside)
                    waiting += beside.rglob("*.py") if beside.is_dir() else [beside]
                    yield beside


def _imports(file: Path) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError:
        return  # told with its line when the run loads it
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        # Ray leaves out whatever these files name, in any folder: a model's weights, for instance.
        shutil.copytree(
            source, target, ignore=shutil.ignore_patterns("__pycache__", ".gitignore", ".rayignore", ".git")
        )
    else:
        shutil.copyfile(source, target)


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _refuse_credentials(data: object) -> None:
    """Ray keeps what a job brings where everybody who may see the dashboard may read it."""
    problems = [
        Problem(
            on_command_line(),
            key,
            "a credential does not travel with a job. Set it in the environment of the cluster's nodes, and name the "
            "variable in the recipe where it takes one (`token_env`)",
        )
        for key in _changed(data, redacted(data), ())
    ]
    if problems:
        raise RecipeError(problems)


def _changed(value: object, hidden: object, path: KeyPath) -> Iterator[str]:
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _changed(child, hidden[key], (*path, key))
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from _changed(child, hidden[i], (*path, i))
    elif value != hidden:
        yield dotted(path)


def _refuse_missing(loaded: Loaded, left: Sequence[str]) -> None:
    """A path that is not here can be one of the cluster, if it does not depend on where one stands."""
    problems = [problem for problem in loaded.missing if not any(f"`{path}`" in problem.message for path in left)]
    if problems:
        raise RecipeError(problems)


def _refuse_large(sources: dict[Path, Path]) -> None:
    sizes = {source: _size(source) for source in sources.values()}
    if sum(sizes.values()) <= LARGEST_BYTES:
        return
    largest = max(sizes, key=sizes.__getitem__)
    message = (
        f"its files are {sum(sizes.values()) / 2**20:,.0f} MiB together ({shown(largest)} alone "
        f"{sizes[largest] / 2**20:,.0f}), and a job takes {LARGEST_BYTES // 2**20} MiB along. Put large files "
        f"where all nodes see them, and name them by that path; if {largest.parent} is one: --shared {largest.parent}"
    )
    raise RecipeError([Problem(on_command_line(), "", message)])
