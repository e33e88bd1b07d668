"""What a run in eval mode must not do: keep a state, change the user's model, let images depend on each other."""

import copy
import dataclasses
import logging
import random
import re
import time
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jumpout_export.errors import NotFoldableError
from jumpout_export.export.publish import export_onnx
from jumpout_export.fold.network.folded import fold, fold_model
from jumpout_export.fold.network.state import snapshot
from jumpout_export.model.randomness import same_bits
from jumpout_export.model.signature import onnx_batch
from jumpout_export.verify.values.reference import Reference
from jumpout_export.verify.verify import verify_onnx

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)) + 3


class Net(nn.Module):
    """A linear layer and whatever a test does after it."""

    def __init__(self, after=None):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)
        self.after = after

    def forward(self, x):
        return self.linear(x) if self.after is None else self.after(self, x, self.linear(x))


def failed(report):
    return {check.name: check.note for check in report.checks if check.verdict != "pass"}


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
    assert failed(report).keys() == {"state"}
    assert f"on which its result depends: `0.{name}`" in failed(report)["state"]
    with pytest.raises(NotFoldableError, match=f"keeps a state in eval mode .* `0.{name}`") as error:
        fold_model(model, X)
    assert error.value.check == "state"
    assert same_bits(before, dict(model.state_dict()))
    assert not list(tmp_path.iterdir())


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


def test_a_copy_that_calls_the_original_fails_and_the_original_is_restored(tmp_path):
    model = Closure()
    model.norm.register_forward_hook(lambda module, args, output: setattr(module, "calls", 1))
    before = copy.deepcopy(dict(model.state_dict())), dict(vars(model.norm))
    note = "the copy still calls the original: .* changed `norm.running_mean`; .*now restored"
    with pytest.raises(NotFoldableError, match=note) as error:
        fold_model(model, X)
    assert error.value.check == "copy"
    assert failed(export_onnx(model, tmp_path / "model.onnx", X)).keys() == {"copy"}
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


@pytest.mark.parametrize(
    ("layer", "example"), [(NonInverted(0.5), torch.zeros(2, 4)), (Clipped(0.5), torch.rand(2, 4))], ids=["zeros", "in"]
)
def test_a_layer_that_is_the_identity_on_the_example_only_stays(layer, example, tmp_path):
    model = nn.Sequential(layer, nn.Linear(4, 3))
    folded = fold(model, example)
    assert [layer.action for layer in folded.layers] == ["keep"]
    assert "does more in eval mode than return its input; it stays" in folded.notes[0]
    assert export_onnx(model, tmp_path / "model.onnx", example)
    assert verify_onnx(tmp_path / "model.onnx", model, X * 10)


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


def test_a_folded_model_with_other_bits_fails_the_check_fold():
    model = Net().eval()
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        wrong.linear.bias[0] += 1e-5
    for folded, verdict in ((copy.deepcopy(model), "pass"), (wrong, "fail")):
        reference = Reference(model, onnx_batch(X, model), folded=folded)
        assert reference.checks() == []
        reference(onnx_batch(X, model))
        assert {check.name: check.verdict for check in reference.checks()} == {"randomness": "pass", "fold": verdict}
    assert reference.checks()[1].note == "batch size 5: the folded model has other bits than the model"


def noisy_from(size):
    return lambda model, x, y: y + torch.rand_like(y) if len(x) >= size else y


@pytest.mark.parametrize(
    ("size", "example", "calibration"), [(7, X[:1], None), (9, X, [X, torch.cat([X, X])])], ids=["7", "calibration"]
)
def test_noise_at_one_batch_size_only_is_found_and_the_size_named(size, example, calibration, tmp_path):
    model = Net(noisy_from(size))
    report = export_onnx(model, tmp_path / "model.onnx", example, calibration=calibration)
    assert failed(report).keys() & {"convert", "randomness"}  # a path that was not traced is refused even earlier
    assert not list(tmp_path.iterdir())
    export_onnx(Net(), tmp_path / "model.onnx", X)
    note = failed(verify_onnx(tmp_path / "model.onnx", model, calibration or example))["randomness"]
    assert f"batch size {7 if size == 7 else 10}: the model draws random numbers in eval mode" in note
    assert "aten.rand_like" in note


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


def by_hand(model, x, y):
    return (y - y.mean(0)) / (y.var(0, unbiased=False) + 1e-5).sqrt()


def functional(model, x, y):
    return F.batch_norm(y[:, :, None].repeat(1, 1, 2) + torch.tensor([0.0, 1.0]), None, None, training=True).sum(2)


@pytest.mark.parametrize("after", [by_hand, functional])
def test_a_result_that_depends_on_the_other_images_fails_unless_the_batch_is_fixed(after, tmp_path):
    report = export_onnx(Net(after), tmp_path / "model.onnx", X)
    assert "output `output` of image 0 differs by" in failed(report)["batch independence"]
    assert "dynamic_batch=False (--static) fixes the size" in failed(report)["batch independence"]
    report = export_onnx(Net(by_hand), tmp_path / "model.onnx", X, dynamic_batch=False)
    assert report
    assert "batch independence" not in {check.name for check in report.checks}


def test_outputs_without_a_batch_axis_may_be_constants_and_outputs_may_have_it_elsewhere(tmp_path):
    def after(model, x, y):
        return y, model.linear.weight, model.linear.weight.sum(), y.T

    report = export_onnx(Net(after), tmp_path / "model.onnx", X)
    assert report
    note = next(check.note for check in report.checks if check.name == "batch independence")
    assert note.endswith("in a batch: output_0, output_1, output_2, output_3")


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        (lambda model, x, y: y.softmax(1).mean(0), "`output` has no batch axis and differs by"),
        (lambda model, x, y: y.max(), "`output` has no batch axis and differs by"),
        (
            lambda model, x, y: y.reshape(1, -1),
            r"`output` has no batch axis and has shape \[1, \d\] alone and \[1, \d+\]",
        ),
        (lambda model, x, y: (y - y.mean(0)).T, "of image 0 differs by"),
        (lambda model, x, y: torch.stack([y[:, 0] * 1e7, y[:, 1] - y[:, 1].mean()], 1), "of image 0 differs by"),
    ],
    ids=["mean", "maximum", "flattened", "transposed", "beside a large channel"],
)
def test_an_output_that_mixes_the_images_of_a_batch_fails(after, problem, tmp_path):
    report = export_onnx(Net(after), tmp_path / "model.onnx", X)
    assert re.search(problem, failed(report)["batch independence"])


def test_similarities_between_the_images_of_a_batch_fail(tmp_path):
    report = export_onnx(Net(lambda model, x, y: y @ y.T), tmp_path / "model.onnx", X)
    assert "has shape [1] alone and [2] in its batch" in failed(report)["batch independence"]


def test_an_amplifier_of_rounding_fails_the_check_conditioning(tmp_path):
    report = export_onnx(Net(lambda model, x, y: torch.sin(y * 1e7)), tmp_path / "model.onnx", X)
    assert "PyTorch's own error on output `output` (data) is" in failed(report)["conditioning"]
    assert "the model amplifies rounding" in failed(report)["conditioning"]


def test_torch_cond_is_folded():
    def branch(model, x, y):
        return torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: -y, (y,))

    model = Net(branch).eval()
    with torch.no_grad():
        assert torch.equal(fold_model(model, X)(X), model(X))


class LayerDrop(nn.Module):
    """Skips its layer in three runs of ten, in eval mode too."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return x if random.random() < 0.3 else self.layer(x)


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
    assert f"{note} {where}" in failed(report)["randomness"]
    assert not list(tmp_path.iterdir())


def test_allowed_draws_without_an_effect_are_named_as_draws(tmp_path):
    class Unused(nn.Module):
        def forward(self, x):
            torch.rand_like(x)
            return x * 2

    report = export_onnx(nn.Sequential(nn.Linear(4, 4), Unused()), tmp_path / "model.onnx", X, allow="1")
    note = next(check.note for check in report.checks if check.name == "randomness")
    assert report
    assert note.startswith("random numbers are drawn in `1` (allowed) and do not change the result in 32 runs with ")


class Counter:
    """A plain object that a module holds."""

    def __init__(self):
        self.n = 0


@dataclasses.dataclass(slots=True)
class Slotted:
    n: int = 0


class Holds(nn.Module):
    """Calls a function with what it holds."""

    def __init__(self, held, function):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 3)
        self.held = held
        self.function = function

    def forward(self, x):
        return self.function(self.held, self.linear(x))


def doubled_after(calls):
    def function(held, y):
        held.n += 1
        return y * 2 if held.n > calls else y

    return function


def nested(held, y):
    held.inner["counter"].n += 1
    return y * 2 if held.inner["counter"].n > 6 else y


def array(held, y):
    held[0] += 1
    return y * 2 if held[0] > 6 else y


@pytest.mark.parametrize(
    ("held", "function", "name"),
    [
        (Counter(), doubled_after(6), "`0.held.n`"),
        (Counter(), doubled_after(20), "`0.held.n`"),
        (Slotted(), doubled_after(20), "`0.held.n`"),
        (types.SimpleNamespace(inner={"counter": Counter()}), nested, "`0.held.inner.n`"),
        (np.zeros(1), array, "`0.held`"),
    ],
    ids=["six", "twenty", "slots", "nested", "numpy array"],
)
def test_a_state_in_an_object_that_a_module_holds_is_followed(held, function, name, tmp_path):
    report = export_onnx(nn.Sequential(Holds(held, function)), tmp_path / "model.onnx", X)
    assert failed(report).keys() == {"state"}
    assert f"on which its result depends: {name}" in failed(report)["state"]


def glitch(generator, y):
    return y + 1 if generator.random() < 0.001 else y


@pytest.mark.parametrize(
    ("held", "name"),
    [
        (np.random.default_rng(0), "0.held"),
        (np.random.RandomState(0), "0.held"),
        (random.Random(0), "0.held"),
    ],
    ids=["default_rng", "RandomState", "Random"],
)
def test_a_generator_that_a_module_holds_and_draws_from_is_found_however_rare_its_effect(held, name):
    model = nn.Sequential(Holds(held, glitch), nn.ReLU())
    with pytest.raises(NotFoldableError, match=f"from a generator that it holds: `{name}`") as error:
        fold_model(model, X)
    assert error.value.check == "randomness"
    assert error.value.modules == ("0",)
    fold_model(model, X, allow="0")
    with pytest.raises(NotFoldableError, match=r"from a generator that it holds: `held\.rng`"):
        fold_model(Holds(types.SimpleNamespace(rng=held), lambda it, y: glitch(it.rng, y)), X)


def cached_in(held, y):
    held.__dict__.setdefault("cache", {}).setdefault(y.shape, torch.ones(3))
    return y * held.cache[y.shape]


def logged(held, y):
    held.info("called")
    held.debug("called")
    return y


def timed(held, y):
    held.n += time.perf_counter()
    return y


def seeded(held, y):
    held.rng = np.random.default_rng(0)
    return y + held.rng.random()


def reseeded(held, y):
    held.seed(0)
    return y + held.random()


@pytest.mark.parametrize(
    ("held", "function", "noted"),
    [
        (Counter(), cached_in, "`held.cache`"),
        (logging.getLogger("a logger that a module holds"), logged, ""),
        (Counter(), timed, "`held.n`"),
        (Counter(), seeded, "`held.rng`"),
        (random.Random(5), reseeded, ""),
        (Counter(), lambda held, y: y, ""),
    ],
    ids=["cache", "logger", "timer", "seeded", "reseeded", "idle"],
)
def test_what_a_module_holds_and_changes_without_an_effect_is_no_failure(held, function, noted):
    notes = fold(Holds(held, function), X).notes
    assert notes == ((f"a call in eval mode changes {noted}, without an effect on the result",) if noted else ())


def test_objects_that_hold_each_other_are_visited_once():
    one, two = Counter(), Counter()
    one.other, two.other = two, one
    assert list(snapshot(Holds(one, None), held=True)).count("held.other.n") == 1
