"""What length alone would rank right, to be read beside what a model does."""

import numpy as np

from rlpipe.pipelines.offline.progress import Report
from rlpipe.pipelines.offline.table import Table


def length_baseline(heldout: Table) -> float:
    """Share of held-out pairs that length alone ranks right, by the better of the rules `longer wins` and `shorter
    wins`; equal lengths count one half. A model that does no better may only be counting words.

    The table has pairs (columns chosen_ids, rejected_ids), or single responses (completion_ids, label), of which every
    good one is compared with every bad one; one half if there are none of a kind.
    """
    length = {name: np.diff(column.offsets_B1) for name, column in heldout.sequences.items()}
    if "label" in heldout.values_B:
        good_B = heldout.values_B["label"]
        differences = length["completion_ids"][good_B][:, None] - length["completion_ids"][~good_B]
    else:
        differences = length["chosen_ids"] - length["rejected_ids"]
    longer = float(np.mean((differences > 0) + 0.5 * (differences == 0))) if differences.size else 0.5
    return max(longer, 1 - longer)


def beside_length(report: Report, heldout: Table) -> Report:
    """The report, with heldout_length_baseline wherever held-out pairs are ranked."""
    baseline = {"heldout_length_baseline": length_baseline(heldout)}

    def told(step: int, values: dict[str, float]) -> None:
        report(step, values | (baseline if "heldout_pair_accuracy" in values else {}))

    return told
