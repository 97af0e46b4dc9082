"""A study's folder: whose it is, that one study at a time works in it, and what makes room for a cell that runs again.

runs/NAME/
  study.yaml        the study as it was last run
  results.csv       one row per finished cell
  curves.csv  study.md  study.svg
  cells/NAME/       the run directory of a cell, and cells/NAME.log what it printed
  set-aside/        directories of cells that ran again: nothing is deleted
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from rlpipe.data.storage import Storage
from rlpipe.pipelines.sole import LOCK, Taken, alone_in
from rlpipe.recipe.study import Study
from rlpipe.recipe.yaml_text import dump

STUDY = "study.yaml"


class FolderTaken(RuntimeError):
    """The folder is something else, or at work; the message says what to do."""


def require_own(folder: Path) -> None:
    """Raises FolderTaken where the folder holds anything but a study."""
    used = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if used and not (folder / STUDY).is_file():
        raise FolderTaken(f"{folder} holds something that is no study, and stays; give another folder with --out DIR")


def begin(folder: Path, study: Study) -> None:
    """Make the folder the study's."""
    Storage(folder).write(STUDY, dump(study.model_dump()).encode())


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Nobody else runs a study here. Gives the lock's file descriptor: cells keep it open, so that one left over from a
    study that was killed holds the lock, too."""
    with ExitStack() as stack:
        try:
            descriptor = stack.enter_context(alone_in(folder))
        except Taken as taken:
            raise FolderTaken(
                f"another `rlpipe study` ({taken.who}), or a cell that one left behind when it was killed, works in "
                f"{folder}; wait for it or end it: `fuser {folder / LOCK}` names the processes"
            ) from None
        yield descriptor


def set_aside(folder: Path, run_dir: Path) -> Path:
    """Move a cell's directory out of the way; returns where it is now."""
    places = (folder / "set-aside" / f"{run_dir.name}-{n}" for n in count(1))
    place = next(place for place in places if not place.exists())
    place.parent.mkdir(parents=True, exist_ok=True)
    run_dir.rename(place)
    return place
