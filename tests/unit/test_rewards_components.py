"""What each kind of reward gives, one by one: a number, None or a Failure, and never a bare 0 for what failed."""

import bdb
import os
import subprocess
import sys
import time

import pytest
from sample_groups import make_group

from rlpipe.data.flow import Failure
from rlpipe.recipe.rewards import ExactReward, MathReward, PythonReward
from rlpipe.rewards import function, maths
from rlpipe.rewards.exact import Exact
from rlpipe.rewards.killable import InProcess, Pool
from rlpipe.rewards.reward import Allowance, RewardUnusable


def score(reward, group, seconds=60.0):
    try:
        return reward.score(group, Allowance(seconds))
    finally:
        reward.close()


@pytest.fixture
def python(tmp_path):
    """Make a reward from source text; `where` picks the killable process or this one."""

    def make(source, where="process", deadline=20.0, options=None):
        (tmp_path / "mine.py").write_text(source)
        recipe = PythonReward(
            kind="python", name="mine", function="mine.py:f", deadline=deadline, options=options or {}
        )
        target = ("mine", function.FACTORY, function.factory_options(recipe, tmp_path))
        return function.Function(recipe, InProcess(*target) if where == "debug" else Pool(*target, 1, 60.0))

    return make


# Exact match


def test_exact_ignores_spaces_around_and_nothing_else():
    group = make_group([" 42\n", "42.", "4 2", ""], {"answer": 42})
    assert score(Exact(ExactReward(kind="exact")), group) == [1.0, 0.0, 0.0, 0.0]


def test_exact_without_its_column_is_a_failure_that_names_both():
    (outcome,) = score(Exact(ExactReward(kind="exact")), make_group(["42"], {"solution": "42"}))
    assert outcome == Failure(
        "missing_column", "the row has no column 'answer' (it has: 'solution'); set `answer_column`"
    )


# A user's function


@pytest.mark.parametrize("where", ["process", "debug"])
def test_function_gets_what_trl_passes(python, where):
    source = """
def f(prompts, completions, completion_ids, level, bonus, **columns):
    assert "prompt" not in columns
    return [len(p) + len(c) + 10 * i[1] + 1000 * l + bonus
            for p, c, i, l in zip(prompts, completions, completion_ids, level, strict=True)]
"""
    group = make_group(["a", "bb"], {"level": 3, "prompt": "raw"})
    assert score(python(source, where, options={"bonus": 0.5}), group) == [3085.5, 3096.5]


def test_a_function_that_asks_for_what_is_not_there_is_told_what_is(python):
    (outcome,) = score(python("def f(completions, answers): return [0.0]", "debug"), make_group(["a"], {"answer": 1}))
    assert outcome.kind == "exception"
    assert outcome.message.startswith("mine.py:f: TypeError: missing a required argument: 'answers'; there are: ")
    assert ": answer, prompts, completions, completion_ids (columns of the data" in outcome.message


def test_a_decorator_may_give_what_the_data_has_not(python):
    source = """
import functools
def served(f):
    @functools.wraps(f)
    def inner(**columns): return f(client=2.0, **columns)
    return inner
@served
def f(completions, client): return [client for _ in completions]
"""
    assert score(python(source, "debug"), make_group(["a"])) == [2.0]


def test_function_without_keywords_gets_only_what_it_names(python):
    assert score(python("def f(completions): return [len(c) for c in completions]"), make_group(["abc"])) == [3.0]


def test_async_function_is_awaited(python):
    assert score(python("async def f(completions, **_): return [0.5] * len(completions)"), make_group(["a"])) == [0.5]


def test_none_means_not_applicable_and_is_no_failure(python):
    source = "def f(completions, **_): return [None if 'skip' in c else 1 for c in completions]"
    assert score(python(source), make_group(["a", "skip"])) == [1.0, None]


def test_what_is_no_number_fails_its_row_alone(python):
    source = "def f(completions, **_): return [1.0, 'high', {}][: len(completions)]"
    good, word, empty = score(python(source), make_group(["a", "b", "c"]))
    assert good == 1.0
    assert word == Failure("not_a_number", "mine.py:f: returned 'high', which is no number")
    assert empty.kind == "not_a_number"


@pytest.mark.parametrize("where", ["process", "debug"])
def test_an_exception_fails_only_the_row_that_raises(python, where):
    source = "def f(completions, **_):\n    return [1 / len(c) for c in completions]\n"
    first, second, third = score(python(source, where), make_group(["a", "", "bb"]))
    assert (first, third) == (1.0, 0.5)
    assert second.kind == "exception"
    assert second.message.startswith("mine.py:f: ZeroDivisionError: division by zero (")
    assert second.message.endswith("mine.py:2)")


def test_of_an_exception_in_pythons_own_code_the_line_that_called_it_is_named(python):
    source = "import json\ndef f(completions):\n    return [json.loads(c) for c in completions]\n"
    (outcome,) = score(python(source, "debug"), make_group(["{"]))
    assert outcome.message.startswith("mine.py:f: JSONDecodeError: ")
    assert outcome.message.endswith("mine.py:3)")


def test_a_file_that_is_no_python_is_told_with_its_line_alone(python):
    with pytest.raises(RewardUnusable, match=r"SyntaxError: .* \(mine.py, line 2\)$"):
        python("import json\ndef f(completions)\n", "debug").ready()


def test_a_wrong_length_is_a_failure(python):
    outcomes = score(python("def f(completions, **_): return [1.0] * 3"), make_group(["a", "b"]))
    assert outcomes == [Failure("wrong_length", "mine.py:f: WrongLength: returned 3 rewards for 1 completions")] * 2


def test_a_function_of_an_installed_package_is_found_by_its_import_path(tmp_path, monkeypatch):
    package = tmp_path / "elsewhere" / "judges"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "parts.py").write_text("def size(text): return len(text)")
    source = "from judges.parts import size\ndef f(completions, **_): return [size(c) for c in completions]"
    (package / "length.py").write_text(source)
    monkeypatch.syspath_prepend(package.parent)
    recipe = PythonReward(kind="python", name="length", function="judges.length:f")
    pool = Pool("length", function.FACTORY, function.factory_options(recipe, tmp_path), 1, 60.0)
    assert score(function.Function(recipe, pool), make_group(["a", "bbb"])) == [1.0, 3.0]


def test_a_function_that_forgets_to_return_is_told(python):
    (outcome,) = score(python("def f(completions): pass"), make_group(["a"]))
    assert outcome == Failure("wrong_length", "mine.py:f: WrongLength: returned None instead of a list of 1 rewards")


def test_quitting_the_debugger_stops_the_run_instead_of_failing_the_row(python):
    with pytest.raises(bdb.BdbQuit):
        score(python("import bdb\ndef f(completions): raise bdb.BdbQuit", "debug"), make_group(["a"]))


def test_a_breakpoint_without_a_terminal_says_where_there_is_one(python, monkeypatch):
    source = "def f(completions):\n    breakpoint()\n    return [1.0]"
    (outcome,) = score(python(source, "process"), make_group(["a"]))
    assert outcome.kind == "exception" and "breakpoint() needs a terminal" in outcome.message
    assert "--debug" in outcome.message and outcome.message.endswith("mine.py:2)")
    monkeypatch.setenv("PYTHONBREAKPOINT", "0")  # what a person asks for goes before
    assert score(python(source, "process"), make_group(["a"])) == [1.0]


def test_a_row_that_hangs_is_killed_in_time_and_fails_alone(python):
    source = """
import time
def f(completions, **_):
    if "hang" in completions: time.sleep(1000)
    return [1.0] * len(completions)
"""
    reward = python(source, deadline=1.5)
    reward.ready()
    begin = time.monotonic()
    outcomes = score(reward, make_group(["a", "hang", "b", "c"]))
    assert time.monotonic() - begin < 20
    assert [o for o in outcomes if not isinstance(o, Failure)] == [1.0, 1.0, 1.0]
    assert outcomes[1] == Failure("deadline", "mine.py:f: no answer within 1.5 s; its process was killed")


def test_a_group_that_hangs_everywhere_ends_within_its_allowance(python):
    reward = python("import time\ndef f(completions): time.sleep(1000)", deadline=60.0)
    reward.ready()
    begin = time.monotonic()
    outcomes = score(reward, make_group(["a", "b", "c"]), seconds=2.0)
    assert time.monotonic() - begin < 20
    assert [o.kind for o in outcomes] == ["deadline"] * 3


def test_a_process_that_dies_fails_its_row_and_says_how(python):
    source = """
import os, sys
def f(completions, **_):
    if "segfault" in completions: os.kill(os.getpid(), 11)
    if "leave" in completions: print("so long"); os._exit(3)
    return [1.0] * len(completions)
"""
    good, segfault, leave = score(python(source), make_group(["a", "segfault", "leave"]))
    assert good == 1.0
    assert segfault == Failure("crashed", "mine.py:f: its process died of SIGSEGV")
    assert leave == Failure("crashed", "mine.py:f: its process exited with status 3, having printed: so long")


def test_sys_exit_is_an_exception_of_the_row(python):
    (outcome,) = score(python("import sys\ndef f(completions): sys.exit(2)"), make_group(["a"]))
    assert outcome.kind == "exception"
    assert "SystemExit: 2" in outcome.message


def test_the_child_has_a_main_thread_and_neither_torch_nor_ray(python):
    source = """
import os, sys, threading
def f(completions, **_):
    clean = not {"torch", "ray"} & set(sys.modules) and not any(k.startswith("RAY_") for k in os.environ)
    return [float(clean and threading.current_thread() is threading.main_thread())]
"""
    assert score(python(source), make_group(["a"])) == [1.0]


@pytest.mark.parametrize("where", ["process", "debug"])
@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def g(completions): return []", "no function 'f' (functions there: g)"),
        ("import no_such_package_here", "No module named 'no_such_package_here'"),
        ("def f(:", "SyntaxError"),
    ],
)
def test_a_function_that_cannot_be_loaded_stops_the_run_before_any_row(python, where, source, says):
    reward = python(source, where)
    with pytest.raises(RewardUnusable, match="reward 'mine'") as error:
        reward.ready()
    assert says in str(error.value)


def test_a_missing_file_is_named_with_every_place_looked_at(tmp_path):
    recipe = PythonReward(kind="python", name="mine", function="absent.py:f")
    caller = InProcess("mine", function.FACTORY, function.factory_options(recipe, tmp_path))
    with pytest.raises(RewardUnusable) as error:
        caller.ready()
    assert f"no such file: {tmp_path}/absent.py nor " in str(error.value)


PARENT = """
import sys
from rlpipe.rewards.killable import Killable
options = {"function": "mine.py:f", "base_dir": sys.argv[1], "options": {}}
child = Killable("mine", "rlpipe.rewards.user_code:load", options, 60)
child.ready()
print(child._process.pid, flush=True)
child.call({"completions": ["x"]}, 600)
"""


def test_a_parent_that_is_killed_leaves_no_process_behind(tmp_path):
    (tmp_path / "mine.py").write_text("import time\ndef f(completions): time.sleep(1000)")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT, tmp_path], stdout=subprocess.PIPE, env=environment)
    child = int(parent.stdout.readline())
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 10
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(child)


def running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


# Mathematics


def math_reward(answer_after=None, processes=1):
    recipe = MathReward(kind="math", answer_after=answer_after, processes=processes)
    return maths.Maths(recipe, Pool("math", maths.FACTORY, {}, processes, 60.0))


def test_math_right_wrong_and_unreadable_responses():
    completions = ["The answer is 1/2.", "\\boxed{0.5}", "so it is $\\frac{1}{2}$", "It is 2", "I do not know", ""]
    outcomes = score(math_reward(), make_group(completions, {"answer": "0.5"}))
    assert outcomes == [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


def test_math_reference_after_its_mark_and_the_same_mark_in_the_response():
    answer = "16 - 3 = <<16-3=13>>13 eggs, $26\n#### 1,026"
    completions = ["#### 1026", "It costs $5 and $6\n#### 1026", "1026 is not it\n#### 7", "the total is 1026"]
    outcomes = score(math_reward("####"), make_group(completions, {"answer": answer}))
    assert outcomes == [1.0, 1.0, 0.0, 1.0]


def test_an_unreadable_reference_is_a_failure_not_a_wrong_answer():
    (outcome,) = score(math_reward(), make_group(["42"], {"answer": " "}))
    assert outcome == Failure("unparseable_reference", "Math-Verify reads no answer in the reference ' '")


def test_a_reference_without_its_mark_is_a_failure():
    (outcome,) = score(math_reward("####"), make_group(["42"], {"answer": "42"}))
    assert outcome == Failure("unparseable_reference", "no answer_after='####' in the reference '42'")


def test_a_response_that_hangs_the_parser_is_killed_and_fails_alone():
    reward = math_reward()
    reward._recipe = MathReward(kind="math", deadline=2.0)
    reward.ready()
    begin = time.monotonic()
    hang, right = score(reward, make_group(["$9^{9^{9^{9}}} + 1$", "42"], {"answer": "42"}))
    assert time.monotonic() - begin < 30
    assert right == 1.0
    assert hang == Failure("deadline", "no answer within 2 s; its process was killed")
