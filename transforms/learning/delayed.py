"""A learner of labels that come late: each observation is weighed by a rule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from contbatch.transforms.learning.delay_rules import RULES, Floats, Rows, Rule, targets
from contbatch.transforms.learning.learner import (
    Around,
    Arrays,
    Columns,
    Learner,
    prefixed,
    prepare,
    select,
    unprefixed,
)
from contbatch.transforms.learning.observed import FIELD, Observed

State = TypeVar("State")

_EDGE = 1e-6
"""A score nearer to 0 or 1 is taken as this, so that no weight is 0 / 0."""


class DelayedState(NamedTuple, Generic[State]):
    """The model's state, and a state of the same kind for each of the rule's helpers."""

    inner: State
    heads: tuple[State, ...]


@dataclass(frozen=True)
class DelayedLabels(Around, Generic[State]):
    """Lets a learner learn labels that come late or never, without taking what is still outstanding for a no.

    A feedback join gives it each request once when its label comes within the wait window, and else first as a
    negative and then again as what it turned out to be: see :class:`~contbatch.transforms.learning.observed.Observed`.
    The column ``observed`` tells them apart; where it is missing, each row's label is final. Positives are labels
    from 0.5 on.

    Rules, with their derivations in :mod:`contbatch.transforms.learning.delay_rules`:

    ==========  =============================================================  =======  ===================
    rule        what it does                                                   helpers  ``needs_settled``
    ==========  =============================================================  =======  ===================
    ``exact``   a late positive takes its assumed negative back                0        no
    ``hedged``  an assumed negative counts in part, the outcome for the rest   0        yes
    ``defer``   real negatives again; weights as in DEFER                      1        yes
    ``es-dfm``  weights as in ES-DFM                                           2        yes
    ``fnw``     fake-negative weights; for no wait window; see its caveats     0        no
    ``wait``    the wait window's labels are the truth: for a window that      0        no
                holds (nearly) all of them
    ``naive``   all observations count the same: scores are too low            0        no
    ==========  =============================================================  =======  ===================

    Choose ``exact`` where in doubt: it estimates nothing. Watch what comes of it with
    :class:`~contbatch.transforms.learning.calibration.CalibrationMonitor`.

    A helper is a second model of the inner learner's configuration, in the wrapper's state; it takes as much memory.
    Weights are computed from the state before a step. They must see all requests alike: do not put
    :class:`~contbatch.transforms.learning.sampling.Downsampled` around or inside this, and
    :class:`~contbatch.transforms.learning.recent.RecentLabels` around it only: its means are of plain labels.

    Attributes:
        learner: the inner learner; its scores are probabilities.
        rule: a name from the table.
        limit: largest weight by a rule, 2 or more (importance weights come on top).

    Raises:
        ValueError: an attribute is outside its range.
    """

    learner: Learner[State]
    rule: str = "exact"
    limit: float = 10.0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule is {self.rule!r}; give one of {', '.join(RULES)}")
        if not (math.isfinite(self.limit) and self.limit >= 2):
            raise ValueError(f"limit is {self.limit}; give a finite number, 2 or more")

    @property
    def fields(self) -> tuple[str, ...]:
        """The inner learner's columns: a request has no ``observed``, which :meth:`step` alone reads."""
        return tuple(self.learner.fields)

    @property
    def needs_settled(self) -> bool:
        """Whether ``SETTLED`` rows are wanted."""
        return self._rule.needs_settled

    def init(self) -> DelayedState[State]:
        """Return first states of the inner learner, for the model and each helper."""
        return DelayedState(self.learner.init(), tuple(self.learner.init() for _ in self._rule.heads))

    def predict(self, state: DelayedState[State], columns: Columns) -> Floats:
        """Return the model's score, shape (n,); the column of observations is not read."""
        return self.learner.predict(state.inner, columns)

    def step(
        self, state: DelayedState[State], columns: Columns, labels: Floats, weights: Floats
    ) -> DelayedState[State]:
        """Weigh the rows by what the state predicts before it learns them, then learn them, the helpers too."""
        columns = prepare(self.learner, state.inner, columns)
        rows = self._rows(state, columns, labels)
        factors = np.minimum(self._rule.weigh(rows), self.limit)
        heads = []
        for head, part in zip(self._rule.heads, state.heads, strict=True):
            known, positive = targets(head, rows)
            heads.append(self._learn(part, columns, positive.astype(float), weights * known))
        return DelayedState(self._learn(state.inner, columns, labels, weights * factors), tuple(heads))

    def export(self, state: DelayedState[State]) -> Arrays:
        """Return the rule's name, the model's arrays under ``inner/``, and each helper's under its name."""
        arrays: Arrays = {"rule": np.frombuffer(self.rule.encode(), np.uint8)}
        for name, part in zip(("inner", *self._rule.heads), (state.inner, *state.heads), strict=True):
            arrays |= prefixed(self.learner.export(part), f"{name}/")
        return arrays

    def load(self, arrays: Arrays) -> DelayedState[State]:
        """Return the exported state."""
        rule = arrays["rule"].tobytes().decode() if "rule" in arrays else None
        if rule != self.rule:
            raise ValueError(
                f"the arrays were learned with rule {rule!r}, not {self.rule!r}; load them with that one, or learn "
                "from the start"
            )
        inner, *heads = (self.learner.load(unprefixed(arrays, f"{name}/")) for name in ("inner", *self._rule.heads))
        return DelayedState(inner, tuple(heads))

    @property
    def _rule(self) -> Rule:
        return RULES[self.rule]

    def _rows(self, state: DelayedState[State], columns: Columns, labels: Floats) -> Rows:
        observed = np.array(columns.get(FIELD, [Observed.LABEL] * len(labels)), np.int64)
        if unknown := set(observed.tolist()) - set(Observed):
            raise ValueError(f"column {FIELD!r} holds {unknown}; give values of Observed, {[*map(int, Observed)]}")
        score, *heads = (
            np.clip(self.learner.predict(part, columns), _EDGE, 1 - _EDGE) for part in (state.inner, *state.heads)
        )
        return Rows(observed, labels >= 0.5, score, dict(zip(self._rule.heads, heads, strict=True)))

    def _learn(self, state: State, columns: Columns, labels: Floats, weights: Floats) -> State:
        """Learn the rows whose weight is not 0."""
        kept = np.flatnonzero(weights).tolist()
        if not kept:
            return state
        names = (*self.learner.fields, *self.prepared, *([FIELD] if FIELD in columns else []))
        part = select({name: columns[name] for name in names}, kept)
        return self.learner.step(state, part, labels[kept], weights[kept])
