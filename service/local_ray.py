"""A Ray of our own on this machine: started when none is there, found again after a crash, ended as a whole.

It outlives the process that started it, so jobs go on while the API is restarted. Its address stands in ``ray.json``
of the state directory. It asks for a token that its owner alone can read, since whoever reaches a Ray can run code as
its owner. Its temporary directory is its own, so that other Rays on this machine and ours don't take each other for
theirs.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from .launcher import Content, LaunchRefused, NoRay, RayJobs, RayUnreachable, TokenRefused
from .room import Node
from .settings import TOKEN_VARIABLE

HOST = "127.0.0.1"
START_DEADLINE_S = 90.0
ANSWER_S = 5.0
STOP_DEADLINE_S = 20.0

_children: dict[int, subprocess.Popen[bytes]] = {}  # started by this process, so it has to wait for their end


@dataclass(frozen=True)
class LocalRay:
    """Where our Ray is, and which process it is: ``started`` tells it from a later one with the same pid."""

    pid: int
    started: float
    dashboard_url: str
    token_path: str

    @property
    def token(self) -> str:
        """What its Jobs API asks for."""
        return Path(self.token_path).read_text().strip()

    def jobs(self, timeout_s: float = 15.0) -> RayJobs:
        """Return its Jobs API; to be closed by the caller."""
        return RayJobs(self.dashboard_url, self.token, timeout_s)


class RayNotStarted(NoRay):
    def __init__(self, cause: str, log: Path) -> None:
        self.cause, self.log = cause, log
        super().__init__(
            f"the local Ray did not start: {cause}. Its output is in {log}; "
            "or give --ray-address to use a Ray that is already running"
        )

    def __reduce__(self) -> tuple[type[RayNotStarted], tuple[str, Path]]:
        return type(self), (self.cause, self.log)


class LocalRayJobs:
    """The Jobs API of the local Ray, which is started when it is first needed, and again when it was lost.

    Of several processes with one state directory each may come to need it, so each shows by a file lock that it is
    there: see ``alone``.
    """

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._jobs: RayJobs | None = None
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._users = os.open(state_dir / "ray.users", os.O_RDWR | os.O_CREAT, 0o600)
        weakref.finalize(self, os.close, self._users)
        fcntl.flock(self._users, fcntl.LOCK_SH)

    def alone(self) -> bool:
        """Say whether no other process needs the local Ray; of several that ask as they end, the last one is alone."""
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which gives up our share, whatever comes of it
        except BlockingIOError:
            return False
        return True

    def check(self) -> None:
        """Make sure that there is a local Ray; may take as long as its start. Raises RayNotStarted."""
        if self._jobs is not None and _is_ours(self._jobs):
            return
        self.close()
        self._jobs = find_or_start(self._state_dir).jobs()

    def submit(
        self, submission_id: str, entrypoint: str, env: Mapping[str, str], code: str = "", pip: Sequence[str] = ()
    ) -> None:
        self._there().submit(submission_id, entrypoint, env, code, pip)

    def carry(self, sha256: str, content: Content) -> str:
        return self._there().carry(sha256, content)

    def obstacle(self, submission_id: str) -> str:
        return self._there().obstacle(submission_id)

    def look(self, submission_ids: Sequence[str]) -> None:
        self._there().look(submission_ids)

    def status(self, submission_id: str) -> str | None:
        return self._there().status(submission_id)

    def delay(self, submission_id: str) -> str:
        return self._there().delay(submission_id)

    def stop(self, submission_id: str) -> None:
        self._there().stop(submission_id)

    def room(self) -> list[Node] | None:
        jobs = self._jobs
        return None if jobs is None else jobs.room()

    def why_not_shared(self, directory: Path) -> str:
        """Return nothing: all of it is on this machine."""
        return ""

    def close(self) -> None:
        """Let go of the connections; Ray itself stays."""
        if self._jobs is not None:
            self._jobs.close()
            self._jobs = None

    def _there(self) -> RayJobs:
        if self._jobs is None:
            raise RayUnreachable(f"the local Ray of {self._state_dir}", "it has not been started")
        return self._jobs


def find_or_start(state_dir: Path, deadline_s: float = START_DEADLINE_S) -> LocalRay:
    """Return the running local Ray of this state directory, or start one; of several callers at once, one starts it.

    One whose process is there but doesn't answer within the deadline is ended and replaced.

    Raises:
        RayNotStarted: If the new one doesn't answer in time either.
    """
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(state_dir / "ray.lock", 3 * deadline_s):
        old = _read(state_dir)
        if old is not None:
            still_starting_s = max(ANSWER_S, deadline_s - (time.time() - old.started))
            if _wait_for(old, still_starting_s):
                return old
            stop(old)
        return start(state_dir, deadline_s)


def find(state_dir: Path) -> LocalRay | None:
    """Return the local Ray of this state directory if its process is the one we started and its Jobs API answers."""
    ray = _read(state_dir)
    return ray if ray is not None and _process(ray) is not None and _answers(ray) else None


def start(state_dir: Path, deadline_s: float = START_DEADLINE_S) -> LocalRay:
    """Start a Ray in a session of its own, and return it when it takes jobs; see ``find_or_start``, which comes first.

    Raises:
        RayNotStarted: If it ends or doesn't answer in time.
    """
    log = state_dir / "ray.log"
    token_path = _make_token(state_dir)
    command, dashboard_url = _command(_empty_temp_dir(state_dir, log))
    with log.open("ab") as output:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=state_dir,
            env=_environment(token_path),
            start_new_session=True,
        )
    _children[child.pid] = child
    ray = LocalRay(child.pid, psutil.Process(child.pid).create_time(), dashboard_url, str(token_path))
    _write(state_dir, ray)
    if not _wait_for(ray, deadline_s):
        ended = _process(ray) is None
        stop(ray)
        raise RayNotStarted(_last_words(log) if ended else f"no answer within {deadline_s:g} s", log)
    return ray


def stop(ray: LocalRay, deadline_s: float = STOP_DEADLINE_S) -> None:
    """End this Ray and whatever it started: by SIGTERM, and by SIGKILL what is left at the deadline."""
    process = _process(ray)
    if process is None:
        return
    with suppress(psutil.NoSuchProcess):
        tree = [process, *process.children(recursive=True)]
        process.terminate()
        _, left = psutil.wait_procs(tree, timeout=deadline_s)
        for survivor in left:
            with suppress(psutil.NoSuchProcess):
                survivor.kill()
        psutil.wait_procs(left, timeout=ANSWER_S)
    child = _children.pop(ray.pid, None)
    if child is not None:
        child.wait(ANSWER_S)
    for resources in temp_dir_of(Path(ray.token_path).parent).glob("session_2*/runtime_resources"):
        shutil.rmtree(resources, ignore_errors=True)  # jobs' packages: a virtual environment of gigabytes for each set


def _command(temp_dir: Path) -> tuple[list[str], str]:
    """Return what starts Ray, and where its dashboard will be."""
    ray = Path(sys.executable).with_name("ray")
    program = [str(ray)] if ray.exists() else [sys.executable, "-m", "ray.scripts.scripts"]
    gcs, dashboard, client, agent = _free_ports(4)
    options = [
        "--head",
        "--block",
        "--disable-usage-stats",
        "--include-dashboard=true",  # the Jobs API is a part of it
        "--include-log-monitor=false",  # jobs report what their workers print; this one would read it once more
        "--log-style=record",
        "--log-color=false",
        f"--port={gcs}",
        f"--dashboard-host={HOST}",
        f"--dashboard-port={dashboard}",
        f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
        f"--temp-dir={temp_dir}",
    ]
    return [*program, "start", *options], f"http://{HOST}:{dashboard}"


def _environment(token_path: Path) -> dict[str, str]:
    """Return ours, without what would make the new Ray join another one, and with its token; the API's stays here."""
    foreign = {"RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_CONFIG_JSON_ENV_VAR", TOKEN_VARIABLE}
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    ours = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",  # Ray would wait 30 s for jobs to end, which go on by themselves
    }
    return {**kept, **ours}


def temp_dir_of(state_dir: Path) -> Path:
    """Return where Ray's sockets and logs lie: a short path, since a socket's may have 107 characters at most."""
    mark = hashlib.sha256(str(state_dir).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"sampa-ray-{os.getuid()}-{mark}"


def _empty_temp_dir(state_dir: Path, log: Path) -> Path:
    """Make it anew, ours alone, without what an earlier Ray left; its logs stay until the next start."""
    path = temp_dir_of(state_dir)
    try:
        if path.exists():
            shutil.rmtree(path)
        path.mkdir(mode=0o700)
    except OSError as error:
        raise RayNotStarted(f"{path} can't be made anew ({error.strerror}); remove it", log) from error
    return path


def _make_token(state_dir: Path) -> Path:
    path = state_dir / "ray.token"
    if not path.exists():
        aside = path.with_name(f"ray.token.{os.getpid()}")
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        aside.replace(path)
    return path


def _free_ports(count: int) -> list[int]:
    with_sockets = [socket.socket() for _ in range(count)]
    try:
        for each in with_sockets:
            each.bind((HOST, 0))
        return [each.getsockname()[1] for each in with_sockets]
    finally:
        for each in with_sockets:
            each.close()


def _answers(ray: LocalRay) -> bool:
    with closing(ray.jobs(ANSWER_S)) as jobs:
        return _is_ours(jobs)


def _is_ours(jobs: RayJobs) -> bool:
    """Say whether it answers and has our token; another Ray may have taken the port."""
    try:
        jobs.check()
    except (RayUnreachable, TokenRefused):
        return False
    return True


def _wait_for(ray: LocalRay, deadline_s: float) -> bool:
    """Say whether it takes jobs before the deadline; the first one does nothing, and makes the next ones 2 s faster."""
    deadline = time.monotonic() + deadline_s
    with closing(ray.jobs(ANSWER_S)) as jobs:
        while _process(ray) is not None and time.monotonic() < deadline:
            with suppress(NoRay, LaunchRefused):
                jobs.submit("sampa-first", "true", {})
                return True
            time.sleep(0.1)
    return False


def _process(ray: LocalRay) -> psutil.Process | None:
    """Return the process if it is still the one that we started; an ended one is reaped where that is ours to do."""
    child = _children.get(ray.pid)
    if child is not None and child.poll() is not None:
        return None
    try:
        process = psutil.Process(ray.pid)
        same = abs(process.create_time() - ray.started) < 0.5 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if same else None


def _read(state_dir: Path) -> LocalRay | None:
    try:
        return LocalRay(**json.loads((state_dir / "ray.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _write(state_dir: Path, ray: LocalRay) -> None:
    aside = state_dir / f"ray.json.{os.getpid()}"
    aside.write_text(json.dumps(asdict(ray)))
    aside.replace(state_dir / "ray.json")


def _last_words(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"it ended with {lines[-1]!r}" if lines else "it ended without a word"


@contextmanager
def _locked(path: Path, deadline_s: float) -> Iterator[None]:
    """Hold a file lock; the system frees it when its holder dies."""
    deadline = time.monotonic() + deadline_s
    with path.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise RayNotStarted(f"another process has been starting it for {deadline_s:g} s", path) from None
                time.sleep(0.1)
        yield
