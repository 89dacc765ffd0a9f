import math
from hypothesis import given, settings, strategies as st
from tests.transforms.batching.traffic import *
from tests.transforms.batching.devices import *

D = Line(0.010, 0.0005, 0.002)


@settings(max_examples=3000, deadline=None)
@given(policies(capacity_seconds=None), traffic)
def test_idle(policy, coming):
    p = Play(policy, D)
    for c in coming:
        p.arrive(c)
    for r in p.ran:
        pass
    while p.scheduler:
        p.now = max(p.now, p.free)
        p._turn(True)
        assert p.ran[-1].batch or not p.scheduler
