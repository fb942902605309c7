"""A factor that is learned from outcomes: how much slower an engine is than its profile says."""

from __future__ import annotations

from math import exp, exp2, log

_FIRST_OBSERVATIONS = 8
"""The first observations count more: an engine nobody has calibrated can be off by tens."""
_MOST_CHANGE, _LEAST_CHANGE = 3.0, 1 / 3.0
"""Observations further from the present belief than this factor count as this far: a prefix that was not there, a stall."""
_ALIKE = 1.4
"""Replicas whose factors differ by less than this count as alike."""
_LEAST_PATIENCE_S, _MOST_PATIENCE_S = 30.0, 600.0
"""For how long a belief is held that nothing tests, at first, and where tests have confirmed it again and again."""
_FEW, _HASTE_S = 3, 2.0
"""Fewer observations are tested soon: an engine's first request often waits for what is done once (kernels, weights)."""


class Belief:
    """A factor learned from noisy observations of it, on a logarithmic scale.

    A target that is believed to be slow is sent nothing while there is another way, so nobody would ever learn that it is slow no
    longer: one first answer that waited for a model to be loaded, and the cluster stands idle for good. So a belief that was not
    tested for a while fades (`beside`) until a request goes there, and the more so if that shows it to have been wrong.
    """

    __slots__ = ("_patience_s", "_weight", "at", "seen", "value")

    def __init__(self, weight: float) -> None:
        self.value = 1.0
        self._weight = weight
        self.seen = 0
        self.at = 0.0
        """UNIX time of the latest observation."""
        self._patience_s = _LEAST_PATIENCE_S

    def observe(self, implied: float, shared: Belief, now: float) -> float:
        """Take an observation in, here and in what all replicas of the model share.

        Returns:
            The shared factor while this replica's own differs from it by no more than chance would make it; else its own.
            Replicas that are alike must look alike: noise between them would place requests by luck.
        """
        self._take(implied, now)
        shared._take(implied, now)
        return self.beside(shared)

    def beside(self, shared: Belief, now: float = 0.0) -> float:
        """The factor to go by: this replica's own where it clearly differs from what its model's replicas share.

        Args:
            shared: of all replicas.
            now: UNIX time, where slowness that was not tested lately is to count less: on a replica it fades towards what all
                share, on all towards none.
        """
        common = shared._faded(1.0, now)
        own = self._faded(common, now)
        alike = self.seen < _FIRST_OBSERVATIONS or 1 / _ALIKE < own / common < _ALIKE
        return common if alike else own

    def is_stale(self, now: float) -> bool:
        """Whether what was observed is fading."""
        return self.seen > 0 and now - self.at > self._held_s

    @property
    def _held_s(self) -> float:
        return self._patience_s if self.seen >= _FEW else _HASTE_S

    def _faded(self, to: float, now: float) -> float:
        if self.value <= to or not self.is_stale(now):
            return self.value
        left = exp2(1.0 - (now - self.at) / self._held_s)
        return to * exp(left * log(self.value / to))

    def _take(self, implied: float, now: float) -> None:
        ratio = implied / self.value
        if self.is_stale(now):
            if ratio > 0.5:  # it still is
                self._patience_s = min(_MOST_PATIENCE_S, 2.0 * self._patience_s)
            else:  # it is slow no longer: what was believed counts no more
                self._patience_s, self.seen = _LEAST_PATIENCE_S, 0
        self.at = now
        weight = self._weight
        if self.seen < _FIRST_OBSERVATIONS:
            weight = max(weight, 1.0 / (self.seen + 1))
            ratio = max(1e-6, ratio)
        elif not _LEAST_CHANGE <= ratio <= _MOST_CHANGE:
            ratio = _MOST_CHANGE if ratio > _MOST_CHANGE else _LEAST_CHANGE
        self.seen += 1
        value = self.value * ratio**weight
        self.value = value if 1e-3 <= value <= 1e3 else min(1e3, max(1e-3, value))
