"""What a node of Ray exports to Prometheus."""

import re
import urllib.error
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""Values by name and those labels that are ours."""

OURS = {"run", "component", "phase", "engine", "node", "fatal", "role"}
DASHBOARD = Path(__file__).parents[1] / "cluster/monitoring/grafana.json"


def scrape(address: str) -> Samples:
    """The metrics of rlpipe at HOST:PORT; none while nothing answers there."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return {}
    found = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {
        (sample.name, frozenset((key, value) for key, value in sample.labels.items() if key in OURS)): sample.value
        for sample in found
        if sample.name.startswith("ray_rlpipe_")
    }


def names(samples: Samples) -> set[str]:
    return {name for name, _ in samples}


def named_in_the_dashboard() -> set[str]:
    return set(re.findall(r"\bray_rlpipe_\w+", DASHBOARD.read_text()))
