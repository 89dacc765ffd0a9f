import math
from dataclasses import replace
from collections import Counter
import pytest
from hypothesis import given, settings, assume, strategies as st
from contbatch.transforms.batching import *
from contbatch.transforms.batching.release import *
from tests.transforms.batching.traffic import *
from tests.transforms.batching.devices import *

N = 1500
S = settings(max_examples=N, deadline=None)
C = Line(0.010, 0.0005, 0.0002)


def plain(**kw):
    return policies(
        **{
            **dict(
                min_size=1,
                allowed_sizes=(),
                weight_fn=None,
                length_fn=None,
                max_weight=None,
                max_seconds=None,
                capacity_seconds=None,
            ),
            **kw,
        }
    )


def intime(play):
    for r in play.ran:
        if r.batch:
            assert r.time + C.expected(r.size, r.weight) <= min(o.deadline for o in r.batch) + 1e-9, r


@S
@given(plain(weight_fn=FUNCTIONS["weight_fn"], deadline_fn=FUNCTIONS["deadline_fn"], priority_fn=None), traffic)
def test_in_time_weight_nopri(policy, coming):
    intime(Play(policy, C).play(coming))


@S
@given(
    plain(weight_fn=FUNCTIONS["weight_fn"], deadline_fn=FUNCTIONS["deadline_fn"], priority_fn=FUNCTIONS["priority_fn"]),
    traffic,
)
def test_empty_weight(policy, coming):
    p = Play(policy, C)
    for x in coming:
        p.arrive(x)
    while p.scheduler:
        p.now = max(p.now, p.free)
        p._turn(True)
        assert p.ran[-1].batch or not p.scheduler


@S
@given(plain(deadline_fn=FUNCTIONS["deadline_fn"], priority_fn=FUNCTIONS["priority_fn"]), traffic)
def test_in_time_pri(policy, coming):
    intime(Play(policy, C).play(coming))


@S
@given(
    plain(length_fn=FUNCTIONS["length_fn"], deadline_fn=FUNCTIONS["deadline_fn"], priority_fn=None),
    st.lists(comings, max_size=12),
)
def test_length_onecall(policy, coming):
    # all submitted at once, single release from full queue
    s = Scheduler(policy, C)
    for i, c in enumerate(coming):
        s.submit(Element(i, 0, c.slack, c.weight, 0), 0.0, c.slack, c.weight)
    r = s.release(0.0)
    if r.batch:
        assert C.expected(r.size, r.weight) <= min(o.deadline for o in r.batch) + 1e-9


@S
@given(
    plain(length_fn=FUNCTIONS["length_fn"], deadline_fn=FUNCTIONS["deadline_fn"], priority_fn=FUNCTIONS["priority_fn"]),
    st.lists(comings, max_size=12),
)
def test_length_onecall_pri(policy, coming):
    s = Scheduler(policy, C)
    for i, c in enumerate(coming):
        s.submit(Element(i, 0, c.slack, c.weight, 0), 0.0, c.slack, c.weight, c.priority)
    r = s.release(0.0)
    if r.batch:
        assert C.expected(r.size, r.weight) <= min(o.deadline for o in r.batch) + 1e-9


@S
@given(
    plain(
        allowed_sizes=(1, 2, 5, 8), max_size=8, deadline_fn=FUNCTIONS["deadline_fn"], priority_fn=None, latency_slo=None
    ),
    traffic,
)
def test_allowed_intime(policy, coming):
    intime(Play(policy, C).play(coming))


@S
@given(
    plain(
        allowed_sizes=(1, 2, 5, 8),
        max_size=8,
        deadline_fn=FUNCTIONS["deadline_fn"],
        priority_fn=FUNCTIONS["priority_fn"],
    ),
    traffic,
)
def test_allowed_intime_pri(policy, coming):
    intime(Play(policy, C).play(coming))


@S
@given(plain(allowed_sizes=(1, 2, 5, 8), max_size=8, max_seconds=0.012), traffic)
def test_allowed_maxs(policy, coming):
    for r in Play(policy, C).play(coming).ran:
        assert not r.batch or C.expected(r.size, r.weight) <= 0.012 + 1e-9


@S
@given(plain(weight_fn=FUNCTIONS["weight_fn"], max_seconds=0.012, deadline_fn=None), traffic)
def test_weight_maxs(policy, coming):
    for r in Play(policy, C).play(coming).ran:
        assert len(r.batch) < 2 or C.expected(r.size, r.weight) <= 0.012 + 1e-9, r


@S
@given(plain(length_fn=FUNCTIONS["length_fn"], max_seconds=0.012, deadline_fn=None), traffic)
def test_length_maxs(policy, coming):
    for r in Play(policy, C).play(coming).ran:
        assert len(r.batch) < 2 or C.expected(r.size, r.weight) <= 0.012 + 1e-9, r


@S
@given(
    policies(target_overhead=0.3),
    st.lists(st.tuples(comings, st.floats(0, 5)), min_size=1, max_size=8),
    st.floats(0, 6),
    st.sampled_from([None, C]),
)
def test_next(policy, ones, now, cost):
    rule = ReleaseRule(policy, cost or CostModel())
    b = Backlog()
    for c, t in ones:
        b = b.plus(Backlog(1, c.weight, t, t + c.slack))
    t = rule.next_time(b, now)
    assert t >= now
    if t < math.inf:
        assert rule.due(b, t)
    if t > now:
        assert rule.due(b, now) in (None, Reason.SIZE, Reason.WEIGHT)
        assert rule.due(b, math.nextafter(t, 0)) in (None, Reason.SIZE, Reason.WEIGHT)
