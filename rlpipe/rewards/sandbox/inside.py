"""Runs one program inside the sandbox and says how it ended. Standard library only: nothing else is in there.

Run as `python inside.py JOB STATUS`, two file descriptors. JOB is a marshalled dictionary:

    program   its source          tests  snippets to run behind it, in its namespace
    nonce     so that what the program prints is not taken for a verdict
    limits    {name of an rlimit: value}          uid  to become, or 0 to stay
    box       the one folder it may use, or "" where nothing keeps it from others

STATUS gets lines: `started`, `passed NONCE I`, and one `ended NONCE KIND TEXT`, where KIND is `-` (by itself),
`exception` (its own fault) or the kind of failure that stands for the limit it ran into.
"""

import errno
import marshal
import os
import resource
import sys

OUT_OF_REACH = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS)
FULL = (errno.EFBIG, errno.ENOSPC, errno.EDQUOT, errno.EMFILE)


def read_job(fd):
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

    def __init__(self, job, status):
        self._job, self._status, self._pid = job, status, os.getpid()
        self._module = type(sys)("__main__")
        sys.modules["__main__"] = self._module
        sys.argv = ["program.py"]

    def run(self):
        """Program and tests. Returns the exit status."""
        kind, error = self._outcome(self._job["program"], "program.py")
        for index, test in enumerate(self._job["tests"]):
            if kind != "-":
                break
            held, error = self._outcome(test, f"test {index}")
            if held == "-":
                self._say("passed", index)
            elif held != "exception":
                kind = held
        self._say("ended", f"{kind} {type(error).__name__}: {error!s:.300}" if error else kind)
        return int(kind != "-")

    def _outcome(self, source, name):
        try:
            exec(compile(source, name, "exec"), self._module.__dict__)
        except SystemExit as leaving:
            # Leaving early must not skip a test; behind the last one it is how a program may end.
            if leaving.code in (None, 0) and not self._job["tests"]:
                return "-", None
            return "exception", leaving
        except BaseException as error:
            return cause(error, self._job["box"]), error
        return "-", None

    def _say(self, word, text):
        if os.getpid() != self._pid:
            os._exit(1)  # a fork of the program has run to the end of the program
        line = f"{word} {self._job['nonce']} {text}".replace("\n", " ")
        os.write(self._status, line.encode(errors="replace") + b"\n")


def main(job_fd, status):
    job = read_job(job_fd)
    confine(job["limits"], job["uid"])
    os.set_inheritable(status, False)
    os.write(status, b"started\n")
    code = Program(job, status).run()
    if job["tests"]:
        os._exit(code)  # a thread that is left over must not hold up a verdict that stands
    sys.exit(code)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
