"""Regular expressions in the child process: some take longer than the universe has, and `re` cannot be interrupted."""

import re
from collections.abc import Callable


def load(pattern: str, full_match: bool, group: int | str | None) -> Callable[[tuple[str, str]], float]:
    """The judge of one (response, reference) pair; without `group` the reference is not looked at."""
    compiled = re.compile(pattern)
    look = compiled.fullmatch if full_match else compiled.search

    def judge(request: tuple[str, str]) -> float:
        response, reference = request
        found = look(response)
        if found is None or group is None:
            return float(found is not None)
        return float((found[group] or "").strip() == reference.strip())

    return judge
