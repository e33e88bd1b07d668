"""Samples are run alone once, and every batch of them has to give the same."""

import pytest
import torch
from torch import nn

from jumpout_export.model.signature import onnx_batch
from jumpout_export.verify.values.pool import Pool
from jumpout_export.verify.values.reference import Reference


class Does(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.fc = function, nn.Linear(3, 2)

    def forward(self, x):
        return self.function(self.fc(x))


def pool_of(function, samples=4):
    torch.manual_seed(0)
    model = Does(function).eval()
    x = torch.randn(samples, 3)
    reference = Reference(model, onnx_batch(x, model))
    pool = Pool(reference, (True,))
    for row in range(samples):
        sample = onnx_batch(x[row : row + 1], model)
        pool.add(sample, pool.run(sample))
    return pool, reference, model, x


def run(pool, size):
    order = pool.order(size)
    batch = pool.batch(order)
    return order, batch, pool.expected(f"batch={size}", batch, order)


def test_a_batch_has_the_exact_values_of_its_samples_alone_and_its_own_as_they_are():
    pool, _, model, x = pool_of(torch.tanh)
    double = Does(torch.tanh).double()
    double.load_state_dict(model.state_dict())
    for size in (1, 2, 3, 9):
        order, batch, (output,) = run(pool, size)
        assert torch.equal(batch.args[0], x[order])
        torch.testing.assert_close(output.exact, double(x[order].double()).detach(), rtol=1e-14, atol=1e-14)
        assert torch.equal(output.own, model(x[order]).detach()) or size == 1
    assert pool.dependent == []


def test_each_sample_is_run_in_float64_once_and_once_more_in_one_batch():
    pool, reference, *_ = pool_of(torch.tanh)
    assert reference.samples_double == 4
    for size in (1, 2, 3, 9, 17):
        run(pool, size)
    assert reference.samples_double == 4 + 2
    assert reference.samples_own == 4 + 2 + 3 + 9 + 17
    pool.learn_axes()
    assert reference.samples_own == 4 + 2 + 3 + 9 + 17 + 2


def test_places_change_from_size_to_size():
    pool, *_ = pool_of(torch.tanh)
    assert {pool.order(size)[0] for size in (1, 2, 3, 4)} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    "leak",
    [
        lambda y: y - y.mean(0),
        lambda y: y * (1 + (torch.arange(len(y)) == 4)[:, None]),  # one place
        lambda y: y + 0.1 * (torch.arange(len(y)) >= 8)[:, None] * y[:1],  # into others from the ninth on
        lambda y: y * (1 + (len(y) > 16)),  # by size
        lambda y: y.flip(0),
    ],
    ids=["mean", "place", "from the ninth on", "size", "order"],
)
def test_samples_that_depend_on_each_other_are_found(leak):
    pool, *_ = pool_of(leak)
    for size in (1, 2, 3, 17):
        run(pool, size)
    assert pool.dependent
    assert "alone and in its batch" in pool.dependent[0]


def test_an_output_with_the_batch_on_another_axis_and_one_without_any():
    pool, *_ = pool_of(lambda y: (y.T, torch.ones(2)))
    _, _, (turned, constant) = run(pool, 3)
    assert (turned.axis, constant.axis) == (1, None)
    pool.learn_axes()
    assert [one.axis for one in pool.alone(0)] == [1, None]
    assert [one.axis for one in pool.run(pool.batch([0, 1, 2]))] == [1, None]
    assert pool.dependent == []


def test_integers_that_depend_on_the_place_are_found_though_rounding_decides_them():
    pool, *_ = pool_of(lambda y: (y.argmax(1) + (torch.arange(len(y)) == 4)) % 2)
    for size in (3, 9):
        run(pool, size)
    assert pool.dependent == ["batch=9: output `output` of sample 4 of 9 is another one alone than in its batch"]


def test_what_a_batch_gives_if_samples_do_not_matter_to_each_other_is_known_without_a_run():
    pool, reference, model, x = pool_of(lambda h: {"h": h.tanh(), "anchors": torch.arange(3.0)})
    assert not pool.knows_samples  # nothing showed yet that they do not
    pool.learn_axes()
    run(pool, 2)
    assert pool.knows_samples
    before = reference.samples_own, reference.samples_double
    h, anchors = pool.as_alone(order := pool.order(9))
    assert (reference.samples_own, reference.samples_double) == before
    assert (h.name, h.axis, anchors.axis) == ("h", 0, None)
    torch.testing.assert_close(h.own, model(x[order])["h"].detach())
    double = model.double()(x[order].double())["h"].detach()
    torch.testing.assert_close(h.exact, double, rtol=1e-14, atol=1e-14)
    assert torch.equal(anchors.own, torch.arange(3.0))


def test_samples_that_depend_on_each_other_are_not_known_alone():
    pool, *_ = pool_of(lambda h: h - h.mean(0))
    pool.learn_axes()
    run(pool, 2)
    assert pool.dependent
    assert not pool.knows_samples
