"""Runs one program inside the sandbox and says how it ended. Standard library only: nothing else is in there.

Run as `python main.py JOB STATUS [TESTS]`, file descriptors. JOB is a marshalled dictionary:

    program   its source
    nonce     so that what the program prints is not taken for a verdict
    limits    {name of an rlimit: value}          uid  to become, or 0 to stay
    box       the one folder it may use, or "" where nothing keeps it from others

TESTS is a marshalled list of snippets. With it this process is the checker, which alone ever has them, and the program
runs in a child. STATUS gets lines: `started`, `passed NONCE I`, and one `ended NONCE KIND TEXT`, where KIND is `-` (by
itself), `exception` (its own fault) or the kind of failure that stands for the limit it ran into.
"""

import errno
import marshal
import os
import resource
import sys

OUT_OF_REACH = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS)
FULL = (errno.EFBIG, errno.ENOSPC, errno.EDQUOT, errno.EMFILE)


def read(fd):
    with open(fd, "rb") as file:
        return marshal.load(file)


def confine(limits, uid):
    """Limits first: they are inherited and cannot be raised again. Then another user: root's processes are not counted,
    and whoever leaves uid 0 leaves the capabilities behind."""
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    if uid:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def cause(error, box):
    """The limit behind an exception that nobody caught, or `exception`."""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return "processes"
    if isinstance(error, OSError) and error.errno in FULL:
        return "files"
    if isinstance(error, OSError) and error.errno == errno.EAGAIN:
        return "processes"
    return "forbidden" if box and reaches_outside(error, box) else "exception"


def reaches_outside(error, box):
    """Did it want what the sandbox withholds: a path outside, a signal to others, an environment variable?"""
    if isinstance(error, OSError) and error.errno in OUT_OF_REACH:
        if not isinstance(error.filename, (str, bytes)):
            return error.errno == errno.EPERM
        path = os.path.abspath(os.fsdecode(error.filename))
        return not path.startswith((box + "/", "/dev/shm/"))
    return isinstance(error, KeyError) and innermost_code(error) is type(os.environ).__getitem__.__code__


def innermost_code(error):
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    return trace.tb_frame.f_code


class Program:
    """The program in a `__main__` module of its own."""

    def __init__(self, job):
        self._job, self._module = job, type(sys)("__main__")
        self.names = self._module.__dict__

    def run(self):
        sys.modules["__main__"], sys.argv = self._module, ["program.py"]
        exec(compile(self._job["program"], "program.py", "exec"), self.names)

    def cause(self, error):
        return cause(error, self._job["box"])


class Report:
    """Lines for the world outside."""

    def __init__(self, status, nonce):
        self._status, self._nonce, self._process = status, nonce, os.getpid()

    def say(self, word, text):
        if os.getpid() != self._process:
            os._exit(1)  # a fork of the program has run to the end of the program
        line = f"{word} {self._nonce} {text}".replace("\n", " ")
        os.write(self._status, line.encode(errors="replace") + b"\n")

    def end(self, kind, error=None):
        """Returns the exit status. What the program raised, the checker heard as `said`."""
        said = f" {type(error).__name__}: {getattr(error, 'said', error)!s:.300}" if error is not None else ""
        self.say("ended", kind + said)
        return int(kind != "-")


def alone(program, report):
    """A program that is judged by its output."""
    try:
        program.run()
    except SystemExit as leaving:
        return report.end("-") if leaving.code in (None, 0) else report.end("exception", leaving)
    except BaseException as error:
        return report.end(program.cause(error), error)
    return report.end("-")


def our_modules():
    """What checks; imported while this may still read files of the user who installed it."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import checker
    import served

    del sys.path[0]
    return checker, served


def tested(program, report, tests_fd, status, modules):
    """A program that answers a checker; neither the tests nor the way to report ever reach its process."""
    checker, served = modules
    (asked, asks), (heard, answers) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        for fd in (tests_fd, status, asks, heard):
            os.close(fd)
        os.setpgid(0, 0)  # or a signal to its group would reach the checker
        served.serve(program, asked, answers)
        os._exit(0)
    for fd in (asked, answers):
        os.close(fd)
    return checker.check(read(tests_fd), report, heard, asks, child)


def main(job_fd, status, tests_fd=None):
    modules = tests_fd and our_modules()
    job = read(job_fd)
    confine(job["limits"], job["uid"])
    os.set_inheritable(status, False)
    os.write(status, b"started\n")
    program, report = Program(job), Report(status, job["nonce"])
    if not tests_fd:
        sys.exit(alone(program, report))
    os._exit(tested(program, report, tests_fd, status, modules))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
