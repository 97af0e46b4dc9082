"""report.html: a run on one self-contained page. Nothing is loaded from a network; every text is escaped."""

from pathlib import Path

from rlpipe.data.storage import Storage
from rlpipe.observe.report.collect import stages
from rlpipe.observe.report.page import render

NAME = "report.html"


def write(run_dir: str | Path) -> Path | str:
    """Read what the run directory holds, whether or not the run has ended, and write its report. Returns where."""
    storage = Storage(run_dir)
    page = render(stages(storage), title=str(run_dir).rstrip("/").rpartition("/")[2])
    storage.write(NAME, page.encode(errors="replace"))
    return storage.local / NAME if storage.local else f"{storage}/{NAME}"
