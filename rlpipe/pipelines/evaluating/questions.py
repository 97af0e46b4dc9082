"""What the models of an evaluation are asked."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from rlpipe.data.guidance import shown_to_judges
from rlpipe.data.records import Record
from rlpipe.data.source import Records, load_all, load_records
from rlpipe.recipe.evaluating import EvalRecipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def questions(recipe: EvalRecipe, tokenizer: Callable[[], "PreTrainedTokenizerBase"]) -> tuple[Records, str]:
    """The records to ask, as held-out ones, no more than the recipe says; there is nothing to train on. And in words
    how many that is of how many. The tokenizer counts the tokens of what judges are shown beside them."""
    found = load_all(recipe.data) if recipe.part == "all" else load_records(recipe.data, only_prompts=True)
    heldout = _distinct(found.heldout)
    there, most = len(heldout), recipe.evaluation.prompts
    says = f"asking {min(there, most):,} prompts"
    says += f", the first of {there:,} (evaluation.prompts={most})" if there > most else ""
    asked = replace(found, train=[], heldout=heldout[:most])
    if recipe.guidance is not None:
        asked = shown_to_judges(asked, recipe.guidance, tokenizer())
    return asked, says


def _distinct(records: list[Record]) -> list[Record]:
    """Each prompt once, where the data has several responses to it."""
    if not records or not {"chosen", "label"} & records[0].fields.keys():
        return records
    return list({str(record.fields["prompt"]): record for record in reversed(records)}.values())[::-1]


def problem_id(index: int, record: Record) -> str:
    """Names a record by its place and what it holds, whatever a tokenizer makes of it."""
    held = json.dumps(record.fields, sort_keys=True, default=str, ensure_ascii=False)
    return f"heldout-{index}-{hashlib.blake2b(held.encode(), digest_size=4).hexdigest()}"
