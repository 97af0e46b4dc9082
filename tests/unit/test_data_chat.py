"""Rendering prompts and examples with the embedded tokenizer: literal tokens, masks, and what is refused."""

import numpy as np
import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from trl import pack_dataset

from rlpipe.data.chat import render_prompts
from rlpipe.data.examples import IGNORED, encode, split, truncate
from rlpipe.data.records import DataError, Format, Record, Records
from rlpipe.models.scratch import build_tokenizer

END, SYSTEM, USER, ASSISTANT = 1, 2, 3, 4
NO = IGNORED
CONVERSATION = [
    {"role": "user", "content": "1"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "3"},
    {"role": "assistant", "content": "4"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def of(*fields, format=Format.PROMPT_COMPLETION, chat=True, system=None):
    rows = [Record(row, f"d.jsonl, line {number}") for number, row in enumerate(fields, 1)]
    return Records(rows, [], format, chat, system, add_eos=True)


def ids(text):
    """Tokens of digits and plus: one each, as the byte-level vocabulary numbers them."""
    return [{"+": 16}.get(c, 22 + int(c) - 1 if c.isdigit() else None) for c in text]


def encoded(records, tokenizer, loss_on="completion"):
    return [(e.ids, e.labels) for e in encode(records.train, records, tokenizer, loss_on)]


def test_prompt_of_the_embedded_task(tokenizer):
    (prompt,), heldout = render_prompts(of({"prompt": "23+58", "answer": "81"}, format=Format.PROMPT), tokenizer)
    assert heldout == []
    np.testing.assert_array_equal(prompt.tokens, [USER, *ids("23+58"), END, ASSISTANT])
    assert prompt.tokens.dtype == np.int32
    assert prompt.text == "<|user|>23+58<|end|><|assistant|>"
    assert prompt.columns == {"answer": "81"}
    assert prompt.prompt_id == "train-0-eb45d53d"


def test_system_message_and_messages_as_prompt(tokenizer):
    records = of({"prompt": "1"}, {"prompt": CONVERSATION[:3]}, format=Format.PROMPT, system="9")
    texts = [prompt.text for prompt in render_prompts(records, tokenizer)[0]]
    assert texts == [
        "<|system|>9<|end|><|user|>1<|end|><|assistant|>",
        "<|system|>9<|end|><|user|>1<|end|><|assistant|>2<|end|><|user|>3<|end|><|assistant|>",
    ]


def test_plain_text_is_rendered_as_it_is(tokenizer):
    (prompt,), _ = render_prompts(of({"prompt": "1+2"}, format=Format.PROMPT, chat=False), tokenizer)
    assert prompt.text == "1+2"
    assert prompt.tokens.tolist() == ids("1+2")


@pytest.mark.parametrize("text", ["1 2", "<s>1 2"])
def test_bos_comes_once_and_no_eos_ends_a_plain_prompt(text):
    core = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "1": 2, "2": 3, "?": 4}, unk_token="?"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="?")
    records = of({"prompt": text, "completion": " 2"}, chat=False)
    (prompt,), _ = render_prompts(records, tokenizer)
    assert prompt.tokens.tolist() == [0, 2, 3]
    assert encoded(records, tokenizer) == [([0, 2, 3, 3, 1], [NO, NO, NO, 3, 1])]


def test_completion_only_loss(tokenizer):
    assert encoded(of({"prompt": "1+2", "completion": "3"}), tokenizer) == [
        (
            [USER, 22, 16, 23, END, ASSISTANT, 24, END],
            [NO, NO, NO, NO, NO, NO, 24, END],
        )
    ]


def test_assistant_only_loss_on_every_turn(tokenizer):
    records = of({"messages": CONVERSATION}, format=Format.MESSAGES)
    assert encoded(records, tokenizer, "assistant") == [
        (
            [USER, 22, END, ASSISTANT, 23, END, USER, 24, END, ASSISTANT, 25, END],
            [NO, NO, NO, NO, 23, END, NO, NO, NO, NO, 25, END],
        )
    ]


def test_loss_on_all_tokens(tokenizer):
    records = of({"messages": CONVERSATION[:2]}, format=Format.MESSAGES)
    tokens = [USER, 22, END, ASSISTANT, 23, END]
    assert encoded(records, tokenizer, "all") == [(tokens, tokens)]


def test_completion_only_differs_from_assistant_only_where_the_prompt_has_assistant_turns(tokenizer):
    records = of({"prompt": CONVERSATION[:3], "completion": CONVERSATION[3:]})
    [(_, completion)] = encoded(records, tokenizer, "completion")
    [(_, assistant)] = encoded(records, tokenizer, "assistant")
    assert completion == [NO] * 10 + [25, END]
    assert assistant == [NO] * 4 + [23, END] + [NO] * 4 + [25, END]


def test_plain_text_ends_with_the_end_token_once(tokenizer):
    assert encoded(of({"text": "1"}, format=Format.TEXT), tokenizer, "all") == [([22, END], [22, END])]
    assert encoded(of({"text": "1<|end|>"}, format=Format.TEXT), tokenizer, "all") == [([22, END], [22, END])]
    plain = of({"prompt": "1+", "completion": "2"}, chat=False)
    assert encoded(plain, tokenizer) == [([22, 16, 23, END], [NO, NO, 23, END])]


@pytest.mark.parametrize(
    ("records", "loss_on", "message"),
    [
        (of({"messages": CONVERSATION}, format=Format.MESSAGES), "completion", "Set train.loss_on=assistant"),
        (of({"text": "1"}, format=Format.TEXT), "completion", "Set train.loss_on=all"),
        (of({"text": "1"}, format=Format.TEXT), "assistant", "set train.loss_on=completion or all"),
        (of({"prompt": "1", "completion": "2"}, chat=False), "assistant", "needs conversations"),
        (of({"messages": CONVERSATION[:1]}, format=Format.MESSAGES), "assistant", "line 1: no token .* is in the loss"),
        (
            of({"messages": CONVERSATION}, {"messages": [{"role": "oracle", "content": "1"}]}, format=Format.MESSAGES),
            "all",
            "line 2: the chat template refuses these messages: unknown role oracle",
        ),
        (
            of({"messages": [{"role": "system", "content": "1"}]}, format=Format.MESSAGES, system="2"),
            "all",
            "line 1: the record has a system message and data.system is set too",
        ),
    ],
)
def test_what_cannot_be_trained_on_is_an_error_with_the_fix(tokenizer, records, loss_on, message):
    with pytest.raises(DataError, match=message):
        encode(records.train, records, tokenizer, loss_on)


def test_records_without_prompts_cannot_be_answered(tokenizer):
    with pytest.raises(DataError, match="Only records with a prompt can be answered, and these have messages"):
        render_prompts(of({"messages": CONVERSATION}, format=Format.MESSAGES), tokenizer)


def test_a_tokenizer_without_template_is_an_error_with_both_fixes():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"no chat template. Set data.chat=false .* model.chat_template=FILE"):
        render_prompts(of({"prompt": "1"}, format=Format.PROMPT), tokenizer)


def test_a_template_without_marks_gets_trls_marked_form_or_an_error():
    records = of({"messages": CONVERSATION}, format=Format.MESSAGES)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match=r"does not mark the assistant's turns.*{% generation %}"):
        encode(records.train, records, tokenizer, "assistant")


def test_a_completion_that_merges_with_its_prompt_is_warned_about(caplog):
    core = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "</s>": 3}, merges=[("a", "b")]))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    assert encoded(of({"prompt": "ba", "completion": "bb"}, chat=False), tokenizer) == [([1, 2, 1, 3], [NO, 2, 1, 3])]
    assert "1 of 1 prompts tokenise differently alone" in caplog.text


def test_a_loss_that_never_teaches_to_stop_is_warned_about(caplog):
    tokenizer = build_tokenizer()
    tokenizer.eos_token = "<|pad|>"
    encoded(of({"prompt": "1", "completion": "2"}), tokenizer)
    assert "No training label is the end-of-sequence token '<|pad|>'" in caplog.text


def test_overlong_records_are_cut_counted_and_named_when_nothing_is_left(tokenizer, caplog):
    records = of(*({"prompt": "1" * n, "completion": "22"} for n in (1, 2, 5)))
    cut = truncate(encode(records.train, records, tokenizer, "completion"), max_length=6)
    assert [len(e.ids) for e in cut] == [6, 6]
    assert cut[1].labels == [NO] * 5 + [23]
    assert "3 of 3 records are longer than 6 tokens and were cut" in caplog.text
    assert (
        "1 records have nothing to learn from in their first 6 tokens and are left out (first: d.jsonl, line 3)"
        in caplog.text
    )
    with pytest.raises(
        DataError, match=r"All 3 records have nothing to learn from in their first 3 tokens. Raise train"
    ):
        truncate(encode(records.train, records, tokenizer, "completion"), max_length=3)


def test_long_records_are_split_as_trl_splits_them(tokenizer):
    """The pieces, and no token more or less; one that is prompt alone teaches nothing."""
    records = of({"text": "123456"}, {"text": "7"}, {"text": "89"}, format=Format.TEXT, chat=False)
    pieces = split(encode(records.train, records, tokenizer, "all"), max_length=3)
    assert [p.ids for p in pieces] == [ids("123"), ids("456"), [END], [*ids("7"), END], [*ids("89"), END]]
    assert all(p.labels == p.ids for p in pieces)
    whole = encode(records.train, records, tokenizer, "all")
    packed = pack_dataset(Dataset.from_dict({"input_ids": [e.ids for e in whole]}), 3, "bfd_split")
    theirs = sorted(tuple(row["input_ids"]) for row in packed)
    assert theirs == sorted([(*ids("7"), END, END), *(tuple(p.ids) for p in pieces if len(p.ids) == 3)])
    asked = of({"prompt": "1" * 5, "completion": "22"})
    [last] = split(encode(asked.train, asked, tokenizer, "completion"), max_length=4)[-1:]
    assert last.labels[-1] != NO and last.origin == "d.jsonl, line 1"
