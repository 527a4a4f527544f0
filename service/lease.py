"""Which of the API processes over one store reconciles: the one that holds the lease.

A lease is a row that says who holds it and until when, by the database's own clock: the processes' clocks need not
agree. One conditional UPDATE takes it, renews it or leaves it alone, so two can't have it at the same time. Its holder
reckons by its own monotonic clock from before it asked, and so takes it for over before the database does: one that
can't renew it, since the store is away or the process stood still, stops in time.

Nothing of this keeps a job from being started twice: an action that is under way when the lease ends, or a step of the
database's clock, may make two processes act for a moment. What they do is conditional on a job's attempt, so the later
one of them is refused. The lease spares Ray and the store the work of all but one.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import ColumnElement, Connection, Double, cast, extract, func, or_, select, update

from .records import StoreUnavailable
from .rows import Transaction
from .tables import leases

RECONCILER = "reconciler"  # the only lease there is

log = logging.getLogger(__name__)


class LeaseTable:
    """The leases of a store.

    Args:
        write: Begins a transaction that writes.
    """

    def __init__(self, write: Transaction) -> None:
        self._write = write

    def take(self, name: str, holder: str, for_s: float) -> str:
        """Take a lease that is over, or renew one's own; return who holds it now.

        One that ends later than any holder could have it was left by one who died before the database's clock stepped
        back, so it is over too. Twice the time is allowed, since a clock may be set back a little at any time.
        """
        mine = leases.c.name == name
        with self._write() as connection:
            now = _clock(connection)
            free = or_(leases.c.holder == holder, leases.c.ends_at <= now, leases.c.ends_at > now + 2 * for_s)
            connection.execute(update(leases).where(mine, free).values(holder=holder, ends_at=now + for_s))
            return str(connection.scalar(select(leases.c.holder).where(mine)))

    def give_up(self, name: str, holder: str) -> None:
        """Let whoever asks next have the lease; without effect where another one holds it."""
        mine = (leases.c.name == name, leases.c.holder == holder)
        with self._write() as connection:
            connection.execute(update(leases).where(*mine).values(holder="", ends_at=0.0))


def _clock(connection: Connection) -> ColumnElement[float]:
    """Return the time of the database in seconds since 1970: that of the statement, not of the transaction."""
    if connection.dialect.name == "postgresql":
        return cast(extract("epoch", func.clock_timestamp()), Double)
    return cast((func.julianday("now") - 2_440_587.5) * 86_400.0, Double)


class Lease:
    """One process's part in a lease; may be shared between threads.

    A holder that vanished is replaced ``within_s``: the lease runs for four fifths of that, and is renewed when half is
    over. Everyone looks at it every tenth.

    Attributes:
        holder: The name of this process: machine, or pod, and pid.
        leader: Who held it when this process last looked; empty before that.
    """

    def __init__(self, table: LeaseTable, within_s: float, name: str = RECONCILER) -> None:
        self._table, self._name = table, name
        self._term_s, self._look_s = 0.8 * within_s, 0.1 * within_s
        self._ends_at = -math.inf  # on the monotonic clock; -inf: this process has never held it
        self.holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.leader = ""

    @property
    def held(self) -> bool:
        """Whether this process holds it, and may act."""
        return time.monotonic() < self._ends_at

    @property
    def lost(self) -> bool:
        """Whether this process has held it and does so no more."""
        return -math.inf < self._ends_at <= time.monotonic()

    def look(self) -> None:
        """Take the lease if it is free, and renew it if half of it is over; raises StoreUnavailable."""
        asked_at = time.monotonic()
        if self._ends_at - asked_at > self._term_s / 2:
            return
        self.leader = self._table.take(self._name, self.holder, self._term_s)
        if self.leader == self.holder:
            self._ends_at = asked_at + self._term_s

    def give_up(self) -> None:
        """Hold it no more, so that another process has it with its next look; raises StoreUnavailable."""
        self._ends_at = min(self._ends_at, time.monotonic())
        self._table.give_up(self._name, self.holder)

    @contextmanager
    def kept(self, on_taken: Callable[[], None], may_lead: Callable[[], bool]) -> Iterator[None]:
        """Look at the lease from a thread of its own, and give it up at the end.

        Args:
            on_taken: Called when this process has come to hold it.
            may_lead: Whether to take and renew it; while it says no, the lease runs out and another process has it.
        """
        over = threading.Event()
        thread = threading.Thread(target=self._keep, args=(over, on_taken, may_lead), name="lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(self._term_s)
            with suppress(StoreUnavailable):  # then it runs out by itself
                self.give_up()

    def _keep(self, over: threading.Event, on_taken: Callable[[], None], may_lead: Callable[[], bool]) -> None:
        leading = False
        while not over.is_set():
            try:
                if may_lead():
                    self.look()
            except StoreUnavailable:
                pass  # readers of the store say so
            except Exception:
                log.exception("looking at the lease failed; it is looked at again")
            if leading and not self.held:
                log.warning("this process, %s, reconciles no more: its lease ran out", self.holder)
            if self.held and not leading:
                log.info("this process, %s, reconciles from now on", self.holder)
                on_taken()
            leading = self.held
            over.wait(self._look_s)
