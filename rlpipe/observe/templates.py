"""The files that pages are made of, and who fills them in. Compiling a template takes half a second: once a process."""

import time
from functools import cache
from importlib.resources import files

import jinja2

from rlpipe.observe.progress import duration

NAMES = (
    "page.html", "comparison.html", "measures.html", "style.css", "comparison.css", "script.js", "comparison.js",
)  # fmt: skip


@cache
def texts() -> dict[str, str]:
    """By name."""
    return {name: files(__package__).joinpath("report", name).read_text() for name in NAMES}


@cache
def template(name: str) -> jinja2.Template:
    loader = jinja2.DictLoader(texts())
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader)
    environment.filters |= {"duration": duration, "when": _when}
    return environment.get_template(name)


def _when(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
