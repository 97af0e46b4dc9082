"""Keys and tokens: where they come from, which process gets which, and how they stay out of what a run writes.

    WANDB_API_KEY, MLFLOW_TRACKING_*     the driver's alone
    HF_TOKEN                             the driver's, and of the roles that load a model from the hub
    what `token_env`, `api_key_env`      the driver's alone, which asks the endpoint
    what `secrets` names                 of that reward or environment, whose process the driver starts
    NAME_FILE                            a file that holds the value of NAME, in place of the variable itself

What a process knows of (`learn`) is replaced wherever it would write it (`hide`): by its value, under any name.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, unquote

from rlpipe.recipe.resolved import REDACTED, credentials, names_a_key

TRACKERS = ("WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_URI")
HUB = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
OTHERS = ("RAY_", "AWS_", "GOOGLE_", "AZURE_")
"""Of Ray, which every process of it needs, and of storage, which have ways of their own to be kept in files."""
FILE = "_FILE"
SHORTEST = 6
"""Characters of a value that is looked for in texts. Shorter ones would be found in words."""

NAMING = ("token_env", "api_key_env", "secrets")
"""Keys of a recipe whose values name variables with keys."""

_known: set[str] = set()
_named: set[str] = set()


class SecretUnreadable(ValueError):
    """A `NAME_FILE` names what cannot be read; the message says which."""


def is_secret(name: str) -> bool:
    """Whether a variable of the environment is kept from processes that do not need it."""
    return name in _named or (not name.startswith(OTHERS) and (name in TRACKERS or names_a_key(name)))


def settle(recipe: Mapping[str, Any]) -> None:
    """To be called before a run does anything. Raises `SecretUnreadable`."""
    _named.update(_names_in(recipe))
    read_files()
    learn(recipe)


def _names_in(value: Any, key: str = "") -> list[str]:
    if isinstance(value, Mapping):
        return [name for inner, child in value.items() for name in _names_in(child, inner)]
    if isinstance(value, list):
        return [name for child in value for name in _names_in(child, key)]
    return [value] if key in NAMING and isinstance(value, str) else []


def read_files() -> None:
    """Give this process the value of each secret NAME whose file NAME_FILE names. Raises `SecretUnreadable`."""
    for variable, path in list(os.environ.items()):
        name = variable.removesuffix(FILE)
        if name == variable or not is_secret(name) or name in os.environ:
            continue
        try:
            with open(path, encoding="utf-8") as file:
                os.environ[name] = file.read().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SecretUnreadable(f"{variable}={path}, which is to hold {name}, cannot be read: {error}") from None


def learn(values: Mapping[str, Any] | None = None) -> None:
    """From now on this process hides the secrets of its environment, and those in `values`, such as a recipe's."""
    found = [value for name, value in os.environ.items() if names_a_key(name) or name in _named]
    found += [part for value in os.environ.values() for part in credentials(value)]
    found += credentials(dict(values or {}))
    for value in found:
        if len(value) >= SHORTEST and not os.path.isabs(value):
            _known.update((value, quote(value, safe=""), unquote(value)))


def hide(text: str) -> str:
    """The text without any value of a known secret."""
    for value in sorted(_known, key=len, reverse=True):  # one may hold another
        text = text.replace(value, REDACTED)
    return text


def hidden(value: Any) -> Any:
    """The same of all texts in dictionaries and lists."""
    if not _known:
        return value
    if isinstance(value, dict):
        return {key: hidden(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [hidden(child) for child in value]
    return hide(value) if isinstance(value, str) else value


@contextlib.contextmanager
def hidden_in_errors() -> Iterator[None]:
    """What is raised in the block says nothing of known secrets, as far as its message is made of its arguments."""
    try:
        yield
    except Exception as error:
        error.args = tuple(hidden(argument) if isinstance(argument, str) else argument for argument in error.args)
        raise


def without(environment: Mapping[str, str], allowed: Iterable[str] = ()) -> dict[str, str]:
    """An environment with no secrets but the allowed ones."""
    kept = set(allowed)
    return {
        name: value
        for name, value in environment.items()
        if name in kept or not (is_secret(name) or is_secret(name.removesuffix(FILE)))
    }


def of(names: Iterable[str]) -> dict[str, str]:
    """Those that this process has."""
    return {name: os.environ[name] for name in names if name in os.environ}


@contextlib.contextmanager
def withheld() -> Iterator[None]:
    """What is started in the block does not inherit them."""
    before = dict(os.environ)
    for name in before.keys() - without(before).keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update({name: value for name, value in before.items() if name not in os.environ})


def named() -> tuple[str, ...]:
    """Variables that the recipe names, whatever they are called: for `take` in another process."""
    return tuple(sorted(_named))


def take(given: Mapping[str, str], allowed: Iterable[str], names: Iterable[str] = ()) -> None:
    """Leave this process no secrets but the allowed ones: those that its node gave it, or else the `given` ones.
    `names`: what is a secret besides."""
    _named.update(names)
    for name in os.environ.keys() - without(os.environ, allowed).keys():
        del os.environ[name]
    os.environ.update(given)
    learn()
