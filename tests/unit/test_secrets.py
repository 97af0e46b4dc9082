"""Keys: where they come from, who keeps them, and texts without them."""

import os

import pytest

from rlpipe.data.flow import Failure
from rlpipe.data.storage import Storage
from rlpipe.observe import events
from rlpipe.pipelines import resuming
from rlpipe.recipe import secrets
from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load
from rlpipe.rewards.killable import Killable
from rlpipe.runtime import tracebacks

KEY = "wandb-0123456789"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(secrets, "_known", set())
    monkeypatch.setattr(secrets, "_named", set())
    for name in [name for name in os.environ if secrets.is_secret(name)]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("WANDB_API_KEY", True), ("HF_TOKEN", True), ("MLFLOW_TRACKING_PASSWORD", True), ("MLFLOW_TRACKING_URI", True),
        ("OPENAI_API_KEY", True), ("JUDGE_SECRET", True), ("PATH", False), ("TOKENIZERS_PARALLELISM", False),
        ("RAY_AUTH_TOKEN", False), ("AWS_SECRET_ACCESS_KEY", False), ("OPENAI_KEY", True), ("KEYBOARD", False),
    ],
)  # fmt: skip
def test_what_is_kept_from_processes_that_do_not_need_it(name, kept):
    assert secrets.is_secret(name) is kept
    assert (name in secrets.without({name: "x"})) is not kept
    assert secrets.without({name: "x"}, [name]) == {name: "x"}


def test_the_file_of_a_key_is_kept_like_the_key():
    assert secrets.without({"HF_TOKEN_FILE": "/run/secrets/hub", "SSL_CERT_FILE": "/x"}) == {"SSL_CERT_FILE": "/x"}


def test_a_key_is_read_from_its_file_where_the_variable_is_not_set(monkeypatch, tmp_path):
    (tmp_path / "key").write_text(f"{KEY}\n")
    monkeypatch.setenv("WANDB_API_KEY_FILE", str(tmp_path / "key"))
    monkeypatch.setenv("WANDB_API_KEY", "")
    monkeypatch.delenv("WANDB_API_KEY")
    secrets.read_files()
    assert os.environ["WANDB_API_KEY"] == KEY
    monkeypatch.setenv("WANDB_API_KEY", "mine")
    secrets.read_files()
    assert os.environ["WANDB_API_KEY"] == "mine"
    monkeypatch.setenv("HF_TOKEN_FILE", str(tmp_path / "none"))
    with pytest.raises(
        secrets.SecretUnreadable, match=r"HF_TOKEN_FILE=.*none, which is to hold HF_TOKEN, cannot be read"
    ):
        secrets.read_files()


def test_values_are_hidden_wherever_they_came_from_and_however_they_are_written(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:pass+word-9@host")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    secrets.learn({"options": {"api_key": "from-the-recipe"}, "url": "https://host/x?token=in-the-url&a=1"})
    assert secrets.hide(f"a {KEY} b from-the-recipe c in-the-url") == "a [redacted] b [redacted] c [redacted]"
    assert secrets.hide("pass%2Bword-9") == "[redacted]" == secrets.hide("me:pass+word-9")
    assert secrets.hide("alphabet abc") == "alphabet abc", "too short to be looked for"


def test_what_a_recipe_names_is_a_secret_whatever_it_is_called(monkeypatch, tmp_path):
    (tmp_path / "key").write_text("judge-0123456789")
    monkeypatch.setenv("JUDGE_FILE", str(tmp_path / "key"))
    secrets.settle({"stages": {"rl": {"rewards": {"mix": [{"token_env": "JUDGE"}, {"secrets": ["OTHER"]}]}}}})
    assert os.environ["JUDGE"] == "judge-0123456789" and secrets.hide("judge-0123456789") == "[redacted]"
    assert secrets.without({"JUDGE": "x", "OTHER": "x", "ANOTHER": "x"}) == {"ANOTHER": "x"}
    monkeypatch.delenv("JUDGE")


def test_what_is_shown_of_an_error_has_none(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    secrets.settle({})
    assert tracebacks.clean(ValueError(f"the key {KEY} is wrong")) == "ValueError: the key [redacted] is wrong"


def test_events_and_failures_have_none(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    secrets.learn()
    shown = []
    log = events.EventLog(Storage(tmp_path), views=[shown.append])
    log.warning(f"the key {KEY} is wrong")
    log.evaluation(1, {"reward": 1.0}, [{"prompt": KEY}])
    log.close()
    assert KEY not in str(shown) and KEY not in (tmp_path / "events.jsonl").read_text()
    assert shown[0]["message"] == "the key [redacted] is wrong" and shown[1]["metrics"] == {"reward": 1.0}
    assert Failure("exception", f"401: {KEY}").message == "401: [redacted]"


def test_an_error_loses_them_and_stays_the_error_it_was(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hub-0123456789")
    secrets.learn()
    with pytest.raises(ConnectionError, match=r"^401 for \[redacted\]$"), secrets.hidden_in_errors():
        raise ConnectionError("401 for hub-0123456789")


def test_a_process_takes_what_it_may_have_and_keeps_what_its_node_gave_it(monkeypatch):
    monkeypatch.setattr(os, "environ", {"HF_TOKEN": "of-the-node", "WANDB_API_KEY": KEY, "PATH": "/bin"})
    secrets.take({}, ["HF_TOKEN"])
    assert os.environ == {"HF_TOKEN": "of-the-node", "PATH": "/bin"}
    secrets.take({"HF_TOKEN": "of-the-driver"}, ["HF_TOKEN"])
    assert os.environ == {"HF_TOKEN": "of-the-driver", "PATH": "/bin"}


def test_what_is_started_meanwhile_inherits_none(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with secrets.withheld():
        assert "WANDB_API_KEY" not in os.environ and "PATH" in os.environ
    assert os.environ["WANDB_API_KEY"] == KEY


ASKING = """
import os

def asks(key):
    return lambda request: os.environ[key]
"""


def test_a_reward_s_process_gets_the_keys_it_names_and_says_which_it_lacks(monkeypatch, tmp_path):
    (tmp_path / "asking.py").write_text(ASKING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("JUDGE_API_KEY", "judge-0123456789")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    judge = Killable("judge", "asking:asks", {"key": "JUDGE_API_KEY"}, 30, secrets=["JUDGE_API_KEY"])
    other = Killable("judge", "asking:asks", {"key": "WANDB_API_KEY"}, 30, secrets=["JUDGE_API_KEY"])
    for process in (judge, other):
        process.start()
    try:
        judge.ready()
        assert judge.call(None, 10) == "judge-0123456789"
        other.ready()
        failure = other.call(None, 10)
        assert failure.message.startswith("KeyError: 'WANDB_API_KEY'")
        says = "WANDB_API_KEY is kept from its process: name it in `secrets` of this reward 'judge'"
        assert failure.message.endswith(says)
    finally:
        judge.close()
        other.close()


def test_a_key_in_place_of_its_name_is_an_error_that_does_not_repeat_it(tmp_path):
    (tmp_path / "r.py").write_text("")
    reward = "{kind: python, name: judge, function: 'r.py:f', secrets: [sk-0123456789abcdef]}"
    (tmp_path / "my.yaml").write_text(f"extends: arithmetic/grpo\nrewards: {{mix: [{reward}]}}\n")
    with pytest.raises(RecipeError, match="expected the name of an environment variable") as error:
        load(tmp_path / "my.yaml")
    assert "sk-0123456789abcdef" not in str(error.value)


def test_a_password_that_is_also_the_user_s_name_is_no_secret_by_itself(monkeypatch):
    monkeypatch.setenv("DATABASE_CONN", "postgresql://airflow:airflow@postgres/airflow")
    secrets.learn()
    assert secrets.hide("/home/airflow/models with postgresql://airflow:airflow@postgres") == (
        "/home/airflow/models with postgresql://[redacted]@postgres"
    )


def test_the_hidden_recipe_of_a_run_is_the_one_it_is_resumed_with(monkeypatch, tmp_path):
    monkeypatch.setenv("DATABASE_PASSWORD", "arithmetic")
    secrets.learn()
    recipe = load("arithmetic/grpo", ["model.path=/models/arithmetic-sft"])
    (tmp_path / "ledger").mkdir()
    text = resuming.own_recipe(recipe, tmp_path)
    assert "/models/[redacted]-sft" in text and "arithmetic" not in text
    (tmp_path / "recipe.yaml").write_text(text)
    resuming.refuse_changes(recipe, tmp_path)


def test_what_a_job_brought_along_is_named_from_its_run_directory(tmp_path):
    path = f"{tmp_path}/inputs/files-0/sums"
    assert "path: inputs/files-0/sums\n" in resuming.own_recipe(
        load("arithmetic/grpo", [f"model.path={path}"]), tmp_path
    )
