"""What a run in eval mode must not do: keep a state that reaches a result, call the original, draw."""

import copy
import random

import numpy as np
import pytest
import torch
from support.reports import found
from support.stateful import Net
from torch import nn

from jumpout_export.errors import NotFoldableError
from jumpout_export.export.publish import export_onnx
from jumpout_export.fold.network.folded import fold, fold_model
from jumpout_export.model.randomness import same_bits
from jumpout_export.model.run import double_copy
from jumpout_export.verify.verify import verify_onnx

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)) + 3


def cached(model, x, y):
    if getattr(model, "centre", None) is None:
        model.centre = x.mean()
    return y - model.centre


def running_maximum(model, x, y):
    model.state = torch.maximum(model.state, x.abs().max())
    return y / model.state


def running_minimum(model, x, y):
    model.state = torch.minimum(model.state, x.abs().max())
    return y / model.state


def every_fifth(model, x, y):
    model.calls = getattr(model, "calls", 0) + 1
    return y if model.calls % 5 else y + 1


def listed(model, x, y):
    model.seen = [*getattr(model, "seen", []), float(x.sum())]
    return y + model.seen[0]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("after", "name"),
    [
        (cached, "centre"),
        (running_maximum, "state"),
        (running_minimum, "state"),
        (every_fifth, "calls"),
        (listed, "seen"),
    ],
)
def test_a_state_that_reaches_the_result_fails_and_is_named(after, name, tmp_path):
    model = nn.Sequential(Net(after))
    model[0].register_buffer("state", torch.tensor(3.0))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    report = export_onnx(model, tmp_path / "model.onnx", X)
    assert found(report).keys() == {"state"}
    assert f"on which its result depends: `0.{name}`" in found(report)["state"]
    with pytest.raises(NotFoldableError, match=f"keeps a state in eval mode .* `0.{name}`") as error:
        fold_model(model, X)
    assert error.value.check == "state"
    assert same_bits(before, dict(model.state_dict()))
    assert not list(tmp_path.iterdir())


@pytest.mark.integration
def test_a_counter_that_reaches_nothing_is_a_note(tmp_path):
    def counting(model, x, y):
        model.calls += 1
        return y

    model = Net(counting)
    model.register_buffer("calls", torch.tensor(0))
    report = export_onnx(model, tmp_path / "model.onnx", X)
    assert report
    assert "a call in eval mode changes `calls`, without an effect on the result" in report.notes
    assert model.calls == 0
    assert verify_onnx(tmp_path / "model.onnx", model, X)


def test_a_state_outside_of_any_module_is_found_too():
    seen = []

    def hidden(model, x, y):
        seen.append(x.sum())
        return y + seen[0] * len(seen)

    with pytest.raises(NotFoldableError):
        fold_model(Net(hidden), X)


class Closure(nn.Module):
    """Its forward is a function that refers to the module it was made for, so that a copy still runs the original."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.function = lambda x: self.norm(x)

    def forward(self, x):
        return self.function(x)


@pytest.mark.integration
def test_a_copy_that_calls_the_original_fails_and_the_original_is_restored(tmp_path):
    model = Closure()
    model.norm.register_forward_hook(lambda module, args, output: setattr(module, "calls", 1))
    before = copy.deepcopy(dict(model.state_dict())), dict(vars(model.norm))
    note = "the copy still calls the original: .* changed `norm.running_mean`; .*now restored"
    with pytest.raises(NotFoldableError, match=note) as error:
        fold_model(model, X)
    assert error.value.check == "copy"
    assert found(export_onnx(model, tmp_path / "model.onnx", X)).keys() == {"copy"}
    assert same_bits(before[0], dict(model.state_dict()))
    assert vars(model.norm).keys() == before[1].keys()
    assert model.training
    assert model.norm.training


class NonInverted(nn.Dropout):
    def forward(self, x):
        return super().forward(x) if self.training else x * (1 - self.p)


class Clipped(nn.Dropout):
    def forward(self, x):
        return super().forward(x) if self.training else x.clamp(-3, 3)


class DropPath(nn.Module):
    """As timm's: known by its name, and the identity in eval mode."""

    def forward(self, x):
        return x * (torch.rand(len(x), 1) < 0.5) if self.training else x


@pytest.mark.integration
@pytest.mark.parametrize(
    ("layer", "example"), [(NonInverted(0.5), torch.zeros(2, 4)), (Clipped(0.5), torch.rand(2, 4))], ids=["zeros", "in"]
)
def test_a_layer_that_is_the_identity_on_the_example_only_stays(layer, example, tmp_path):
    model = nn.Sequential(layer, nn.Linear(4, 3))
    folded = fold(model, example)
    assert [layer.action for layer in folded.layers] == ["keep"]
    assert "does more in eval mode than return its input; it stays" in folded.notes[0]
    assert export_onnx(model, tmp_path / "model.onnx", example)
    assert verify_onnx(tmp_path / "model.onnx", model, 2 * X)  # some of it is clipped


def test_a_layer_known_by_name_is_replaced_once_it_is_shown_to_be_the_identity():
    model = nn.Sequential(nn.Linear(4, 3), DropPath())
    assert isinstance(fold_model(model, X)[1], nn.Identity)
    assert isinstance(fold_model(model)[1], DropPath)

    class Unused(Net):
        def __init__(self):
            super().__init__()
            self.drop = DropPath()

    folded = fold(Unused(), X)
    assert folded.layers[0].action == "keep"
    assert folded.notes == ("stays, in eval mode, because the example does not reach it: `drop` (DropPath)",)


def test_an_allowed_noise_does_not_hide_another_modules_private_generator():
    generator = np.random.default_rng(0)

    class Torch(nn.Module):
        def forward(self, x):
            return x + torch.rand_like(x)

    class Private(nn.Module):
        def forward(self, x):
            return x + float(generator.random())

    model = nn.Sequential(Torch(), Private())
    with pytest.raises(NotFoldableError) as error:
        fold_model(model, X, allow="0")
    assert error.value.modules == ("1",)
    fold_model(model, X, allow=["0", "1"])


class LayerDrop(nn.Module):
    """Skips its layer in three runs of ten, in eval mode too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return x if random.random() < 0.3 else self.layer(x)


@pytest.mark.integration
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("model", "allow", "where"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 4), LayerDrop()), ("", "1"), "`1`, the model"),
        (LayerDrop, "", "the model"),
    ],
    ids=["inside", "root"],
)
def test_an_allowed_random_branch_that_the_file_does_not_draw_fails_with_every_seed(
    model, allow, where, seed, tmp_path
):
    random.seed(seed)
    report = export_onnx(model(), tmp_path / "model.onnx", X, allow=allow)
    note = "the model's result depends on random numbers that the file does not draw, allowed in"
    assert f"{note} {where}" in found(report)["randomness"]
    assert not list(tmp_path.iterdir())


@pytest.mark.integration
def test_allowed_draws_without_an_effect_are_named_as_draws(tmp_path):
    class Unused(nn.Module):
        def forward(self, x):
            torch.rand_like(x)
            return x * 2

    report = export_onnx(nn.Sequential(nn.Linear(4, 4), Unused()), tmp_path / "model.onnx", X, allow="1")
    note = next(check.note for check in report.checks if check.name == "randomness")
    assert report
    assert note.startswith("random numbers are drawn in `1` (allowed) and do not change the result in 32 runs with ")


class Shortened(nn.Module):
    """A forward that writes its weights, without an effect on the result, as an embedding with a `max_norm` does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(6, 4, max_norm=0.5)

    def forward(self, x):
        return self.table(x).sum(1)


def test_a_forward_that_writes_parameters_changes_neither_what_is_returned_nor_the_users_model():
    model = Shortened().eval()
    before = model.table.weight.detach().clone()
    folded = fold(model, torch.tensor([[0, 1, 2], [3, 4, 5]]))
    assert any("`table.weight`" in note and "without an effect" in note for note in folded.notes)
    assert same_bits(model.table.weight, before)
    assert same_bits(folded.model.table.weight, before)
    assert same_bits(folded.original.table.weight, before)


def test_a_copy_in_float64_shares_nothing_with_a_model_that_is_in_float64():
    model = nn.Linear(4, 3).double()
    assert double_copy(model).weight.data_ptr() != model.weight.data_ptr()
