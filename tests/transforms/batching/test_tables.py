"""What a trace becomes before a device that is busy while it runs: the times, sizes and reasons of all batches.

Ten elements come, one each millisecond from 0 ms on. The device takes 10 ms + 0.5 ms * n + 0.2 ms * weight, and is
known exactly. The first element finds it idle and runs by itself, until 10.5 ms; by then the nine others wait.
"""

from __future__ import annotations

from collections import Counter

import pytest

from contbatch.transforms.batching import BatchPolicy, Reason
from tests.transforms.batching.devices import Line
from tests.transforms.batching.traffic import FUNCTIONS, Coming, Play

DEVICE = Line(0.010, 0.0005, 0.0002)


def play(policy: BatchPolicy, **each: list[float]) -> Play:
    """Let the ten come; their slacks, weights and priorities may be given."""
    properties = [dict(zip(each, values, strict=True)) for values in zip(*each.values(), strict=True)] or [{}] * 10
    return Play(policy, DEVICE).play(
        Coming(gap=0.001 if number else 0.0, **given) for number, given in enumerate(properties)
    )


def table(played: Play) -> list[tuple[float, list[int], Reason]]:
    """Return the batches: when they started, in milliseconds, who is in them, and why."""
    ran = [one for one in played.ran if one.batch]
    return [(round(one.time * 1000, 6), [element.number for element in one.batch], one.reason) for one in ran]


def histogram(played: Play) -> dict[int, int]:
    return dict(Counter(map(len, played.batches)))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1, {1: 10}),
        (2, {1: 2, 2: 4}),  # 1 + 2 + 2 + 2 + 2 + 1
        (4, {1: 2, 4: 2}),  # 1 + 4 + 4 + 1
        (8, {1: 2, 8: 1}),  # 1 + 8 + 1
        (9, {1: 1, 9: 1}),  # 1 + 9
        (256, {1: 1, 9: 1}),
    ],
)
def test_by_size(size: int, expected: dict[int, int]) -> None:
    assert histogram(play(BatchPolicy(size))) == expected


def test_by_size_with_times() -> None:
    """4 take 12 ms: from 10.5 to 22.5 ms, and to 34.5 ms."""
    assert table(play(BatchPolicy(4))) == [
        (0.0, [0], Reason.IDLE_DEVICE),
        (10.5, [1, 2, 3, 4], Reason.SIZE),
        (22.5, [5, 6, 7, 8], Reason.SIZE),
        (34.5, [9], Reason.IDLE_DEVICE),
    ]


def test_a_batch_grows_until_the_device_is_free_however_short_the_delay() -> None:
    assert table(play(BatchPolicy(256, max_delay=0.0))) == [
        (0.0, [0], Reason.IDLE_DEVICE),
        (10.5, [*range(1, 10)], Reason.IDLE_DEVICE),
    ]


def test_by_deadline() -> None:
    """Each has 23.2 ms. At 10.5 ms the second has 13.7 ms left, and 7 take 13.5 ms, until 24 ms.

    The last two have until 31.2 and 32.2 ms, and would take 10.5 ms each.
    """
    played = play(BatchPolicy(256, latency_slo=0.0232))
    assert table(played) == [(0.0, [0], Reason.IDLE_DEVICE), (10.5, [*range(1, 8)], Reason.DEADLINE)]
    assert [element.number for ran in played.ran for element in ran.shed] == [8, 9]


def test_by_deadline_with_too_many_waiting() -> None:
    """Each has 20.6 ms, so at 10.5 ms the second has 11.1 ms left and each one after it 1 ms more.

    Full batches of 4 take 12 ms; a head with less than the 11.5 ms of ceil(4 - 12 / 10) = 3 is dropped. The third has
    12.1 ms: it runs with three others until 22.5 ms. Of the four then left the first, of 26.6 ms, is too late by far.
    """
    played = play(BatchPolicy(4, latency_slo=0.0206))
    assert table(played) == [(0.0, [0], Reason.IDLE_DEVICE), (10.5, [2, 3, 4, 5], Reason.SIZE)]
    assert [element.number for ran in played.ran for element in ran.shed] == [1, 6, 7, 8, 9]


def test_by_deadlines_of_their_own() -> None:
    """The later they come, the sooner they must be answered: at 10.5 ms, 12 ms are enough for 4, and the last has 12.4.

    At 22.5 ms the next has until 33.6 ms: 2 in 11 ms, until 33.5. Then the third to last has 11.1 ms, and so on.
    """
    ends = [9.0, 0.0671, 0.0671, 0.0447, 0.0447, 0.0336, 0.0336, 0.0229, 0.0229, 0.0229]
    played = play(
        BatchPolicy(16, deadline_fn=FUNCTIONS["deadline_fn"]),
        slack=[end - number * 0.001 for number, end in enumerate(ends)],
    )
    assert table(played) == [
        (0.0, [0], Reason.IDLE_DEVICE),
        (10.5, [7, 8, 9, 5], Reason.DEADLINE),
        (22.5, [6, 3], Reason.DEADLINE),
        (33.5, [4, 1], Reason.DEADLINE),
        (44.5, [2], Reason.IDLE_DEVICE),
    ]


def test_by_weight() -> None:
    """At most 7: 3 + 3, 3 + 3, 1, 9 by itself, 1 + 1 + 5, 0.

    They take 10 ms, 0.5 ms each and 0.2 ms a unit of weight: the second batch 12.2 ms.
    """
    policy = BatchPolicy(8, max_weight=7.0, weight_fn=FUNCTIONS["weight_fn"])
    played = play(policy, weight=[3, 3, 3, 3, 4, 9, 1, 1, 5, 1])
    assert table(played) == [
        (0.0, [0], Reason.IDLE_DEVICE),  # 11.1 ms
        (11.1, [1, 2], Reason.WEIGHT),  # 12.2 ms
        (23.3, [3, 4], Reason.WEIGHT),  # 12.4 ms
        (35.7, [5], Reason.WEIGHT),  # 12.3 ms
        (48.0, [6, 7, 8], Reason.WEIGHT),  # 12.9 ms
        (60.9, [9], Reason.IDLE_DEVICE),
    ]


def test_by_most_seconds() -> None:
    """In 12.1 ms run 4."""
    played = play(BatchPolicy(256, max_seconds=0.0121))
    assert histogram(played) == {1: 2, 4: 2}
    assert [reason for _, _, reason in table(played)][1:] == [Reason.DEADLINE, Reason.DEADLINE, Reason.IDLE_DEVICE]


@pytest.mark.parametrize(
    ("sizes", "batches"),
    [
        ((2, 8), [(1, 2), (8, 8), (1, 2)]),  # 11 ms, 14 ms, 11 ms
        ((2, 16), [(1, 2), (9, 16)]),  # padded to 16: 18 ms
        ((8, 32), [(1, 8), (9, 32)]),  # nothing more comes: padded to 32 they take 26 ms; 8 and then 1, 14 ms twice
        ((8, 40), [(1, 8), (8, 8), (1, 8)]),  # padded to 40: 30 ms
        ((4,), [(1, 4), (4, 4), (4, 4), (1, 4)]),
    ],
)
def test_by_allowed_sizes(sizes: tuple[int, ...], batches: list[tuple[int, int]]) -> None:
    """Those that wait, and the size that they are padded to."""
    assert [(len(one.batch), one.size) for one in play(BatchPolicy(allowed_sizes=sizes)).ran] == batches


def test_by_priority() -> None:
    """The last two are 1 s more urgent than they came, and the second is 1 s less urgent."""
    policy = BatchPolicy(4, priority_fn=FUNCTIONS["priority_fn"])
    played = play(policy, priority=[0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0])
    assert played.batches == [[0], [8, 9, 2, 3], [4, 5, 6, 7], [1]]


def test_by_length() -> None:
    """Short and long ones by turns. At 10.7 ms the nine others are a pool: five of 30, and four of 1.

    Four of either are a full batch without padding; the shorter ones are found first. The last one of 30 is alone.
    """
    policy = BatchPolicy(4, length_fn=FUNCTIONS["length_fn"])
    played = play(policy, weight=[1.0, 30.0] * 5)
    assert [sorted(batch) for batch in played.batches] == [[0], [2, 4, 6, 8], [1, 3, 5, 7], [9]]
    assert [(one.size, one.weight) for one in played.ran] == [(1, 1.0), (4, 4.0), (4, 120.0), (1, 30.0)]


@pytest.mark.parametrize("overflow", ["shed", "block"])
def test_by_capacity(overflow: str) -> None:
    """Four may wait. Where it blocks, the sixth and all after it come once the first batch is done, at 10.5 ms."""
    played = play(BatchPolicy(4, capacity=4, overflow=overflow))
    counts = played.scheduler.statistics()
    if overflow == "shed":
        assert played.batches == [[0], [1, 2, 3, 4]]
        assert ([element.number for element in played.refused], counts.refused) == ([5, 6, 7, 8, 9], 5)
    else:
        assert played.batches == [[0], [1, 2, 3, 4], [5, 6, 7, 8], [9]]
        assert [element.arrival for element in played.came][5:7] == pytest.approx([0.005, 0.0115])
        assert counts.refused == 0
