"""Runs a command as the first process of a container: whatever it starts stays below it, and ends with it.

``python container.py COMMAND...``. SIGTERM is the command's own business. On SIGINT all of it is killed at once, as
when a machine goes, and so it is when the command ends, or whoever started this process dies.
"""

import os
import signal
import sys
from contextlib import suppress
from ctypes import CDLL

import psutil

TELL_WHEN_PARENT_DIES, ADOPT_ORPHANS = 1, 36  # prctl's PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER


def main() -> int:
    """Return the command's exit code; of one that a signal has ended, 128 and the signal."""
    prctl = CDLL(None, use_errno=True).prctl
    prctl(ADOPT_ORPHANS, 1, 0, 0, 0)
    prctl(TELL_WHEN_PARENT_DIES, signal.SIGINT, 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT, signal.SIGCHLD})
    first = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, setpgroup=0, setsigmask=())
    code = None
    while code is None:
        match signal.sigwait({signal.SIGTERM, signal.SIGINT, signal.SIGCHLD}):
            case signal.SIGTERM:
                os.kill(first, signal.SIGTERM)
            case signal.SIGINT:
                break
            case signal.SIGCHLD:
                code = _reap(first)
    return _kill_all(first, code)


def _reap(first: int) -> int | None:
    """Take note of all that have ended; return the exit code of the first process, if it is one of them."""
    code = None
    with suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            code = _code(ended[1]) if ended[0] == first else code
    return code


def _kill_all(first: int, code: int | None) -> int:
    """Kill all that is below, parents first, until nothing is left; return the exit code of the first process."""
    with suppress(ChildProcessError):
        while True:
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            pid, status = os.waitpid(-1, 0)
            code = _code(status) if pid == first else code
    assert code is not None
    return code


def _code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
