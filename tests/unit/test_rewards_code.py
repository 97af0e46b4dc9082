"""The reward that runs programs: what they score, and what becomes of those that attack the machine.

Each attack asserts the kind of its failure and that this machine has come to no harm: no process left, no file, no
connection, no secret read.
"""

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pydantic import ValidationError
from sample_groups import make_group

import rlpipe
from rlpipe.data.flow import Failure
from rlpipe.recipe.rewards import CodeReward
from rlpipe.rewards import code
from rlpipe.rewards.code_tests import Pair, read_tests, same_output
from rlpipe.rewards.killable import Pool
from rlpipe.rewards.reward import Allowance, RewardUnusable
from rlpipe.rewards.sandbox import sandbox, seccomp

PROBLEM = sandbox.problem()
isolated = pytest.mark.skipif(PROBLEM is not None, reason=f"programs cannot be isolated here: {PROBLEM}")
ROOTS = [str(Path(rlpipe.__file__).parent), sys.prefix, os.getcwd()]
SECRET = "planted-5e1f"
ECHO = [{"input": "hi", "output": "hi\n"}]


def make(**keys):
    recipe = CodeReward(kind="code", **keys)
    return code.Code(recipe, Pool("code", code.FACTORY, code.factory_options(recipe), recipe.processes, 60.0))


@pytest.fixture(scope="module")
def shared():
    """One reward for the tests that take the defaults, but for a short deadline."""
    os.environ["PLANTED_SECRET"] = SECRET
    reward = make(deadline=3.0)
    yield reward
    reward.close()
    del os.environ["PLANTED_SECRET"]


def score(reward, programs, tests=ECHO, seconds=60.0):
    return reward.score(make_group(programs, {"tests": tests}), Allowance(seconds))


def once(programs, tests=ECHO, seconds=60.0, **keys):
    reward = make(**keys)
    try:
        return score(reward, programs, tests, seconds)
    finally:
        reward.close()


# What a program scores


@isolated
def test_output_is_compared_but_for_spaces_at_the_ends(shared):
    programs = ["print(input())", "```python\nprint(input() + '  ')\nprint()\n```", "print('HI')", "print(", "1/0", ""]
    assert score(shared, programs) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


@isolated
def test_snippets_test_what_the_program_defines(shared):
    tests = ["assert double(2) == 4", "assert double('a') == 'aa'"]
    programs = ["def double(x): return 2 * x", "def double(x): return x * x", "x = 1"]
    assert score(shared, programs, tests) == [1.0, 0.0, 0.0]
    assert score(shared, programs, tests[0]) == [1.0, 1.0, 0.0]


@isolated
def test_credit_for_a_share_of_the_tests():
    snippets = ["assert f(1) == 1", "assert f(2) == 4", "assert f(3) == 9", "assert f(-1) == -1"]
    assert once(["def f(x): return x", "def f(x): return 1 / 0"], snippets, credit="share") == [0.5, 0.0]
    pairs = [{"input": str(i), "output": str(abs(i))} for i in (1, -1)]
    assert once(["print(input())"], pairs, credit="share") == [0.5]


@isolated
def test_an_exit_behind_the_right_output_is_right_unless_it_says_failure(shared):
    assert score(shared, [f"print(input())\nimport sys; sys.exit({code})" for code in (0, 3)]) == [1.0, 0.0]


@isolated
def test_what_honest_programs_need_works():
    """Its own folder, temporary files, threads, processes, asyncio, the standard library's C parts."""
    program = """
import asyncio, ctypes, hashlib, multiprocessing, pathlib, sqlite3, ssl, subprocess, sys, tempfile, threading, zlib
pathlib.Path("mine").write_text("1"); tempfile.mkstemp()
asyncio.run(asyncio.sleep(0)); thread = threading.Thread(target=print, args=("hi",)); thread.start(); thread.join()
assert multiprocessing.get_context("fork").Pool(2).map(abs, [-1, 2]) == [1, 2]
assert subprocess.run([sys.executable, "-c", "print(3)"], capture_output=True, text=True).stdout == "3\\n"
from dataclasses import dataclass
@dataclass
class Point: x: int
"""
    assert once([program]) == [1.0]


@isolated
def test_a_program_sees_this_python_an_empty_folder_and_nothing_else(shared):
    known = [str(folder) for folder in Path(os.path.realpath(sys.executable)).parents]  # they hold Python and no more
    away = [path for path in ("/etc", "/proc", "/sys", "/home", "/tmp", "/var", *ROOTS) if path not in known]
    program = f"""
import os, sys
print(os.getcwd(), os.listdir("."), [path for path in {away} if os.path.exists(path)])
modules = os.path.join(os.path.dirname(os.__file__), "site-packages")
print(os.listdir(modules) if os.path.exists(modules) else [])
"""
    assert score(shared, [program], [{"input": "", "output": "/box [] []\n[]"}]) == [1.0]


@isolated
def test_the_programs_of_a_group_run_side_by_side():
    reward = make()
    try:
        reward.ready()
        begin = time.monotonic()
        assert score(reward, ["import time; time.sleep(1); print('hi')"] * 4) == [1.0] * 4
        assert time.monotonic() - begin < 3.8
    finally:
        reward.close()


@isolated
def test_a_group_that_hangs_everywhere_ends_within_its_allowance(shared):
    shared.ready()
    begin = time.monotonic()
    outcomes = score(shared, ["while True: pass"] * 6, ECHO * 3, seconds=3.0)
    assert time.monotonic() - begin < 15
    assert [o.kind for o in outcomes] == ["deadline"] * 6


@isolated
def test_a_call_is_quick(shared):
    shared.ready()
    score(shared, ["print(input())"])
    begin = time.monotonic()
    score(shared, ["print(input())"] * 20)
    assert (time.monotonic() - begin) / 20 < 0.5  # 0.02 s on a machine that does nothing else


# Attacks


def sandboxed():
    """Processes of our sandboxes, told by the file that runs in them."""
    found = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words and (b"/inside/main.py" in words or words[0] == b"rlpipe-left-behind") and below(int(pid)):
            found.append(int(pid))
    return found


def below(pid):
    """Is it ours, or nobody's (its parent is process 1)? Other test runs have sandboxes, too."""
    parents = []
    while pid > 1:
        try:
            stat = Path("/proc", str(pid), "stat").read_text()
        except OSError:
            return False
        pid = int(stat.rpartition(")")[2].split()[1])
        parents.append(pid)
    return os.getpid() in parents or parents == [1]


def attack(reward, program, kind):
    """Score it; the failure, once it is certain that nothing of it runs any more and that this process lives."""
    reward.ready()
    (outcome,) = score(reward, [program])
    assert isinstance(outcome, Failure), outcome
    assert (outcome.kind, sandboxed()) == (kind, []), outcome
    assert score(reward, ["print(input())"]) == [1.0], "the reward goes on"
    return outcome


@isolated
@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("import os\nwhile True: os.fork()", "processes"),
        ("import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(99,), daemon=True).start()",
         "processes"),
        ("import os, time\nwhile True:\n  try: os.fork()\n  except OSError: pass", "deadline"),
    ],
)  # fmt: skip
def test_fork_bomb(shared, program, kind):
    attack(shared, program, kind)


@isolated
@pytest.mark.parametrize("program", ["while True: pass", "import time; time.sleep(1000)", "9**9**9"])
def test_endless_loop(shared, program):
    begin = time.monotonic()
    attack(shared, program, "deadline")
    assert time.monotonic() - begin < 15


@isolated
@pytest.mark.parametrize(
    "program",
    [
        "x = bytearray(10 << 30)",
        "import time\nx = []\nwhile True: x.append(bytearray(1 << 20))",
        # each below its limit, all together beyond; memory of one's own, and shared memory
        "import mmap, os, time\nfor _ in range(3): os.fork()\n"
        "x = mmap.mmap(-1, 200 << 20)\nx.write(bytes(200 << 20))\ntime.sleep(99)",
        "import os, time\nfor _ in range(3): os.fork()\nx = bytearray(200 << 20)\ntime.sleep(99)",
    ],
)
def test_ten_gigabytes(shared, program):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    attack(shared, program, "memory")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


@isolated
@pytest.mark.parametrize(
    "path", ["/etc/passwd", "/proc/1/environ", "/proc/self/environ", "/root/.bashrc", rlpipe.__file__]
)
def test_reading_files_of_the_machine(shared, path):
    assert path in attack(shared, f"print(open({path!r}).read())", "forbidden").message


@isolated
def test_reading_the_environment(shared):
    assert os.environ["PLANTED_SECRET"] == SECRET
    assert "PLANTED_SECRET" in attack(shared, "import os; print(os.environ['PLANTED_SECRET'])", "forbidden").message


@isolated
def test_the_secret_is_nowhere_in_the_sandbox(shared):
    """Neither in the environment nor in any file."""
    program = f"""
import os
halves = {SECRET[:6]!r}, {SECRET[6:]!r}
secret = "".join(halves).encode()
assert not any(secret in part for pair in os.environb.items() for part in pair)
for folder, _, files in os.walk("/"):
    for file in files:
        path = os.path.join(folder, file)
        if os.path.isfile(path) and "python3" not in folder and "/lib" not in folder:
            assert secret not in open(path, "rb").read(), path
print("hi")
"""
    assert score(shared, [program]) == [1.0]


@isolated
@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.create_connection(('127.0.0.1', {port}))",
        "import socket\ntry: socket.socket()\nexcept OSError: pass",
        "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}')",
    ],
)
def test_opening_a_socket(shared, program):
    with socket.create_server(("127.0.0.1", 0)) as server:
        attack(shared, program.format(port=server.getsockname()[1]), "forbidden")
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


@isolated
@pytest.mark.parametrize("target", ["os.getppid()", "1", "-1"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killing_the_parent_or_everybody(shared, target, number):
    attack(shared, f"import os; os.kill({target}, {int(number)})", "forbidden")


@isolated
def test_other_processes_are_not_to_be_seen(shared):
    """A process id of this machine means nobody in there."""
    with subprocess.Popen(["sleep", "60"]) as bystander:
        program = f"import os\ntry: os.kill({bystander.pid}, 9)\nexcept ProcessLookupError: print('hi')"
        try:
            assert score(shared, [program]) == [1.0]
            assert bystander.poll() is None
        finally:
            bystander.kill()


@isolated
def test_writing_outside(shared, tmp_path):
    project = Path(rlpipe.__file__).parent
    for folder in (Path("/tmp"), tmp_path, project, Path("/"), Path(sys.executable).parent):
        file = folder / "rlpipe-was-here"
        attack(shared, f"open({str(file)!r}, 'w').write('x')", "forbidden")
        assert not file.exists()


@isolated
def test_changing_the_interpreter(shared):
    attack(shared, "import os; open(os.__file__, 'a').write('#')", "forbidden")
    attack(shared, "import os; os.remove('/inside/main.py')", "forbidden")


@isolated
def test_a_folder_is_gone_with_its_program(shared):
    show = "import os; print(os.listdir('.') or input())"
    assert score(shared, ["open('kept', 'w').write('x'); print(input())", show, show, show]) == [1.0] * 4


@isolated
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_printing_a_gigabyte(shared, stream):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    free = shutil.disk_usage("/").free
    attack(shared, f"import sys\nfor _ in range(1000): sys.{stream}.write('x' * 2**20)", "output")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000
    assert free - shutil.disk_usage("/").free < 500 << 20


@isolated
@pytest.mark.parametrize(
    "program",
    [
        "open('x', 'wb').write(bytes(1 << 28))",
        "for i in range(99): open(str(i), 'wb').write(bytes(1 << 20))",
        "files = [open(str(i), 'w') for i in range(999)]",
    ],
)
def test_filling_the_disk(shared, program):
    attack(shared, program, "files")


@isolated
@pytest.mark.parametrize(
    "call",
    ["unshare(0x10000000)", "ptrace(0, 0, 0, 0)", "mount(b'a', b'/', b'tmpfs', 0, 0)", "shmget(0, 4096, 0o1600)",
     "memfd_create(b'x', 0)", "syscall(250, 0, 0)"],
)  # fmt: skip
def test_reaching_for_the_kernel(shared, call):
    if "syscall" in call and os.uname().machine != "x86_64":
        pytest.skip("the number of keyctl on x86-64")
    attack(shared, f"import ctypes; ctypes.CDLL(None).{call}", "forbidden")


@isolated
def test_becoming_root_again(shared):
    attack(shared, "import os; os.setuid(0); os.setgroups([0]); os.chown('/box', 0, 0)", "forbidden")


@isolated
def test_a_process_left_in_the_background_is_gone(shared):
    """No failure: the program's answer counts. But nothing of it goes on."""
    program = """
import os, signal, sys, time
print(input(), flush=True)
if not os.fork():
    os.setsid()
    for number in (1, 15): signal.signal(number, signal.SIG_IGN)
    os.close(1); os.close(2)
    os.execv(sys.executable, ["rlpipe-left-behind", "-c", "import time; time.sleep(1000)"])
time.sleep(0.3)
"""
    assert score(shared, [program]) == [1.0]
    assert sandboxed() == []


@isolated
def test_a_program_that_dies_of_its_own_signal_is_no_wrong_answer(shared):
    outcome = attack(shared, "import ctypes; ctypes.string_at(0)", "crashed")
    assert outcome.message == "the program died of SIGSEGV"


PARENT = """
import sys
from rlpipe.recipe.rewards import CodeReward
from rlpipe.rewards import code
from rlpipe.rewards.killable import Killable
from rlpipe.rewards.sandbox.sandbox import Job
child = Killable("code", code.FACTORY, code.factory_options(CodeReward(kind="code")), 60)
child.ready()
print("ready", flush=True)
child.call((Job("import time; time.sleep(1000)"), 600.0), 600)
"""


@isolated
def test_a_run_that_is_killed_leaves_no_program_behind():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, env=environment)
    assert parent.stdout.readline() == b"ready\n"
    until(lambda: len(sandboxed()) == 3)
    processes = [Path("/proc", str(pid)) for pid in sandboxed()]
    parent.kill()
    parent.communicate()
    until(lambda: not any(process.exists() for process in processes))


def until(holds):
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Without isolation


def test_without_bubblewrap_it_refuses_and_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    reward = make()
    try:
        with pytest.raises(RewardUnusable, match="bubblewrap is not installed: sudo apt install bubblewrap") as error:
            reward.ready()
        assert "`isolation: none` in the recipe" in str(error.value)
        with pytest.raises(RewardUnusable):
            score(reward, ["print('hi')"])
    finally:
        reward.close()


def test_a_bubblewrap_that_does_not_work_is_no_isolation(monkeypatch, tmp_path):
    fake = tmp_path / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert "No permissions to create a new namespace" in sandbox.problem()


def test_isolation_none_runs_and_says_so(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PLANTED_SECRET", SECRET)
    reward = make(isolation="none", deadline=3.0)
    try:
        reward.start()
        program = "import os; assert 'PLANTED_SECRET' not in os.environ and not os.listdir('.'); print(input())"
        outcomes = score(reward, [program, "print(", "while True: pass", "x = bytearray(10 << 30)", "open('/none')"])
    finally:
        reward.close()
    assert [getattr(o, "kind", o) for o in outcomes] == [1.0, 0.0, "deadline", "memory", 0.0]
    assert [r.getMessage() for r in caplog.records] == ["reward 'code' runs programs without isolation: isolation=none"]


def test_isolation_has_no_other_words():
    with pytest.raises(ValidationError):
        CodeReward(kind="code", isolation=None)


# Its parts


def test_tests_as_data_writes_them():
    assert read_tests("assert f()") == ("assert f()",)
    assert read_tests([{"input": "1", "output": "2"}]) == (Pair("1", "2"),)
    for bad in (None, [], 3, [1], ["assert f(", "x"], [{"input": "1"}], [{"input": 1, "output": "2"}], ["a", {}]):
        with pytest.raises(ValueError):
            read_tests(bad)


def test_rows_without_tests_are_failures_of_the_data():
    reward = make()
    assert reward.score(make_group(["x"], {"test": "a"}), Allowance(9))[0] == Failure(
        "missing_column", "the row has no column 'tests' (it has: 'test'); set `tests_column`"
    )
    assert score(reward, ["x"], "assert f(")[0].kind == "unparseable_reference"
    reward.close()


def test_outputs_are_equal_but_for_trailing_space():
    assert same_output("a \nb\n\n", "a\nb")
    assert not same_output("a\n\nb", "a\nb")
    assert not same_output(" a", "a")


def test_an_unknown_machine_has_no_filter(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "s390x")
    with pytest.raises(NotImplementedError, match="no list of system calls for s390x; known are x86_64, aarch64"):
        seccomp.build(checker=False)
