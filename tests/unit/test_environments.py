"""The embedded environments, a user's class, and the stage that asks them."""

import threading
import time

import pytest

from rlpipe.data.flow import Failure
from rlpipe.recipe.environment import Calculator as CalculatorRecipe
from rlpipe.recipe.environment import GuessNumber as GuessRecipe
from rlpipe.recipe.environment import PythonEnvironment, SingleTurn
from rlpipe.recipe.run import Deadlines
from rlpipe.rewards.reward import RewardUnusable
from rlpipe.rollout.environments import End, Reply, Response
from rlpipe.rollout.environments.calculator import Calculator, answer
from rlpipe.rollout.environments.guess_number import GuessNumber
from rlpipe.rollout.environments.stage import EnvironmentStage, build


def said(text, complete=True):
    return Response(text, (7,), complete)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("23*4", "92"),
        (" 2 + 3*(4-1) ", "11"),
        ("7/2", "3.5"),
        ("6/3", "2"),
        ("7//2", "3"),
        ("-7%3", "2"),
        ("2**10", "1024"),
        ("1/3", "0.333333333333"),
        ("99999999999999999999+1", "100000000000000000000"),
        ("30000000000000000000/3", "10000000000000000000"),
        ("1/0", "error: division by zero"),
        ("0**-1", "error: division by zero"),
        ("9**9**9**9", "error: too large"),
        ("9**65", "error: too large"),
        ("9**64", "error: too large"),
        ("(10.0**30)**64", "error: too large"),
        ("(-8)**0.5", "error: not a real number"),
        ("", "error: not arithmetic"),
        ("2+", "error: not arithmetic"),
        ("007+1", "error: not arithmetic"),
        ("(1,2)", "error: not arithmetic"),
        ("1<2", "error: not arithmetic"),
        ("abs(1)", "error: not arithmetic"),
        ("__import__('os')", "error: not arithmetic"),
        ("2(3)", "error: not arithmetic"),
        ("(" * 200, "error: not arithmetic"),
        ("-" * 199 + "1", "-1"),
        ("1+" * 100 + "1", "error: too long"),
        ("9" * 200, "error: too large"),
    ],
)
def test_the_calculator_works_out_arithmetic_and_nothing_else(expression, expected):
    begin = time.monotonic()
    assert answer(expression) == expected
    assert time.monotonic() - begin < 0.5


def test_the_calculator_answers_calls_until_there_is_none():
    tool = Calculator(CalculatorRecipe(kind="calculator"))
    state = tool.reset({}, 1)
    assert tool.step(state, said("so <calc>23*4</calc>")) == Reply("92", "tool")
    assert tool.step(state, said("<calc>1+1</calc> and <calc>x</calc>")) == Reply("2\nerror: not arithmetic", "tool")
    assert tool.step(state, said("<calc>1+1")) == Reply("error: a call ends with </calc>", "tool")
    assert tool.step(state, said("92")) == End()


def test_the_calculator_answers_as_a_user_where_the_template_has_no_tool():
    tool = Calculator(CalculatorRecipe(kind="calculator", role="user"))
    assert tool.step(None, said("<calc>1+1</calc>")).role == "user"


def test_guess_number_says_higher_lower_and_what_it_was_worth():
    game = GuessNumber(GuessRecipe(kind="guess_number", max_turns=4, discount=0.25))
    state = game.reset({"answer": "17"}, 1)
    worth = {"reward": 0.0}
    assert game.step(state, said("9")) == Reply("higher", components={"found": 0.0, "guesses": 1.0}, **worth)
    assert game.step(state, said(" 20 ")) == Reply("lower", components={"found": 0.0, "guesses": 2.0}, **worth)
    assert game.step(state, said("17")) == End(0.5, {"found": 1.0, "guesses": 3.0})


def test_guess_number_ends_lost_with_the_last_guess():
    game = GuessNumber(GuessRecipe(kind="guess_number", max_turns=2))
    state = game.reset({"answer": "17"}, 1)
    assert game.step(state, said("seventeen")).text == "not a number"
    assert game.step(state, said("17", complete=False)) == End(0.0, {"found": 0.0, "guesses": 2.0})


def test_guess_number_without_a_number_says_where_it_comes_from():
    with pytest.raises(KeyError, match=r"no column `answer` \(it has \['reference'\]\); see data.kind=guess_number"):
        GuessNumber(GuessRecipe(kind="guess_number")).reset({"reference": 1}, 1)


class Slow:
    """Takes as long as the text says, and counts what it was asked."""

    def __init__(self):
        self.release, self.threads = threading.Event(), set()

    def reset(self, columns, seed):
        return columns | {"seed": seed}

    def step(self, state, response):
        self.threads.add(threading.current_thread())
        if response.text == "hang":
            self.release.wait(20)
        if response.text == "raise":
            raise ValueError("by design")
        return Reply(response.text)

    def start(self): ...
    def ready(self): ...
    def close(self): ...


def drained(stage, seconds=5.0):
    answers, until = {}, time.monotonic() + seconds
    while stage.outstanding and time.monotonic() < until:
        answers |= dict(stage.finished(0.2))
    return answers


def test_a_step_that_hangs_or_raises_is_a_failure_and_the_others_go_on():
    environment = Slow()
    with EnvironmentStage(environment, threads=1, seconds=0.3) as stage:
        for text in ("one", "hang", "raise", "two"):
            stage.step(text, None, said(text))
        begin = time.monotonic()
        answers = drained(stage)
        assert time.monotonic() - begin < 2.0
        assert answers["one"] == Reply("one") and answers["two"] == Reply("two")
        assert answers["hang"].kind == "deadline" and "deadlines.environment=0.3 s" in answers["hang"].message
        assert answers["raise"].kind == "exception" and "ValueError: by design" in answers["raise"].message
        environment.release.set()  # its late answer is dropped
        stage.step("three", None, said("three"))
        assert drained(stage) == {"three": Reply("three")}
    assert len(environment.threads) == 2


def test_without_threads_the_caller_waits():
    environment = Slow()
    with EnvironmentStage(environment, threads=0, seconds=0.01) as stage:
        stage.reset("r", {"a": 1}, 5)
        stage.step("s", None, said("x"))
        assert stage.outstanding == 2
        assert dict(stage.finished(0.0)) == {"r": {"a": 1, "seed": 5}, "s": Reply("x")}
        assert stage.outstanding == 0 and stage.finished(60.0) == []
    assert environment.threads == {threading.current_thread()}


ECHO = """
import asyncio, os, random, time
from rlpipe.rollout.environments import End, Reply

class State:
    def __init__(self, column, seed):
        self.said, self.column, self.roll = [], column, random.Random(seed).randint(1, 6)

class Echo:
    def __init__(self, limit=2):
        self.limit = limit

    def reset(self, columns, seed):
        return State(columns["word"], seed)

    async def step(self, state, response):
        await asyncio.sleep(0)
        if response.text == "hang":
            time.sleep(60)
        if response.text == "die":
            os._exit(3)
        if response.text == "wrong":
            return "text"
        state.said.append(response.text)
        if len(state.said) == self.limit:
            return End(float(state.roll), {"pid": float(os.getpid())})
        return Reply(f"{state.column} {response.tokens} {response.complete} {state.said}", role="tool")

class Unpicklable:
    def reset(self, columns, seed):
        return lambda: None
    def step(self, state, response): ...

class Nothing: ...
"""


def python(tmp_path, name="Echo", debug=False, seconds=5.0, **settings):
    file = tmp_path / "mine.py"
    file.write_text(ECHO)
    recipe = PythonEnvironment(kind="python", implementation=f"{file}:{name}", **settings)
    return build(recipe, Deadlines(environment=seconds), debug)


@pytest.mark.parametrize("debug", [True, False])
def test_a_class_of_the_users(tmp_path, debug):
    with python(tmp_path, debug=debug, options={"limit": 2}) as stage:
        stage.ready()
        stage.reset("a", {"word": "so"}, 3)
        state = drained(stage)["a"]
        stage.step("a", state, said("one", complete=False))
        assert drained(stage)["a"] == Reply("so (7,) False ['one']", "tool")
        stage.step("a", state, said("two"))
        end = drained(stage)["a"]
        assert isinstance(end, End) and 1 <= end.reward <= 6
        stage.step("a", state, said("wrong"))
        assert "Echo.step returned 'text' and no End or Reply" in drained(stage)["a"].message


def test_a_class_that_hangs_or_dies_takes_its_own_step_with_it_only(tmp_path):
    with python(tmp_path, seconds=1.0) as stage:
        stage.ready()
        stage.reset("a", {"word": "so"}, 3)
        state = drained(stage)["a"]
        for text in ("hang", "die", "fine"):
            stage.step(text, state, said(text))
        answers = drained(stage, 20.0)
    assert (answers["hang"].kind, answers["die"].kind) == ("deadline", "crashed")
    assert isinstance(answers["fine"], Reply)


def test_a_class_that_cannot_work_says_why(tmp_path):
    with (
        python(tmp_path, "Nothing", debug=True) as stage,
        pytest.raises(RewardUnusable, match=r"environment '.*mine.py:Nothing': .* no method reset and no method step"),
    ):
        stage.ready()
    with python(tmp_path, "Unpicklable", debug=True) as stage:
        stage.reset("a", {}, 1)
        ((_, failure),) = stage.finished(1.0)
    assert isinstance(failure, Failure) and "the state of an episode must be picklable" in failure.message


def test_a_single_turn_has_no_environment():
    assert build(SingleTurn(kind="single_turn"), Deadlines(), debug=False) is None


TOGETHER = """
import asyncio
from rlpipe.rollout.environments import End, Reply

class Waits:
    def __init__(self):
        self.here, self.most = 0, 0

    async def reset(self, columns, seed):
        return columns

    async def step(self, state, response):
        self.here += 1
        self.most = max(self.most, self.here)
        await asyncio.sleep(0.05)
        self.here -= 1
        if response.text == "raise":
            raise ValueError("by design")
        if response.text == "die":
            import os; os._exit(3)
        return Reply(f"{response.text} {self.most}")

class Batch(Waits):
    def step_batch(self, states, responses):
        if any(response.text == "raise" for response in responses):
            raise ValueError("by design")
        for state in states:
            state["seen"] = len(states)
        return [Reply(f"{response.text} of {len(states)}") for response in responses]

class Own:
    def reset(self, columns, seed):
        return asyncio.run(asyncio.sleep(0, columns))

    def step(self, state, response):
        return End(asyncio.run(asyncio.sleep(0, 1.0)))
"""


def together(tmp_path, name, texts, debug, batch=8):
    """What each text is answered with, all of them asked before the first answer is waited for."""
    file = tmp_path / "mine.py"
    file.write_text(TOGETHER)
    recipe = PythonEnvironment(kind="python", implementation=f"{file}:{name}", batch=batch)
    with build(recipe, Deadlines(environment=5.0), debug) as stage:
        stage.ready()
        for text in texts:
            stage.reset(text, {"word": text}, 1)
        states = drained(stage, 20.0)
        for text in texts:
            stage.step(text, states[text], said(text))
        return drained(stage, 20.0)


def test_async_steps_of_a_batch_wait_side_by_side(tmp_path):
    answers = together(tmp_path, "Waits", ["a", "b", "c", "d"], debug=True)
    assert answers == {text: Reply(f"{text} 4") for text in "abcd"}
    assert together(tmp_path, "Waits", ["a", "b"], debug=True, batch=1) == {text: Reply(f"{text} 1") for text in "ab"}


def test_one_of_a_batch_fails_alone(tmp_path):
    answers = together(tmp_path, "Waits", ["a", "raise", "b"], debug=True)
    assert answers["a"].text == "a 3" and answers["b"].text == "b 3"
    assert answers["raise"].kind == "exception" and "ValueError: by design" in answers["raise"].message
    answers = together(tmp_path, "Waits", ["a", "die", "b"], debug=False)
    assert answers["die"].kind == "crashed" and isinstance(answers["a"], Reply) and isinstance(answers["b"], Reply)


def test_a_class_that_takes_batches_gets_them(tmp_path):
    answers = together(tmp_path, "Batch", ["a", "b", "c"], debug=True)
    assert answers == {text: Reply(f"{text} of 3") for text in "abc"}
    answers = together(tmp_path, "Batch", ["a", "raise"], debug=True)  # each again, by `step`
    assert answers["a"] == Reply("a 1") and "ValueError: by design" in answers["raise"].message


def test_a_class_may_have_an_event_loop_of_its_own(tmp_path):
    assert together(tmp_path, "Own", ["a", "b"], debug=True) == {"a": End(1.0), "b": End(1.0)}
