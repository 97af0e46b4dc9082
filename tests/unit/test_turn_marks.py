"""What stands between two turns, by templates of every kind: literal tokens, and what is refused."""

import pytest

from rlpipe.data.flow import Said
from rlpipe.data.records import DataError
from rlpipe.models.scratch import build_tokenizer
from rlpipe.rollout.turn_marks import TurnMarks

END, USER, ASSISTANT, TOOL = 1, 3, 4, 5
TWO = 23
CHATML = (
    "{% for m in messages %}{{ '<|system|>' + m.role + '\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|system|>assistant\n' }}{% endif %}"
)
THINKING = (  # as Qwen3's: an empty thought stands in the last assistant turn only
    "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>"
    "{% if loop.last %}<think></think>{% endif %}{{ m.content }}<|end|>"
    "{% else %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LAST_ENDS = (  # the end of a turn is written differently once something follows
    "{% for m in messages %}{{ m.content }}{% if loop.last and not add_generation_prompt %}<|end|>"
    "{% else %}<|pad|>{% endif %}{% endfor %}"
)
USERS_ONLY = "{% for m in messages if m.role != 'tool' %}{{ m.content }}<|end|>{% endfor %}"
REFUSES = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{{ m.content }}{% endfor %}"
)


def marks(template=None, chat=True):
    tokenizer = build_tokenizer()
    if template is not None:
        tokenizer.chat_template = template
    return TurnMarks(tokenizer, chat), tokenizer


def test_the_embedded_template():
    subject, _ = marks()
    assert subject.tokens(Said("user", "2"), END).tolist() == [USER, TWO, END, ASSISTANT]
    assert subject.tokens(Said("tool", "2"), END).tolist() == [TOOL, TWO, END, ASSISTANT]


def test_a_turn_that_another_stop_token_ended_gets_its_mark():
    subject, _ = marks()
    assert subject.tokens(Said("user", "2"), TWO).tolist() == [END, USER, TWO, END, ASSISTANT]


@pytest.mark.parametrize("template", [None, CHATML, THINKING])
def test_everything_together_is_the_templates_own_rendering(template):
    subject, tokenizer = marks(template)
    question, answer = {"role": "user", "content": "1+1"}, {"role": "assistant", "content": "<calc>1+1</calc>"}
    prompt = tokenizer.apply_chat_template([question], add_generation_prompt=True, return_dict=False)
    response = [*tokenizer(answer["content"])["input_ids"], END]
    ours = [*prompt, *response, *subject.tokens(Said("tool", "a long\nreply"), END)]
    conversation = [question, answer, {"role": "tool", "content": "a long\nreply"}]
    assert ours == tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)


def test_what_follows_the_mark_that_the_policy_wrote_is_appended():
    subject, tokenizer = marks(CHATML)
    text = tokenizer.decode(subject.tokens(Said("user", "2"), END))
    assert text == "\n<|system|>user\n2<|end|>\n<|system|>assistant\n"


def test_plain_text_has_no_marks():
    subject, _ = marks(chat=False)
    assert subject.tokens(Said("user", "2"), TWO).tolist() == [TWO]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (LAST_ENDS, r"it ends a turn with '<\|end\|>', but has '<\|pad\|>' there once a message follows"),
        (USERS_ONLY, "it leaves the message out"),
        (REFUSES, "it says: no tools"),
        ("{{ messages[0].content }}", "it leaves the assistant's turn out"),
    ],
)
def test_a_template_that_cannot_go_on_is_named_with_the_fix(template, why):
    subject, tokenizer = marks(template)
    tokenizer.name_or_path = "some/model"
    with pytest.raises(DataError, match=why) as error:
        subject.tokens(Said("tool", "2 more"), END)
    assert "chat template of some/model" in str(error.value) and "role `tool`" in str(error.value)
    assert "model.chat_template=FILE" in str(error.value)


def test_a_tokenizer_without_template_is_refused_at_once():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match="has no chat template"):
        TurnMarks(tokenizer, chat=True)
