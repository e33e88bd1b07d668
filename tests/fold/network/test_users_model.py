"""The user's model is the one that is proven, and every entry point leaves it alone."""

import copy

import pytest
import torch
from support.networks import trained
from support.reports import found
from torch import fx, nn

from jumpout_export import check_batchnorm, export_onnx, fold_model, recalibrate_batchnorm, verify_onnx
from jumpout_export.errors import NotFoldableError
from jumpout_export.model.randomness import same_bits

X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.scale = 1.5

    def forward(self, x):
        return self.drop(self.norm(self.fc(x))) * self.scale


class Itself(Encoder):
    def __deepcopy__(self, memo):
        return self


class Shallow(Encoder):
    def __deepcopy__(self, memo):
        return copy.copy(self)


class HalfState(Encoder):
    """Is smaller on disk."""

    def __getstate__(self):
        return {**vars(self), "half": self.fc.weight.detach().half()}

    def __setstate__(self, state):
        half = state.pop("half")
        self.__dict__.update(state)
        self.fc.weight.data = half.float()


class Forgets(Encoder):
    """Its copy has another scale."""

    def __reduce__(self):
        return _made, (self.state_dict(),)


def _made(state):
    new = Forgets()
    new.load_state_dict(state)
    return new


def everything_of(model):
    return [
        (path, id(module), vars(module), {name: dict(own) for name, own in vars(module).items() if type(own) is dict})
        for path, module in model.named_modules()
    ]


def values_of(model):
    tensors = (*model.named_parameters(), *model.named_buffers())
    return [(name, id(value), value.requires_grad, value.detach().clone()) for name, value in tensors]


def shallow(everything):
    return [(path, number, dict(own), inner) for path, number, own, inner in everything]


ENTRIES = {
    "fold_model": lambda model, file, _: fold_model(model, X),
    "fold_model without an example": lambda model, file, _: fold_model(model),
    "export_onnx": lambda model, file, folder: export_onnx(model, folder / "other.onnx", X),
    "export_onnx in float16": lambda model, file, folder: export_onnx(
        model, folder / "other.onnx", X, dtype=torch.float16
    ),
    "verify_onnx": lambda model, file, _: verify_onnx(file, model, X),
    "check_batchnorm": lambda model, file, _: check_batchnorm(model, [X, X + 1]),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    torch.manual_seed(0)
    model = trained(nn.Sequential(Encoder(), nn.Linear(4, 2)), (16, 4))
    assert export_onnx(model, path, X)
    return path, model.state_dict()


@pytest.mark.integration
@pytest.mark.parametrize(("kind", "entry"), [(Shallow, "export_onnx"), *((Itself, name) for name in ENTRIES)])
def test_a_part_that_is_shared_with_copies_is_left_alone_and_proven(kind, entry, file, tmp_path):
    path, state = file
    model = nn.Sequential(kind(), nn.Linear(4, 2)).train()
    model.load_state_dict(state)
    model[0].norm.eval()
    model[0].fc.register_forward_hook(lambda *_: None)
    before, values = shallow(everything_of(model)), values_of(model)
    result = ENTRIES[entry](model, path, tmp_path)
    assert isinstance(result, nn.Module) or result or result.kind == "batchnorm", found(result)
    if isinstance(result, nn.Module):
        assert isinstance(result[0].drop, nn.Identity)
    assert shallow(everything_of(model)) == before
    assert same_bits(values_of(model), values)
    assert isinstance(model[0].drop, nn.Dropout)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("kind", "says"),
    [(HalfState, "`0.fc.weight` has other values"), (Forgets, "gives other results than the model, .*`0.scale`")],
)
def test_a_copy_that_is_another_network_fails_the_check_copy(kind, says, file, tmp_path):
    model = nn.Sequential(kind(), nn.Linear(4, 2))
    model.load_state_dict(file[1])
    model[0].scale = 2.5
    with pytest.raises(NotFoldableError, match=says) as error:
        fold_model(model, X)
    assert error.value.check == "copy"
    for report in (export_onnx(model, tmp_path / "model.onnx", X), verify_onnx(file[0], model, X)):
        assert str(error.value) == found(report)["copy"]
    assert not list(tmp_path.iterdir())
    model[0].scale = 1.5
    if kind is Forgets:  # then its copies are right
        assert export_onnx(model, tmp_path / "model.onnx", X)


def test_what_a_copy_lacks_and_nobody_reads_does_not_matter():
    class Logs(Encoder):
        def __getstate__(self):
            return {**vars(self), "last": None}

    model = nn.Sequential(Logs(), nn.Dropout(0.5))
    model[0].last = torch.ones(3)
    assert isinstance(fold_model(model, X)[1], nn.Identity)
    graph = fx.symbolic_trace(Encoder().eval())
    graph.author = "a name that fx leaves out of copies"
    assert torch.equal(fold_model(graph, X)(X), graph(X))


@pytest.mark.integration
def test_a_function_that_changes_the_model_at_a_later_batch_size_is_found_and_undone(file, tmp_path):
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.norm = nn.Linear(4, 2), nn.BatchNorm1d(4)
            self.function = lambda x: self.norm(x) if len(x) == 7 else x

        def forward(self, x):
            self.function(x)
            return self.fc(x)

    model = Late()
    before = values_of(model)
    report = export_onnx(model, tmp_path / "model.onnx", X, dynamic_batch=True)
    assert "the copy still calls the original" in found(report)["copy"]
    assert same_bits(values_of(model), before)
    assert not list(tmp_path.iterdir())


def test_recalibration_writes_statistics_and_nothing_else():
    model = nn.Sequential(Itself(), nn.Linear(4, 2)).train()
    before, values = shallow(everything_of(model)), values_of(model)
    undo = recalibrate_batchnorm(model, [X, X + 1])
    changed = [one[0] for one, two in zip(values_of(model), values, strict=True) if not same_bits(one, two)]
    assert changed == ["0.norm.running_mean", "0.norm.running_var"]
    undo()
    assert shallow(everything_of(model)) == before
    assert same_bits(values_of(model), values)
