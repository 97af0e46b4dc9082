"""Loads a user's reward function and calls it as TRL does. Runs in the child process, or in-process under --debug."""

import asyncio
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = float | None | str
"""A reward, `None` for "does not apply", or in words why the returned thing is no number."""


class WrongLength(ValueError):
    """The function did not return one reward per completion."""


def load(function: str, base_dir: str, options: dict[str, Any]) -> Callable[[dict[str, list]], list[Row]]:
    """The function named by `file.py:name` or `package.module:name`, ready to be called with keyword lists."""
    return _Bound(find(function, base_dir), options)


def find(path: str, base_dir: str) -> Callable:
    """The function or class named by `file.py:name` or `package.module:name`."""
    source, _, name = path.rpartition(":")
    module = _from_file(source, base_dir) if source.endswith(".py") else _from_path(source)
    if not callable(getattr(module, name, None)):
        has = ", ".join(n for n, v in vars(module).items() if inspect.isfunction(v)) or "none"
        raise AttributeError(f"{source} has no function {name!r} (functions there: {has})")
    return getattr(module, name)


def _from_file(source: str, base_dir: str):
    """A file beside the recipe, or else under the working directory; its own folder is importable, as for scripts."""
    places = [Path(base_dir, source), Path(source).absolute()]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"no such file: {' nor '.join(str(place) for place in dict.fromkeys(places))}")
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # so that its classes can be pickled
    spec.loader.exec_module(module)
    return module


def _from_path(source: str):
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    return importlib.import_module(source)


class _Bound:
    """The function with the recipe's options and with only those keywords that it takes."""

    def __init__(self, function: Callable, options: dict[str, Any]):
        self._function = function
        self._options = options
        self._signature = inspect.signature(function)
        parameters = self._signature.parameters.values()
        self._takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self._names = {p.name for p in parameters}

    def __call__(self, columns: dict[str, list]) -> list[Row]:
        arguments = columns | self._options
        if not self._takes_all:
            arguments = {name: value for name, value in arguments.items() if name in self._names}
        try:
            rewards = self._function(**arguments)
        except TypeError:
            self._require(arguments, [*columns, *self._options])
            raise
        if inspect.isawaitable(rewards):
            rewards = asyncio.run(_await(rewards))
        return _rows(rewards, len(columns["completions"]))

    def _require(self, arguments: dict[str, Any], known: list[str]) -> None:
        """Raises TypeError for a parameter that nothing is there for."""
        try:
            self._signature.bind(**arguments)
        except TypeError as error:
            raise TypeError(f"{error}; there are: {', '.join(known)} (columns of the data, and `options`)") from None


async def _await(awaitable):
    return await awaitable


def _rows(rewards: Any, count: int) -> list[Row]:
    if not hasattr(rewards, "__iter__"):
        raise WrongLength(f"returned {rewards!r:.100} instead of a list of {count} rewards")
    rows = [_number(reward) for reward in rewards]
    if len(rows) != count:
        raise WrongLength(f"returned {len(rows)} rewards for {count} completions")
    return rows


def _number(reward: Any) -> Row:
    """A Python float, so that tensors and numpy scalars stay in this process."""
    if reward is None:
        return None
    try:
        return float(reward)
    except (TypeError, ValueError):
        return f"returned {reward!r:.100}, which is no number"
