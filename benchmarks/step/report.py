"""Everything a benchmark found: as tables, as data, as drawings."""

import json
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from step import machine, tables, waterfall
from step.command import environment
from step.measure import Measured
from step.tables import Grid


@dataclass(frozen=True, slots=True)
class Report:
    """What `benchmarks/NAME.py` found."""

    name: str
    title: str
    engines: tuple[str, ...]
    results: list[Measured]
    startup: list[Grid] = field(default_factory=list)

    def grids(self) -> list[Grid]:
        found = [tables.comparison(self.results, self.engines)]
        for measured in self.results:
            found.append(tables.contestants(measured))
            found += [tables.gap(measured, e) for e in self.engines if "rlpipe / floor" in tables.ratios(measured, e)]
            for who, bars in measured.waterfalls.items():
                title = f"{measured.case.name}, {who}"
                found += [waterfall.waits(title, bars), waterfall.timeline(title, bars)]
        return found + self.startup

    def failed(self) -> bool:
        """Whether one of rlpipe's own runs did."""
        return any(name.startswith("rlpipe") for measured in self.results for name in measured.failed)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.name}.json").write_text(json.dumps(self._data(), indent=1, default=str) + "\n")
        about = ", ".join(f"{k} {v}" for k, v in machine.describe().items() if k != "versions")
        versions = ", ".join(f"{k} {v}" for k, v in machine.describe()["versions"].items())
        head = f"# {self.title}\n\n`benchmarks/{self.name}.py`, {datetime.now():%Y-%m-%d}. {about}; {versions}.\n"
        (folder / f"{self.name}.md").write_text("\n".join([head, *(grid.markdown() for grid in self.grids())]))
        for measured in self.results:
            for who, bars in measured.waterfalls.items():
                file = folder / f"{self.name}-{measured.case.name}-{who.replace(' ', '-')}.svg"
                file.write_text(waterfall.svg(f"{self.title}, {measured.case.name}, {who}", bars))

    def _data(self) -> dict[str, Any]:
        return {
            "machine": machine.describe(),
            "environment": {name: environment()[name] for name in machine.SHARED_CORES | machine.ENVIRONMENT},
            "cases": [asdict(measured) for measured in self.results],
            "ratios": {m.case.name: {e: tables.ratios(m, e) for e in self.engines} for m in self.results},
            "startup": [asdict(grid) for grid in self.startup],
        }
