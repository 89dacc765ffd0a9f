from __future__ import annotations

import math
import pickle
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from contbatch.transforms.learning.batches import Batch  # noqa: E402
from contbatch.transforms.learning.learner import Arrays, Columns  # noqa: E402
from contbatch.transforms.learning.normalization import BatchRenorm1d, freeze_batch_norm  # noqa: E402
from contbatch.transforms.learning.staleness import Applier, Fate, GradientLearner  # noqa: E402
from contbatch.transforms.learning.step_size import AdaScale, Linear, SquareRoot, StepSize  # noqa: E402
from contbatch.transforms.learning.torch_arrays import TorchState  # noqa: E402
from contbatch.transforms.learning.torch_learner import TorchLearner  # noqa: E402
from contbatch.transforms.learning.two_tower import two_tower  # noqa: E402

SGD = partial(torch.optim.SGD, lr=0.1)
Stream = list[tuple[Columns, Any, Any]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def one_weight() -> nn.Module:
    """``w * x`` with w = 0."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def half_square(outputs: Tensor, labels: Tensor) -> Tensor:
    """Its gradient at w = 0 is ``-label * x``."""
    return (outputs.reshape(-1) - labels).square() / 2


def straight(outputs: Tensor, labels: Tensor) -> Tensor:
    """Its gradient is ``-label * x`` everywhere."""
    return -outputs.reshape(-1) * labels


def floats(columns: Columns) -> Tensor:
    return torch.tensor(columns["x"], dtype=torch.float32).reshape(len(columns["x"]), -1)


def same_outputs(outputs: Tensor) -> Tensor:
    return outputs


LINE = TorchLearner(
    one_weight, floats, ("x",), loss=half_square, link=same_outputs, optimizer=SGD, step_size=StepSize(), device="cpu"
)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))


NETWORK = replace(LINE, model=network, loss=TorchLearner.loss, link=torch.sigmoid)


def dropout_network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), BatchRenorm1d(8, warm_up=20), nn.ReLU(), nn.Linear(8, 1))


def stream(batches: int, seed: int = 0) -> Stream:
    random = np.random.default_rng(seed)
    out: Stream = []
    for size in random.integers(1, 40, batches):
        x = random.normal(size=(size, 3))
        out.append(({"x": x.tolist()}, (x.sum(1) > 0).astype(float), random.uniform(0.5, 2.0, size)))
    return out


def learn(learner: TorchLearner, given_stream: Stream, state: TorchState | None = None) -> TorchState:
    state = learner.init() if state is None else state
    for columns, labels, weights in given_stream:
        state = learner.step(state, columns, labels, weights)
    return state


def step(learner: TorchLearner, labels: list[float], state: TorchState | None = None, **columns: Any) -> TorchState:
    x = columns.get("x", [1.0] * len(labels))
    weights = columns.get("weights", [1.0] * len(labels))
    return learner.step(state or learner.init(), {"x": x}, np.array(labels), np.array(weights))


def weight(state: TorchState) -> float:
    return next(state.model.parameters()).item()


def same(left: Arrays, right: Arrays) -> bool:
    return left.keys() == right.keys() and all(left[name].tobytes() == right[name].tobytes() for name in left)


def test_torch_has_as_many_threads_as_before_wherever_it_was_called() -> None:
    """And as few as asked for inside, so that nobody waits for a thread that has no core."""
    seen: list[int] = []

    def counted(outputs: Tensor, labels: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return half_square(outputs, labels)

    torch.set_num_threads(3)
    for threads in (1, 2):
        learner = replace(LINE, loss=counted, threads=threads)
        state = learner.load(learner.export(step(learner, [1.0])))
        learner.predict(
            learner.apply(state, learner.gradient(state, {"x": [1.0]}, np.ones(1), np.ones(1))), {"x": [1.0]}
        )
        assert torch.get_num_threads() == 3
    assert seen == [1, 1, 2, 2]


def test_the_module_is_made_once_and_every_state_has_its_own() -> None:
    made: list[nn.Module] = []

    def make() -> nn.Module:
        made.append(network())
        return made[-1]

    learner = replace(NETWORK, model=make)
    first = learner.export(learner.init())
    learner.load(first)
    learn(learner, stream(3))
    assert same(learner.export(deepcopy(learner).init()), first)
    assert len(made) == 1


def test_the_module_does_not_travel() -> None:
    learner = replace(NETWORK, model=network)
    size = len(pickle.dumps(learner))
    first = learner.export(learner.init())
    travelled = pickle.loads(pickle.dumps(learner))  # noqa: S301
    assert len(pickle.dumps(learner)) == size
    assert same(travelled.export(travelled.init()), first)


@pytest.mark.parametrize("chunk", [1, 2, 4, 5, 99])
def test_chunks_are_summed_and_divided_once(chunk: int) -> None:
    """Labels 0, 0, 0, 0, 10 give a mean gradient of -2; the mean of the means of chunks of 4 and 1 would be -5."""
    state = step(replace(LINE, chunk=chunk), [0.0, 0.0, 0.0, 0.0, 10.0])
    assert weight(state) == pytest.approx(0.1 * 2)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_the_divisor_is_the_weight(chunk: int) -> None:
    """Labels 4, 10, 1 of weight 1, 0.5, 2.5: (4 + 5 + 2.5) / 4."""
    state = step(replace(LINE, chunk=chunk), [4.0, 10.0, 1.0], weights=[1.0, 0.5, 2.5])
    assert weight(state) == pytest.approx(0.1 * 11.5 / 4)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 50), st.integers(0, 3), st.sampled_from([StepSize(), Linear(), SquareRoot()]))
def test_the_result_does_not_depend_on_the_chunk(chunk: int, seed: int, rule: StepSize) -> None:
    learner = replace(NETWORK, step_size=rule, optimizer=torch.optim.SGD, clip=1.0)
    whole = learner.export(learn(learner, stream(4, seed)))
    cut = learner.export(learn(replace(learner, chunk=chunk), stream(4, seed)))
    assert all(np.allclose(cut[name], whole[name], rtol=0, atol=1e-6) for name in whole)


def test_the_square_root_rule_moves_adam_by_hand() -> None:
    """For a gradient that is always the same, Adam moves by its rate, if averages are corrected by what they hold.

    Weights of 32, 4 and 256 are k of 1, 1/8 and 8, and the rate goes with the root of each.
    """
    adam = partial(torch.optim.Adam, lr=0.01, eps=0.0)
    learner = replace(LINE, optimizer=adam, loss=straight, step_size=SquareRoot(reference=32.0))
    state, moved = learner.init(), 0.0
    for k in (8.0, 1 / 8, 1.0, 1 / 8, 8.0):
        state = step(learner, [1.0], state, weights=[32 * k])
        moved += 0.01 * math.sqrt(k)
        assert weight(state) == pytest.approx(moved, rel=1e-4)
    assert state.progress == 8 + 1 / 8 + 1 + 1 / 8 + 8


def test_settings_follow_the_step_and_come_back() -> None:
    learner = replace(LINE, optimizer=partial(torch.optim.Adam, lr=0.01), step_size=SquareRoot(reference=1.0))
    state = step(learner, [1.0] * 4)
    group = state.optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.02, (0.9**4, 0.999**4), 0.5e-8)
    step(learner, [1.0], state)
    assert (group["lr"], group["betas"], group["eps"]) == (0.01, (0.9, 0.999), 1e-8)
    rms = replace(learner, optimizer=partial(torch.optim.RMSprop, alpha=0.9))
    assert step(rms, [1.0] * 4).optimizer.param_groups[0]["alpha"] == 0.9**4


def test_moments_stay_when_the_size_changes() -> None:
    """Momentum 0.5 and gradient -1: velocities 1, 1.5, 1.75 whatever the sizes."""
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.5)
    learner, state = replace(LINE, optimizer=sgd, loss=straight), None
    for size in (1, 40, 3):
        state = step(learner, [1.0] * size, state)
    assert state is not None
    assert weight(state) == pytest.approx(0.1 * (1 + 1.5 + 1.75))


def test_a_schedule_is_driven_by_progress() -> None:
    """Rate 1 up to half a step of the reference (8 rows), 0 after it: rows count, not steps."""
    learner = replace(LINE, loss=straight, step_size=StepSize(reference=8.0), schedule=lambda done: float(done < 0.5))
    state = learner.init()
    for _ in range(6):
        step(learner, [1.0], state)
    assert weight(state) == pytest.approx(0.1 * 4)
    assert state.progress == 6 / 8


def test_a_large_gradient_is_clipped() -> None:
    assert weight(step(replace(LINE, clip=0.5), [10.0])) == pytest.approx(0.1 * 0.5)
    assert weight(step(replace(LINE, clip=0.5), [0.25])) == pytest.approx(0.1 * 0.25)


def test_adascale_measures_the_chunks_of_its_step() -> None:
    """Gradients -2 and -6 as chunks of weight 1 and 3: the numbers of the test of the rule."""
    rule = AdaScale(reference=2.0, theta=0.5, pieces=2)
    learner = replace(LINE, loss=straight, step_size=rule)
    state = step(learner, [2.0, 6.0], weights=[1.0, 3.0])
    assert state.noise == pytest.approx((0.75 * 6, 0.75 * 22))
    assert weight(state) == pytest.approx(0.1 * 28 / 25 * 5)
    assert state.progress == pytest.approx(28 / 25)


def test_adascale_ignores_a_chunk_of_no_weight() -> None:
    learner = replace(LINE, loss=straight, step_size=AdaScale(pieces=2))
    state = step(learner, [2.0, 6.0], weights=[1.0, 0.0])
    assert (state.steps, state.noise) == (1, (0.0, 0.0))


OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "momentum": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    "plain": SGD,
    "adam": partial(torch.optim.Adam, lr=0.01, amsgrad=True),
    "adamw": partial(torch.optim.AdamW, lr=0.01),
    "adagrad": partial(torch.optim.Adagrad, lr=0.1, lr_decay=0.01),
    "rmsprop": partial(torch.optim.RMSprop, lr=0.01, momentum=0.5),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", [AdaScale(reference=8.0), SquareRoot(reference=8.0)])
def test_a_restored_state_goes_on_to_the_bit(optimizer: str, rule: StepSize) -> None:
    learner = replace(NETWORK, model=dropout_network, optimizer=OPTIMIZERS[optimizer], step_size=rule, chunk=16)
    batches = stream(8)
    whole = learn(learner, batches)
    content = safetensors.numpy.save(learner.export(learn(learner, batches[:3])))
    restored = learner.load(safetensors.numpy.load(content))
    assert same(learner.export(learn(learner, batches[3:], restored)), learner.export(whole))
    columns = batches[0][0]
    assert np.array_equal(learner.predict(restored, columns), learner.predict(whole, columns))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_state_before_the_first_step_is_restored(optimizer: str) -> None:
    learner = replace(NETWORK, optimizer=OPTIMIZERS[optimizer])
    restored = learner.load(learner.export(learner.init()))
    assert same(learner.export(restored), learner.export(learner.init()))
    assert same(learner.export(learn(learner, stream(2), restored)), learner.export(learn(learner, stream(2))))


class Partly(nn.Module):
    """A part that has no gradient until it is used, and a count in Python's own numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Linear(1, 1), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.early(x) if (x < 5).all() else self.early(x) + self.late(x)


class Counting(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for group in self.param_groups:
            for parameter in (parameter for parameter in group["params"] if parameter.grad is not None):
                self.state[parameter]["calls"] = self.state[parameter].get("calls", 0) + 1


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, partial(Counting, lr=0.1)])
def test_a_parameter_without_a_gradient_so_far_is_restored(optimizer: Any) -> None:
    learner = replace(LINE, model=Partly, optimizer=optimizer, step_size=SquareRoot())
    state = step(learner, [1.0, 2.0])
    assert not any(name.startswith("optimizer/late") for name in learner.export(state))
    restored = learner.load(learner.export(state))
    later = [step(learner, [1.0], each, x=[9.0]) for each in (state, restored)]
    assert same(*map(learner.export, later))
    assert learner.export(later[0]).keys() == learner.export(later[1]).keys()


def test_a_loaded_state_shares_nothing() -> None:
    state = learn(NETWORK, stream(2))
    arrays = NETWORK.export(state)
    before = {name: array.copy() for name, array in arrays.items()}
    learn(NETWORK, stream(2), NETWORK.load(arrays))
    learn(NETWORK, stream(2), state)
    assert same(arrays, before)


def test_a_factory_may_give_one_module_twice() -> None:
    module = network()
    learner = replace(NETWORK, model=lambda: module)
    first, second = learner.init(), learner.init()
    before = learner.export(second)
    learn(learner, stream(2), first)
    assert same(learner.export(second), before)
    assert same(learner.export(learner.init()), before)


def test_the_names_are_stable() -> None:
    learner = replace(NETWORK, model=lambda: nn.Linear(3, 1), optimizer=torch.optim.Adam)
    moments = [f"optimizer/{name}/{key}" for name in ("weight", "bias") for key in ("step", "exp_avg", "exp_avg_sq")]
    counts = ["steps", "refused", "progress", "noise", "decay"]
    names = ["parameter/weight", "parameter/bias", *moments, *counts]
    assert sorted(learner.export(learn(learner, stream(1)))) == sorted(names)


def test_bfloat16_is_exported_exactly_as_float32() -> None:
    learner = replace(LINE, model=lambda: one_weight().bfloat16(), encode=lambda columns: floats(columns).bfloat16())
    state = step(learner, [1.0, 2.5])
    arrays = learner.export(state)
    assert arrays["parameter/weight"].dtype == np.float32
    restored = learner.load(arrays)
    assert next(restored.model.parameters()).dtype == torch.bfloat16
    assert weight(restored) == weight(state) != 0


@pytest.mark.parametrize(
    ("other", "text"),
    [
        ({"model": lambda: nn.Linear(4, 1)}, r"parameter/weight has float32 \(1, 3\), expected float32 \(1, 4\)"),
        ({"model": network}, r"parameter/0\.weight is missing"),
        ({"model": lambda: nn.Linear(3, 1, bias=False)}, "parameter/bias is unknown"),
        ({"model": lambda: nn.Linear(3, 1).double()}, r"float32 \(1, 3\), expected float64 \(1, 3\)"),
        ({"optimizer": torch.optim.Adam}, "optimizer/weight/step is missing"),
        ({"optimizer": SGD}, "optimizer/weight/momentum_buffer is unknown"),
    ],
)
def test_arrays_of_another_configuration_are_refused(other: dict[str, Any], text: str) -> None:
    learner = replace(NETWORK, model=lambda: nn.Linear(3, 1), optimizer=OPTIMIZERS["momentum"])
    arrays = learner.export(learn(learner, stream(1)))
    with pytest.raises(ValueError, match=text + ".*use them with the configuration"):
        replace(learner, **other).load(arrays)


def test_moments_that_are_missing_after_steps_are_refused() -> None:
    arrays = NETWORK.export(learn(NETWORK, stream(1)))
    with pytest.raises(ValueError, match="exp_avg is missing"):
        replace(NETWORK, optimizer=torch.optim.Adam).load(arrays)


@pytest.mark.parametrize(
    ("x", "label"), [([1.0, math.nan, 1.0], 1.0), ([1.0, math.inf, 1.0], 1.0), ([1.0, 1.0, 1.0], math.nan)]
)
@pytest.mark.parametrize("chunk", [1, 99])
def test_a_step_that_is_not_finite_changes_nothing(x: list[float], label: float, chunk: int) -> None:
    """Its running statistics neither."""
    learner = replace(
        LINE,
        model=lambda: nn.Sequential(nn.Linear(1, 2), BatchRenorm1d(2), nn.Linear(2, 1), nn.Linear(1, 1)),
        optimizer=torch.optim.Adam,
        step_size=AdaScale(pieces=2),
        chunk=chunk,
    )
    state = step(learner, [1.0, 2.0, 3.0], x=[0.1, 0.2, 0.3])
    before = learner.export(state)
    after = learner.export(step(learner, [label] * 3, state, x=x))
    assert after["refused"] == 1
    assert same(after | {"refused": before["refused"]}, before)
    assert learner.load(after).refused == 1
    assert step(learner, [1.0], state).steps == 2  # and it goes on


def test_either_of_loss_and_gradient_is_enough_to_refuse_a_step() -> None:
    state = step(replace(LINE, loss=straight), [1.0], x=[1e30])  # loss 0, and the gradient's square overflows
    assert (state.refused, weight(state)) == (1, 0.0)
    state = step(replace(LINE, loss=lambda outputs, labels: outputs.reshape(-1) + labels), [math.inf])  # gradient 1
    assert (state.refused, weight(state)) == (1, 0.0)


def test_no_weight_is_no_step() -> None:
    state = step(LINE, [3.0], weights=[0.0])
    assert (state.steps, state.refused, weight(state)) == (0, 0, 0.0)
    assert LINE.step(state, {"x": []}, np.zeros(0), np.zeros(0)).steps == 0


def test_batch_norm_that_trains_is_refused() -> None:
    learner = replace(NETWORK, model=lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)))
    with pytest.raises(ValueError, match="1 is a BatchNorm1d in training mode: statistics of 1 to 8 rows are noise"):
        learner.init()


def test_frozen_batch_norm_stays_frozen_while_the_rest_trains() -> None:
    learner = replace(
        NETWORK, model=lambda: freeze_batch_norm(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)))
    )
    before, after = learner.export(learner.init()), learner.export(learn(learner, stream(3)))
    assert np.array_equal(after["buffer/1.running_mean"], before["buffer/1.running_mean"])
    assert not np.array_equal(after["parameter/1.weight"], before["parameter/1.weight"])


def groups() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.GroupNorm(2, 8), nn.ReLU(), nn.Linear(8, 1))


@pytest.mark.parametrize("model", [network, groups, dropout_network])
def test_a_score_does_not_depend_on_what_else_is_in_the_batch(model: Callable[[], nn.Module]) -> None:
    learner = replace(NETWORK, model=model)
    state = learn(learner, stream(4))
    before = learner.export(state)
    rows = np.random.default_rng(1).normal(size=(32, 3)).tolist()
    together = learner.predict(state, {"x": rows})
    assert together.dtype == np.float64
    alone = [learner.predict(state, {"x": [row]})[0] for row in rows]
    assert np.allclose(together, alone, rtol=0, atol=1e-6)
    assert np.allclose(replace(learner, chunk=5).predict(state, {"x": rows}), together, rtol=0, atol=1e-6)
    assert same(learner.export(state), before)


def test_predicting_between_steps_changes_nothing() -> None:
    learner = replace(NETWORK, model=dropout_network)
    state = learner.init()
    for columns, labels, weights in stream(4):
        learner.predict(state, columns)
        state = learner.step(state, columns, labels, weights)
    assert same(learner.export(state), learner.export(learn(learner, stream(4))))


def test_random_numbers_come_from_the_seed_and_leave_those_of_the_process_alone() -> None:
    learner = replace(NETWORK, model=dropout_network)
    torch.manual_seed(3)
    wanted = torch.rand(2)
    torch.manual_seed(3)
    first = learner.export(learn(learner, stream(3)))
    assert torch.equal(torch.rand(2), wanted)
    assert same(learner.export(learn(learner, stream(3))), first)
    other = replace(learner, seed=1)
    assert not same(other.export(other.init()), learner.export(learner.init()))


def test_dropout_differs_from_step_to_step() -> None:
    learner = replace(LINE, model=lambda: nn.Sequential(nn.Dropout(0.5), one_weight()), loss=straight)
    state, moves, before = learner.init(), set(), 0.0
    for _ in range(20):
        step(learner, [1.0], state)
        moves.add(round(weight(state) - before, 3))
        before = weight(state)
    assert moves == {0.0, 0.2}


def test_inputs_may_be_named() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = one_weight()

        def forward(self, *, x: Tensor, scale: Tensor) -> Tensor:
            return self.inner(x * scale)

    def encode(columns: Columns) -> dict[str, Tensor]:
        return {"x": floats(columns), "scale": torch.full((len(columns["x"]), 1), 3.0)}

    state = step(replace(LINE, model=Named, encode=encode, chunk=1), [1.0, 2.0])
    assert weight(state) == pytest.approx(0.1 * 3 * 1.5)


def test_no_rows_have_no_scores() -> None:
    assert NETWORK.predict(NETWORK.init(), {"x": []}).shape == (0,)


def test_what_does_not_fit_the_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"loss gives shape \(\) for 2 rows; give one number per row"):
        step(replace(LINE, loss=lambda outputs, labels: half_square(outputs, labels).mean()), [1.0, 2.0])
    with pytest.raises(ValueError, match=r"loss gives shape \(2, 2\) for 2 rows"):
        step(replace(LINE, loss=lambda outputs, labels: outputs - labels), [1.0, 2.0])
    with pytest.raises(ValueError, match=r"encode gives a tensor of shape \(1,\) for 2 rows; one row each"):
        step(replace(LINE, encode=lambda columns: torch.zeros(1)), [1.0, 2.0])
    wide = replace(LINE, link=lambda outputs: outputs.expand(-1, 3))
    with pytest.raises(ValueError, match=r"link gives \(2, 3\) for 2 rows; give one score each"):
        wide.predict(wide.init(), {"x": [1.0, 2.0]})


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"model": nn.ReLU}, "no trainable parameter; there is nothing to learn"),
        (
            {"model": lambda: nn.Embedding(3, 1, sparse=True)},
            "sparse gradients and SGD as its optimizer; give .*Adagrad",
        ),
        ({"fields": ()}, "fields is empty; name at least one column"),
        ({"chunk": 0}, "chunk is 0; give 1 row or more"),
        ({"clip": 0.0}, "clip is 0.0; give a norm above 0, or None"),
        ({"seed": -1}, "seed is -1; give 0 or more"),
        ({"threads": 0}, "threads is 0; give 1 or more"),
    ],
)
def test_a_setting_that_cannot_work_is_refused(setting: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(LINE, **setting).init()


def test_the_configuration_can_be_pickled() -> None:
    learner = replace(NETWORK, optimizer=OPTIMIZERS["adam"], step_size=AdaScale())
    copy = pickle.loads(pickle.dumps(learner))  # noqa: S301
    assert copy.step_size == learner.step_size
    assert same(copy.export(learn(copy, stream(2))), learner.export(learn(learner, stream(2))))


def test_a_gradient_is_a_sum_beside_its_weight() -> None:
    """Labels 4, 10, 1 of weight 1, 0.5, 2.5 at w = 0: a gradient of -(4 + 5 + 2.5), a loss of (16 + 50 + 2.5) / 2."""
    state = LINE.init()
    sums = LINE.gradient(state, {"x": [1.0] * 3}, np.array([4.0, 10.0, 1.0]), np.array([1.0, 0.5, 2.5]))
    assert {name: array.item() for name, array in sums.items()} == {"weight": 4.0, "loss": 34.25, "sum/weight": -11.5}
    assert weight(LINE.apply(state, sums)) == pytest.approx(0.1 * 11.5 / 4)
    assert weight(LINE.apply(state, sums)) == pytest.approx(0.2 * 11.5 / 4)  # a stale one is taken as it is


def in_halves(learner: TorchLearner, given_stream: Stream) -> TorchState:
    """Learn by gradients that go through bytes and cannot be written to."""
    state = learner.init()
    for batch in given_stream:
        gradient = safetensors.numpy.load(safetensors.numpy.save(learner.gradient(state, *batch)))
        for array in gradient.values():
            array.setflags(write=False)
        state = learner.apply(state, gradient)
    return state


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("rule", [StepSize(), Linear(reference=8.0, warm_up=5.0), SquareRoot(reference=8.0)])
def test_two_halves_are_a_step_to_the_bit(optimizer: str, rule: StepSize) -> None:
    learner = replace(
        NETWORK,
        model=dropout_network,
        optimizer=OPTIMIZERS[optimizer],
        step_size=rule,
        schedule=lambda done: 1 / (1 + done),
        chunk=16,
        clip=0.3,
    )
    assert same(learner.export(in_halves(learner, stream(6))), learner.export(learn(learner, stream(6))))


def test_two_halves_are_a_step_to_the_bit_in_sparse_and_in_short_types() -> None:
    sparse = replace(PAIR, chunk=3, clip=0.1)
    people = [visits(20, seed) for seed in range(3)]
    short = replace(NETWORK, model=lambda: network().bfloat16(), encode=lambda columns: floats(columns).bfloat16())
    for learner, batches in ((sparse, people), (short, stream(4))):
        assert same(learner.export(in_halves(learner, batches)), learner.export(learn(learner, batches)))
    assert "row/vectors.weight" in sparse.gradient(sparse.init(), *people[0])


class Turned(nn.Module):
    """Its gradient lies in memory by columns, and a norm is summed as a tensor lies."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(300, 30))

    def forward(self, x: Tensor) -> Tensor:
        return (x.repeat(1, 10)[:, :, None] * self.weight.t()).tanh().sum((1, 2))


def test_two_halves_are_a_step_to_the_bit_however_a_gradient_lies_in_memory() -> None:
    learner = replace(NETWORK, model=Turned, clip=0.01)
    assert same(learner.export(in_halves(learner, stream(6))), learner.export(learn(learner, stream(6))))


def test_a_gradient_leaves_its_state_as_it_is() -> None:
    learner = replace(NETWORK, model=dropout_network)
    state = learn(learner, stream(2))
    before = learner.export(state)
    learner.gradient(state, *stream(1, seed=3)[0])
    assert same(learner.export(state), before)
    with pytest.raises(ValueError, match="give one number per row"):
        replace(learner, loss=lambda outputs, labels: outputs).gradient(state, *stream(1, seed=3)[0])
    assert same(learner.export(state), before)


def test_of_gradients_of_one_state_the_last_buffers_stay() -> None:
    learner = replace(NETWORK, model=dropout_network)
    state = learner.init()
    rows = [len(labels) for _, labels, _ in stream(2)]
    for gradient in [learner.gradient(state, *batch) for batch in stream(2)]:
        learner.apply(state, gradient)
    assert (state.steps, learner.export(state)["buffer/2.rows"]) == (2, rows[1])


def test_a_gradient_that_is_not_finite_or_of_no_weight_changes_no_weights() -> None:
    learner = replace(LINE, model=lambda: nn.Sequential(nn.Linear(1, 2), BatchRenorm1d(2), nn.Linear(2, 1)))
    state = step(learner, [1.0, 2.0], x=[0.1, 0.2])
    before = learner.export(state)
    learner.apply(state, learner.gradient(state, {"x": [math.nan, 1.0]}, np.ones(2), np.ones(2)))
    assert same(learner.export(state), before | {"refused": np.array(1)})
    learner.apply(state, learner.gradient(state, {"x": [1.0]}, np.ones(1), np.zeros(1)))
    learner.apply(state, learner.gradient(state, {"x": []}, np.zeros(0), np.zeros(0)))
    assert same(learner.export(state), before | {"refused": np.array(1)})


def test_a_step_size_that_sees_chunks_is_not_for_halves() -> None:
    gradient = LINE.gradient(LINE.init(), {"x": [1.0]}, np.ones(1), np.ones(1))
    learner = replace(LINE, step_size=AdaScale())
    text = "step_size is AdaScale, which has to see the chunks .* give StepSize, Linear or SquareRoot"
    with pytest.raises(ValueError, match=text):
        learner.gradient(learner.init(), {"x": [1.0]}, np.ones(1), np.ones(1))
    with pytest.raises(ValueError, match=text):
        learner.apply(learner.init(), gradient)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"sum/0.weight": np.zeros((8, 2), np.float32)},
            r"sum/0.weight has float32 \(8, 2\), expected float32 \(8, 3\)",
        ),
        ({"buffer/2.mean": np.zeros(1, np.float32)}, r"buffer/2.mean has float32 \(1,\), expected float32 \(8,\)"),
        ({"buffer/2.mean": None}, "buffer/2.mean is missing"),
        ({"weight": None}, "weight is missing"),
        ({"sum/9.weight": np.zeros(1)}, "sum/9.weight is unknown"),
        (
            {"sum/0.weight": np.zeros((1, 3), np.float32), "row/0.weight": np.array([[8]])},
            "row/0.weight has row 8, expected rows below 8",
        ),
    ],
)
def test_a_gradient_of_another_model_is_refused(change: dict[str, Any], text: str) -> None:
    learner = replace(NETWORK, model=dropout_network)
    gradient = learner.gradient(learner.init(), *stream(1)[0]) | change
    gradient = {name: array for name, array in gradient.items() if array is not None}
    state = learner.init()
    with pytest.raises(ValueError, match=text + ".*use them with the configuration"):
        learner.apply(state, gradient)
    assert same(learner.export(state), learner.export(learner.init()))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=6), st.sampled_from([StepSize(), Linear(), SquareRoot()]))
def test_asynchronous_training_of_bound_0_is_serial_training(behind: list[int], rule: StepSize) -> None:
    """Each gradient is of the weights some versions before; those are workers' own copies."""
    learner = replace(NETWORK, model=dropout_network, optimizer=torch.optim.Adam, step_size=rule)
    worker: GradientLearner[TorchState] = learner
    applier = Applier(worker, bound=0)
    versions = [learner.export(applier.state)]
    batches = stream(len(behind))
    for delay, batch in zip(behind, batches, strict=True):
        version = max(applier.version - delay, 0)
        gradient = worker.gradient(worker.load(versions[version]), *batch)
        outcome = applier.submit(version, gradient, Batch(*batch))
        assert outcome.fate == (Fate.APPLIED if version == outcome.version - 1 else Fate.RECOMPUTED)
        versions.append(learner.export(applier.state))
    assert same(versions[-1], learner.export(learn(learner, batches)))


PAIR = two_tower(("user", "item", "tags", "age"), ((("user",), ("item", "tags")),), factors=4, bits=8, device="cpu")


def visits(size: int, seed: int = 0) -> tuple[Columns, Any, Any]:
    random = np.random.default_rng(seed)
    users, items = random.integers(0, 20, size), random.integers(0, 20, size)
    tags = [[f"t{item % 3}", f"t{item % 5}"][: item % 3] for item in items.tolist()]
    columns = {"user": users.astype(str).tolist(), "item": items.astype(str).tolist(), "tags": tags}
    return columns | {"age": ["old"] * size}, ((users + items) % 2).astype(float), np.ones(size)


@pytest.mark.parametrize("head", ["dot", "mlp"])
def test_two_towers_learn_what_depends_on_both_sides(head: str) -> None:
    learner = two_tower(("user", "item"), ((("user",), ("item",)),), bits=8, head=head, device="cpu")
    state = learn(learner, [visits(64, seed) for seed in range(60)])
    columns, labels, _ = visits(200, seed=99)
    assert np.mean((learner.predict(state, columns) > 0.5) == labels) > 0.9


def test_two_towers_at_the_start_are_a_factorisation_by_hand() -> None:
    state = PAIR.init()
    columns = {"user": ["a"], "item": ["x"], "tags": [["k", "l"]], "age": ["old"]}
    ids = PAIR.encode(columns)
    table = dict(state.model.named_parameters())["vectors.weight"]
    user, item, *tags = (
        table[field * 256 + slot]
        for field in (0, 1, 2)
        for slot in ids[field][0]  # type: ignore[call-overload, index]
    )
    logit = user @ (item + (tags[0] + tags[1]) / 2)
    assert PAIR.predict(state, columns) == pytest.approx([torch.sigmoid(logit).item()], rel=1e-5)
    without = PAIR.predict(state, columns | {"tags": [[]]})
    assert without == pytest.approx([torch.sigmoid(user @ item).item()], rel=1e-5)


def test_no_two_fields_share_a_row_and_filling_is_never_learned() -> None:
    """Of 4 fields with 256 slots each, 3 have vectors; one visit moves its own rows alone."""
    state = PAIR.init()
    columns = {"user": ["a"], "item": ["a"], "tags": [[]], "age": ["a"]}
    before = PAIR.export(state)
    after = PAIR.export(PAIR.step(state, columns, np.ones(1), np.ones(1)))
    user, item, _, age = (int(ids[0, 0]) for ids in PAIR.encode(columns))  # type: ignore[index]
    names = ("parameter/weights.weight", "parameter/vectors.weight")
    moved = [np.flatnonzero((after[name] != before[name]).any(1)).tolist() for name in names]
    assert [before[name].shape for name in names] == [(1 + 4 * 256, 1), (1 + 3 * 256, 4)]
    assert moved == [[user, 256 + item, 3 * 256 + age], [user, 256 + item]]
    assert not after["parameter/vectors.weight"][0].any()


def test_two_towers_go_on_to_the_bit_and_score_rows_alone() -> None:
    batches = [visits(size, size) for size in (30, 1, 7, 12)]
    restored = PAIR.load(safetensors.numpy.load(safetensors.numpy.save(PAIR.export(learn(PAIR, batches[:2])))))
    whole = learn(PAIR, batches)
    assert same(PAIR.export(learn(PAIR, batches[2:], restored)), PAIR.export(whole))
    columns = visits(32, seed=5)[0]
    alone = [PAIR.predict(whole, {name: [column[at]] for name, column in columns.items()})[0] for at in range(32)]
    assert np.allclose(PAIR.predict(whole, columns), alone, rtol=0, atol=1e-6)


def test_sparse_gradients_of_chunks_are_summed_too() -> None:
    whole, cut = (
        learner.export(learn(learner, [visits(20, seed) for seed in range(3)]))
        for learner in (replace(PAIR, clip=0.1), replace(PAIR, clip=0.1, chunk=3))
    )
    assert all(np.allclose(cut[name], whole[name], rtol=0, atol=1e-5) for name in whole)


def test_slots_are_stable_and_fill_up_lists() -> None:
    encode = two_tower(("tags",), ((("tags",), ("tags",)),), bits=8).encode
    (slots,) = encode({"tags": [["a"], [], ["b", "a"]]})
    assert slots.tolist() == [[slots[0, 0], 0], [0, 0], [slots[2, 0], slots[0, 0]]]
    assert encode({"tags": ["a"]})[0].tolist() == [[slots[0, 0]]]
    assert slots.min() == 0 < slots[0, 0] <= 256


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"interactions": ((("user",), ("genre",)),)}, "interactions names 'genre', which is not one of fields"),
        ({"interactions": ()}, r"interactions is \(\); give pairs of sides, each of one field or more"),
        ({"factors": 0}, "factors is 0 and hidden is 32; give 1 or more of each"),
        ({"bits": 3}, "bits is 3; give 4 to 28"),
        ({"head": "cosine"}, "head is 'cosine'; give 'dot' or 'mlp'"),
    ],
)
def test_two_towers_outside_their_range_are_refused(setting: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        two_tower(**{"fields": ("user", "item"), "interactions": ((("user",), ("item",)),), **setting}).init()
