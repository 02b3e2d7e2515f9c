"""A circuit breaker for one provider of a slow or failing API, as a pure state machine; time is an argument.

Only failures of *different* jobs open the circuit, so that one poisonous job never stops the others. While it
is open, nothing of that provider is tried. Then one job probes: success closes the circuit, failure opens it
for longer. A request to come back later pauses the provider and says nothing about its health.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

from services.kernel.retry import backoff_s


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a circuit opens, and for how long.

    Attributes:
        failures: open after this many different jobs failed with no success between.
        pause_s: how long it stays open the first time, in seconds; doubles with every failed probe.
        pause_max_s: the longest pause, in seconds.
    """

    failures: int = 4
    pause_s: float = 2.0
    pause_max_s: float = 60.0


@dataclass(slots=True)
class Breaker:
    """What is known of one provider.

    Attributes:
        paused_until: nothing is tried before this time.
        probing: the job that is trying whether an open circuit may close.
        probed: jobs that probed in vain since the circuit opened; others go first.
    """

    policy: BreakerPolicy
    paused_until: float = float("-inf")
    probing: Hashable = None
    probed: set[Hashable] = field(default_factory=set)
    _failed: set[Hashable] = field(default_factory=set)
    _openings: int = 0

    @property
    def is_open(self) -> bool:
        """Whether the provider is held to be broken; after the pause only a probe may run."""
        return self._openings > 0

    def blocks(self, now: float) -> bool:
        """Whether no job may start just now."""
        return now < self.paused_until or self.probing is not None

    def succeeded(self) -> None:
        """A call went through: the provider is well."""
        self._failed.clear()
        self.probed.clear()
        self._openings = 0
        self.probing = None

    def rate_limited(self, until: float) -> None:
        """The provider asked to be left alone until then."""
        self.paused_until = max(self.paused_until, until)
        self.probing = None

    def failed(self, job: Hashable, now: float) -> None:
        """A call of a job failed and may succeed later."""
        if self.is_open:
            if job == self.probing:
                self.probing = None
                self.probed.add(job)
                self._open(now)
            return
        self._failed.add(job)
        if len(self._failed) >= self.policy.failures:
            self._open(now)

    def ended(self, job: Hashable) -> None:
        """A job ended without having told anything about the provider."""
        if job == self.probing:
            self.probing = None

    def _open(self, now: float) -> None:
        self._openings += 1
        policy = self.policy
        pause = backoff_s(self._openings, base_s=policy.pause_s, cap_s=policy.pause_max_s, chance=1.0)
        self.paused_until = max(self.paused_until, now + pause)
