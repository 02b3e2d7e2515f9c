"""Whether somebody has asked something just now: then the batches of processors are kept short.

Everything of a process shares one loop. With nobody waiting, long batches cost least; a question takes a dozen rounds
of the loop, and between two rounds there may be a batch.
"""

import time

BATCH_TARGET_S = 0.025
BATCH_TARGET_ASKED_S = 0.002
RECENT_S = 1.0
# Those who push and those who look at the balance are not kept waiting by the work that they cause.
BACKGROUND = ("/headwater.ingest.", "/headwater.common.", "/grpc.")


class Foreground:
    """Remembers when something was last asked."""

    def __init__(self) -> None:
        self._asked_at = float("-inf")

    def called(self, method: str) -> None:
        """Take note of a call, by the full name of its method."""
        if not method.startswith(BACKGROUND):
            self._asked_at = time.monotonic()

    @property
    def asked(self) -> bool:
        """Whether something was asked just now."""
        return time.monotonic() - self._asked_at < RECENT_S

    @property
    def batch_target_s(self) -> float:
        """How long a batch may hold the loop, in seconds of processor time."""
        return BATCH_TARGET_ASKED_S if self.asked else BATCH_TARGET_S
