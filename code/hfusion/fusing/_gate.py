"""Weights do not move while a thread computes with one of them."""

import contextlib
import threading
import time
from collections.abc import Iterator

PATIENCE = 100  # ms to wait for other threads before weights move


class Gate:
    """Layers enter it to compute for themselves; weights move while it is closed."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.inside: dict[object, int] = {}  # who computes now, and in which thread
        self._closed = False

    def enter(self, me: object) -> None:
        """Be inside until `del gate.inside[me]`; where weights move, wait for that."""
        self.inside[me] = threading.get_ident()
        if self._closed:
            del self.inside[me]
            with self.lock:
                self.inside[me] = threading.get_ident()

    @contextlib.contextmanager
    def closed(self) -> Iterator[bool]:
        """Under the lock: nobody enters meanwhile. Weights may move if it yields True."""
        self._closed = True
        try:
            yield self._alone()
        finally:
            self._closed = False

    def _alone(self) -> bool:
        """Wait until no other thread is inside; whether that is so by now."""
        me = threading.get_ident()
        for _ in range(PATIENCE):
            if not {*self.inside.copy().values()} - {me}:
                return True
            time.sleep(0.001)
        return False
