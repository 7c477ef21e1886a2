"""Leases as columns: tens of thousands side by side, with the moves that a lease may make.

Only leases that hold GPUs have a row; a row is used again when its lease has ended. States and
moves are those of `leases.lease`, held to by `move`.
"""

from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from sublet.leases.lease import MOVES, State

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

STATES: Final = tuple(State)
CODE: Final = {state: code for code, state in enumerate(STATES)}
RUNNING: Final = CODE[State.RUNNING]
DRAINING: Final = CODE[State.DRAINING]
ENDED: Final = CODE[State.ENDED]
_MAY: Final = np.array([[to in MOVES[state] for to in STATES] for state in STATES])
# What an admission does within one second, on an engine that starts at once.
_UP: Final = (State.REQUESTED, State.ADMITTED, State.PROVISIONING, State.RUNNING)
NEVER: Final = 2**60  # seconds since the epoch

COLUMNS: Final = (
    "request",  # its place among the requests; below nothing: a contract's
    "pool", "tier", "gpus", "tenant", "payer", "payee",
    "rate",  # nanos per GPU-hour
    "state", "running_at",
    "ends_at",  # as sold
    "promised_until",  # firm until then
    "stopped_at",  # billed until then; NEVER while it runs
    "stops_at",  # its GPUs are empty from then on; NEVER while it runs
    "held",  # nanos for the present block
    "charged",  # nanos so far
    "served",  # billed GPU-seconds so far
    "evictions",  # of this request so far
    "checkpoint",  # seconds between two times that it saves its work; 0: it never does
)  # fmt: skip


class Leases:
    """Live leases. Every column has shape (room,); `alive` says which rows hold one."""

    def __init__(self) -> None:
        self._columns = {name: np.zeros(1_024, dtype=np.int64) for name in COLUMNS}
        self.alive: Mask = np.zeros(1_024, dtype=np.bool_)
        self._free = list(range(1_023, -1, -1))

    def __getattr__(self, name: str) -> Ints:
        try:
            return self.__dict__["_columns"][name]  # type: ignore[no-any-return]
        except KeyError:
            raise AttributeError(name) from None

    def add(self, values: dict[str, list[int]]) -> Ints:
        """Admit and start leases; returns their rows."""
        for state, to in pairwise(_UP):
            assert to in MOVES[state]
        count = len(values["request"])
        while len(self._free) < count:
            self._grow()
        rows = np.array([self._free.pop() for _ in range(count)], dtype=np.int64)
        for name, column in self._columns.items():
            column[rows] = values.get(name, 0)
        for name in ("stopped_at", "stops_at"):
            self._columns[name][rows] = NEVER
        self._columns["state"][rows] = RUNNING
        self.alive[rows] = True
        return rows

    def move(self, rows: Ints, to: int) -> None:
        """Take leases one move on. A move that is not in the table is a bug."""
        assert bool(_MAY[self._columns["state"][rows], to].all()), (rows, to)
        self._columns["state"][rows] = to

    def remove(self, rows: Ints) -> None:
        """Forget leases that have ended, once what is owed for them is settled."""
        assert bool((self._columns["state"][rows] == ENDED).all())
        assert not self._columns["held"][rows].any()
        self.alive[rows] = False
        self._free.extend(rows.tolist())

    def rows(self, state: int) -> Ints:
        return np.flatnonzero(self.alive & (self._columns["state"] == state)).astype(np.int64)

    def occupied(self, pools: int) -> Ints:
        """Return the GPUs that leases hold in each pool, derived from the rows."""
        rows = np.flatnonzero(self.alive & (self._columns["state"] != ENDED))
        gpus = self._columns["gpus"][rows].astype(np.float64)
        held: Ints = np.bincount(self._columns["pool"][rows], weights=gpus, minlength=pools).astype(
            np.int64
        )
        return held

    def _grow(self) -> None:
        room = len(self.alive)
        for name, column in self._columns.items():
            self._columns[name] = np.concatenate([column, np.zeros_like(column)])
        self.alive = np.concatenate([self.alive, np.zeros(room, dtype=np.bool_)])
        self._free.extend(range(2 * room - 1, room - 1, -1))
