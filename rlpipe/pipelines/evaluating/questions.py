"""What the models of an evaluation are asked."""

import hashlib
import json
from dataclasses import replace

from rlpipe.data.records import Record
from rlpipe.data.source import Records, load_all, load_records
from rlpipe.recipe.evaluating import EvalRecipe


def questions(recipe: EvalRecipe) -> tuple[Records, str]:
    """The records to ask, as held-out ones, no more than the recipe says; there is nothing to train on. And in words
    how many that is of how many."""
    found = load_all(recipe.data) if recipe.part == "all" else load_records(recipe.data, only_prompts=True)
    heldout = _distinct(found.heldout)
    there, most = len(heldout), recipe.evaluation.prompts
    says = f"asking {min(there, most):,} prompts"
    says += f", the first of {there:,} (evaluation.prompts={most})" if there > most else ""
    return replace(found, train=[], heldout=heldout[:most]), says


def _distinct(records: list[Record]) -> list[Record]:
    """Each prompt once, where the data has several responses to it."""
    if not records or not {"chosen", "label"} & records[0].fields.keys():
        return records
    return list({str(record.fields["prompt"]): record for record in reversed(records)}.values())[::-1]


def problem_id(index: int, record: Record) -> str:
    """Names a record by its place and what it holds, whatever a tokenizer makes of it."""
    held = json.dumps(record.fields, sort_keys=True, default=str, ensure_ascii=False)
    return f"heldout-{index}-{hashlib.blake2b(held.encode(), digest_size=4).hexdigest()}"
