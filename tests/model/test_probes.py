"""The samples that a file is compared on."""

import math

import pytest
import torch

from jumpout_export.model.axes import Axes
from jumpout_export.model.batches import Batch
from jumpout_export.model.probes import as_they_came, joined_rows, make_up, rows, sizes_to_try


def batch_of(*values):
    return Batch(values, {})


def made(*values, count=64, seed=0, batched=None):
    generator = torch.Generator().manual_seed(seed)
    return make_up(batch_of(*values), count, generator, batched).args


@pytest.mark.parametrize(
    ("example", "sizes"), [(1, [1, 2, 3, 17]), (2, [1, 2, 3, 17]), (5, [1, 2, 3, 6, 17]), (64, [1, 2, 3, 65, 66])]
)
def test_sizes_on_both_sides_of_the_example_are_tried_and_a_larger_one(example, sizes):
    assert sizes_to_try(example) == sizes


def test_thorough_sizes_are_powers_of_two_and_their_neighbours():
    assert {7, 8, 9, 15, 16, 63, 64, 65, 127, 128, 129} <= set(sizes_to_try(2, thorough=True))


def test_a_fixed_batch_size_is_filled_up():
    parts = list(as_they_came(batch_of(torch.arange(5.0)), 4, Axes((True,), 3, ({},))))
    assert [(part.group, part.batch.args[0].tolist(), part.start) for part in parts] == [
        ("data", [0, 1, 2], 4),
        ("data", [3, 4, 0], 7),
    ]
    (whole,) = as_they_came(batch_of(torch.arange(5.0)), 0, Axes((True,), None, ({},)))
    assert whole.batch.size == 5


def test_rows_start_again_at_the_first():
    assert rows(batch_of(torch.arange(3)), range(2, 6)).args[0].tolist() == [2, 0, 1, 2]
    assert rows(batch_of(torch.arange(3)), [2, 0, 0]).args[0].tolist() == [2, 0, 0]


def test_samples_of_several_batches_are_put_together_and_a_table_is_not():
    table = torch.ones(3)
    both = joined_rows([batch_of(torch.zeros(1, 2), table), batch_of(torch.ones(2, 2), table)], (True, False))
    assert both.args[0].tolist() == [[0, 0], [1, 1], [1, 1]]
    assert torch.equal(both.args[1], table)


def test_made_up_rows_of_integers_and_masks_are_given_rows_the_same_for_all_inputs():
    codes = torch.tensor([[19, 0], [3, 4], [7, 2]])
    mask, weights = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), torch.tensor([True, False, True])
    its_codes, its_mask, its_weights = made(codes, mask, weights)
    for row, its, weight in zip(its_codes.tolist(), its_mask.tolist(), its_weights.tolist(), strict=True):
        number = codes.tolist().index(row)  # raises for a row that nobody gave
        assert its == mask[number].tolist()
        assert weight == weights[number].item()
    assert len(set(map(tuple, its_codes.tolist()))) == 3


def test_made_up_floats_lie_between_given_ones_and_keep_their_order_and_zeros():
    low = torch.rand(4, 2)
    boxes = torch.cat([low, low + 0.1 + torch.rand(4, 2)], 1)
    (its,) = made(boxes)
    assert (its[:, 2:] > its[:, :2]).all()
    assert (its <= boxes.amax(0)).all()
    assert (its >= boxes.amin(0) * (1 - 2**-7)).all()
    assert len(its.unique(dim=0)) == 64
    assert not any(torch.equal(one, other) for one in its for other in boxes)
    padded = torch.rand(3, 4)
    padded[:, 2:] = 0
    assert (made(padded)[0][:, 2:] == 0).all()


def test_one_sample_is_mixed_with_its_own_mean():
    sample = torch.rand(1, 3, 8, 8)
    (its,) = made(sample)
    assert sample.amin() * (1 - 2**-7) <= its.amin()
    assert its.amax() <= sample.amax()
    assert (its.flatten(1).std(1) < sample.std()).all()


def test_noise_is_made_up_only_where_there_is_nothing_to_draw_from():
    (noise,) = made(torch.zeros(4, 50))
    assert abs(noise.std().item() - 1) < 6 / math.sqrt(2 * noise.numel())


def test_a_seed_gives_the_same_inputs_and_another_gives_others():
    values = torch.rand(4, 3)
    assert torch.equal(made(values)[0], made(values)[0])
    assert not torch.equal(made(values)[0], made(values, seed=1)[0])


def test_what_is_no_batch_stays_as_it_is():
    table = torch.randn(6)
    assert torch.equal(made(torch.rand(4, 2), table, batched=(True, False))[1], table)
