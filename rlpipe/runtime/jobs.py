"""Runs as jobs of a Ray cluster, through its job server: what `rlpipe submit` and the verbs around it ask."""

import asyncio
import difflib
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import ray
import requests
from packaging.version import Version
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

import rlpipe
from rlpipe.runtime import ray_token
from rlpipe.runtime.machine import rlpipe_requirements

ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
ANSWER_SECONDS = 20.0
"""What a job server takes at most to answer."""
RECONNECT_SECONDS = 60.0
"""How long a broken connection is tried again while a job's log is followed."""
STOPPED = 130
"""Exit code of a job that was stopped, as of a run that was stopped with Ctrl-C."""
RUN_DIR, MADE_BY = "rlpipe_run_dir", "rlpipe_version"
"""Keys in a job's metadata."""


class JobError(RuntimeError):
    """The cluster cannot be asked, or does not know what was asked for; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is brought to a cluster, and what is started there."""

    name: str
    """Its id on the cluster."""
    entrypoint: str
    folder: Path
    """Its working directory there."""
    run_dir: str
    with_rlpipe: bool
    """Whether this machine's rlpipe goes along, in place of the cluster's own."""


class Jobs:
    """The job server of a cluster."""

    def __init__(self, address: str | None) -> None:
        """`address`: `http://HEAD:8265`, or None for what the environment says. Raises `JobError`."""
        found = address or next((os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)), None)
        if found is None:
            raise JobError(
                "which cluster? Give --address http://HEAD:8265 (the dashboard of its head node), or set "
                "RAY_API_SERVER_ADDRESS"
            )
        if address is not None and "://" not in address:
            found = f"http://{address}"
        self.address = found
        _quiet()
        ray_token.use()
        self._client = self._connected()
        self.ray_version = self._client._server_ray_version

    def _connected(self) -> JobSubmissionClient:
        if self.address.startswith(("http://", "https://")):
            _require_dashboard(self.address)
        # Ray would let them override the address that it is given.
        before = {name: os.environ.pop(name, None) for name in ADDRESS_VARIABLES}
        try:
            return JobSubmissionClient(self.address)
        except (RuntimeError, ConnectionError, ValueError, OSError) as error:
            raise JobError(f"{self.address} cannot be asked: {error}") from error
        finally:
            os.environ.update({name: value for name, value in before.items() if value is not None})

    def submit(self, job: Job) -> None:
        """Bring the files and start the job. Raises `JobError` if the name is taken."""
        environment = {"working_dir": str(job.folder), "excludes": ["__pycache__"]}
        if job.with_rlpipe:
            environment["py_modules"] = [str(Path(rlpipe.__file__).parent)]
        metadata = {RUN_DIR: job.run_dir, MADE_BY: rlpipe.__version__}
        if any(details.submission_id == job.name for details in self.all()):
            raise JobError(f"there is a job {job.name} on {self.address} already; give another --name")
        self._client.submit_job(
            entrypoint=job.entrypoint, submission_id=job.name, runtime_env=environment, metadata=metadata
        )

    def all(self) -> list[JobDetails]:
        """Jobs that were submitted, the oldest first."""
        submitted = [details for details in self._client.list_jobs() if details.submission_id]
        return sorted(submitted, key=lambda details: details.start_time or 0)

    def find(self, name: str) -> JobDetails:
        """A job by its id. Raises `JobError` that names those that are meant perhaps."""
        jobs = {details.submission_id: details for details in self.all()}
        if name in jobs:
            return jobs[name]
        raise JobError(f"{self.address} knows no job {name}; {_near(name, jobs)}")

    def begun(self, name: str, seconds: float) -> JobDetails:
        """A job that runs, or has ended, or after `seconds` still waits."""
        until = time.monotonic() + seconds
        while (details := self.find(name)).status == JobStatus.PENDING and time.monotonic() < until:
            time.sleep(0.5)
        return details

    def stop(self, name: str, seconds: float) -> JobDetails:
        """Ask a job to end, and wait for that."""
        self.find(name)
        self._client.stop_job(name)
        until = time.monotonic() + seconds
        while not (details := self.find(name)).status.is_terminal() and time.monotonic() < until:
            time.sleep(0.3)
        return details

    def log(self, name: str) -> str:
        """What a job has printed so far."""
        self.find(name)
        return self._client.get_job_logs(name)

    def follow(self, name: str, write: Callable[[str], None]) -> JobDetails:
        """Give everything that a job prints to `write`, from its beginning to its end. Raises `JobError` if the cluster
        is lost for longer than `RECONNECT_SECONDS`."""
        self.find(name)
        shown, lost_at = 0, None

        def more(text: str) -> None:
            nonlocal shown, lost_at
            shown, lost_at = shown + len(text), None
            write(text)

        while True:
            try:
                asyncio.run(self._tail(name, shown, more))
                if (details := self.find(name)).status.is_terminal():
                    return details
                lost_at = None  # it answers
            except JobError:
                raise
            except (RuntimeError, OSError, aiohttp.ClientError) as error:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > RECONNECT_SECONDS:
                    raise JobError(
                        f"{self.address} has not answered for {RECONNECT_SECONDS:g} s ({error}); the job may go on "
                        f"without this: rlpipe attach {name}"
                    ) from error
            time.sleep(1.0)

    async def _tail(self, name: str, skip: int, write: Callable[[str], None]) -> None:
        """Write what comes after the first `skip` characters: a connection that is made anew begins with them."""
        async for text in self._client.tail_job_logs(name):
            if new := text[skip:]:
                write(new)
            skip = max(0, skip - len(text))


def exit_code(details: JobDetails) -> int:
    """Of a job that has ended, as its run would have had it here."""
    match details.status:
        case JobStatus.SUCCEEDED:
            return 0
        case JobStatus.STOPPED:
            return STOPPED
    return details.driver_exit_code or 1


def run_dir_of(details: JobDetails) -> str | None:
    """Where a job's run is; None for a job that rlpipe did not submit."""
    return (details.metadata or {}).get(RUN_DIR)


def require_version(cluster: str, here: str = ray.__version__) -> None:
    """Raises `JobError` if the cluster's Ray is one that rlpipe does not run on."""
    ranges = [need.specifier for need in rlpipe_requirements() or () if need.name == "ray"]
    if any(not specifier.contains(Version(cluster).public, prereleases=True) for specifier in ranges):
        raise JobError(
            f"the cluster has Ray {cluster}, and rlpipe runs on Ray {ranges[0]} (here is {here}). Start the cluster "
            "with that, in the environment that `make setup` makes"
        )


def _quiet() -> None:
    """Ray tells of every package it uploads."""
    for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)


def _require_dashboard(address: str) -> None:
    """Raises `JobError` unless a Ray dashboard answers there that takes our token."""
    from ray._private.authentication.http_token_authentication import get_auth_headers_if_auth_enabled

    headers = get_auth_headers_if_auth_enabled({})
    try:
        answer = requests.get(f"{address.rstrip('/')}/api/version", headers=headers, timeout=ANSWER_SECONDS)
    except requests.RequestException as error:
        raise JobError(
            f"nothing that speaks HTTP answers at {address} ({type(error).__name__}). A Ray dashboard is meant, whose "
            "port is 8265 by default; one that is bound to the head node alone is reached through a tunnel: "
            "ssh -L 8265:localhost:8265 HEAD"
        ) from error
    if answer.status_code == 401:
        raise JobError(f"{address} asks for a token, and there is none here. {ray_token.SOURCES}")
    if answer.status_code == 403:
        raise JobError(
            f"{address} does not take the token that was sent ({_source()}): it is not this cluster's. "
            f"{ray_token.SOURCES}"
        )
    if answer.status_code != 200 or "ray_version" not in answer.text:
        raise JobError(
            f"{address} answers, but is no Ray dashboard (HTTP {answer.status_code} for /api/version); its port is "
            "8265 by default"
        )


def _source() -> str:
    """Where Ray took the token from."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "from RAY_AUTH_TOKEN"
    return f"from {os.environ.get('RAY_AUTH_TOKEN_PATH') or '~/.ray/auth_token'}"


def _near(name: str, jobs: Iterable[str]) -> str:
    names: Sequence[str] = list(jobs)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[-3:]
    return f"there are {', '.join(near)}" if near else "it has no jobs"
