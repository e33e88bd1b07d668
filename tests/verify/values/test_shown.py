"""An output that never moved shows nothing of the file behind it."""

import pytest
import torch
from torch import nn

from jumpout_export.model.signature import onnx_batch
from jumpout_export.verify.values.reference import Expected
from jumpout_export.verify.values.shown import Moves, shown_check


class Two(nn.Module):
    """One output that inputs reach, and a constant."""

    def forward(self, x):
        return {"scores": (x * 0).relu(), "anchors": torch.arange(3.0)}


TWO = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 4.0]])


def moves_of(inputs=TWO, **outputs):
    moves = Moves()
    moves.see(onnx_batch(inputs, Two()), (True,))
    for name, (value, axis) in outputs.items():
        moves.add("batch=2", Expected(name, value, value.double() if value.is_floating_point() else value, None, axis))
    return moves


def verdict(moves, allowed=()):
    return shown_check(moves, Two(), onnx_batch(torch.randn(1, 3), Two()), allowed)


def test_outputs_that_move_need_no_check():
    assert verdict(moves_of(scores=(torch.tensor([[1.0], [1.0 + 2**-23]]), 0))) == []


def test_rounding_in_another_batch_is_no_movement():
    value = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    moves = Moves()
    moves.see(onnx_batch(TWO, Two()), (True,))
    moves.add("batch=2", Expected("scores", value, value.double() * (1 + 1e-13 * torch.tensor([[0.0], [1.0]]))))
    assert list(moves.still()) == ["scores"]
    moves.add("batch=2", Expected("scores", value, value.double() * (1 + 1e-7 * torch.tensor([[0.0], [1.0]]))))
    assert moves.still() == {}


def test_an_output_that_an_input_reaches_and_that_never_moves_is_not_shown():
    (check,) = verdict(moves_of(scores=(torch.zeros(2, 3), 0)))
    assert (check.verdict, check.blocks) == ("not_run", True)
    assert "`scores` (2 samples)" in check.note
    assert "--allow-constant scores" in check.note
    (check,) = verdict(moves_of(scores=(torch.zeros(2, 3), 0)), ["scores"])
    assert (check.verdict, check.note) == ("pass", "constant as allowed: `scores`")


def test_a_constant_passes_with_a_note():
    (check,) = verdict(moves_of(anchors=(torch.arange(3.0), None)))
    assert (check.verdict, check.note) == ("pass", "no input reaches `anchors`, compared as constants")


def test_a_later_sample_may_move_an_output_and_not_a_number_stays_what_it_is():
    moves = moves_of(scores=(torch.full((2, 3), torch.nan), 0))
    assert list(moves.still()) == ["scores"]
    moves.add("data", Expected("scores", torch.ones(1, 3), torch.ones(1, 3).double()))
    assert moves.still() == {}


def test_a_class_may_stay_the_same_where_another_output_moves():
    same = torch.ones(2, dtype=torch.int64)
    assert list(moves_of(classes=(same, 0)).still()) == ["classes"]
    for other, verdicts in ((False, []), (True, ["not_run"])):
        model = Classes(other).eval()
        checks = shown_check(moves_of(classes=(same, 0), scores=(TWO, 0)), model, onnx_batch(TWO, model))
        assert [check.verdict for check in checks] == verdicts


class Classes(nn.Module):
    """Scores, and the class by these or by other ones, of weights that the scores do not show."""

    def __init__(self, other):
        super().__init__()
        self.head, self.second = nn.Linear(3, 3), nn.Linear(3, 3) if other else None

    def forward(self, x):
        scores = self.head(x)
        return {"scores": scores, "classes": (scores if self.second is None else self.second(x)).argmax(1)}


class Weightless(nn.Module):
    def forward(self, x):
        return {"classes": (x * 0).argmax(1)}


def test_a_class_of_no_weights_is_not_shown_where_nothing_moves():
    model = Weightless()
    moves = moves_of(classes=(torch.zeros(2, dtype=torch.int64), 0))
    assert [check.verdict for check in shown_check(moves, model, onnx_batch(TWO, model))] == ["not_run"]


class Extra(nn.Module):
    """A loss that is not computed when serving: made of an input, and of none of its values."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x):
        return {"scores": x * 2, "loss": self.make(x)}


@pytest.mark.parametrize(
    ("make", "verdict"),
    [
        (lambda x: x.new_zeros(()), "pass"),
        (lambda x: torch.zeros_like(x)[:, 0] + 1, "pass"),
        (lambda x: (x * 0).sum(), "not_run"),
        (lambda x: x.new_zeros(len(x)) + 0 * x[:, 0], "not_run"),
    ],
)
def test_what_is_made_of_the_size_of_an_input_alone_is_a_constant(make, verdict):
    moves = moves_of(scores=(TWO, 0), loss=(torch.zeros(2), 0))
    (check,) = shown_check(moves, Extra(make), onnx_batch(TWO, Extra(make)))
    assert check.verdict == verdict


def test_other_sizes_of_an_axis_say_nothing():
    moves = moves_of(scores=(torch.zeros(2, 3), 0))
    moves.add("sizes batch=3 width=4", Expected("scores", torch.ones(3, 4), torch.ones(3, 4)))
    assert list(moves.still()) == ["scores"]


def test_no_output_can_move_where_all_inputs_are_the_same():
    same = torch.ones(4, 3)
    assert verdict(moves_of(same, scores=(torch.zeros(4, 3), 0))) == []
    moves = moves_of(same, scores=(torch.zeros(4, 3), 0))
    moves.see(onnx_batch(TWO, Two()), (True,))  # a later batch may differ
    assert [check.verdict for check in verdict(moves)] == ["not_run"]
