"""Copies of models whose classes copy themselves in their own way: apart from the model, and equal to it."""

import copy
import copyreg
import functools
import pickle
import threading

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, weight_norm

from jumpout_export.errors import NotFoldableError
from jumpout_export.model.copies import eval_copy, unlike_attributes

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


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


class NewWithTheSameParts(Encoder):
    def __deepcopy__(self, memo):
        new = type(self)()
        new.fc, new.norm, new.drop = self.fc, self.norm, self.drop
        return new


class NewWithTheSameTensors(Encoder):
    def __deepcopy__(self, memo):
        new = type(self)()
        new.fc.weight, new.fc.bias = self.fc.weight, self.fc.bias
        new.norm.__dict__["_buffers"] = self.norm._buffers
        return new


class Borg(Encoder):
    def __deepcopy__(self, memo):
        new = type(self)()
        new.__dict__ = self.__dict__
        return new


class Outer(nn.Module):
    """Shares a part that shares."""

    def __init__(self):
        super().__init__()
        self.encoder, self.fc = Itself(), nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(self.encoder(x))

    def __deepcopy__(self, memo):
        new = type(self)()
        new.fc, new.encoder = self.fc, self.encoder
        return new


class Frozen(nn.Parameter):
    def __deepcopy__(self, memo):
        return self


def on_the_instance():
    encoder = Encoder()
    encoder.__deepcopy__ = lambda memo: encoder
    return encoder


def a_parameter_that_shares():
    encoder = Encoder()
    encoder.fc.weight = Frozen(encoder.fc.weight.detach().clone())
    return encoder


SHARING = {
    **{kind.__name__: kind for kind in (Itself, Shallow, NewWithTheSameParts, NewWithTheSameTensors, Borg, Outer)},
    "on the instance": on_the_instance,
    "a parameter": a_parameter_that_shares,
}


def storages(model):
    return {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}


def assert_apart(one, two):
    assert not set(one.modules()) & set(two.modules())
    assert not storages(one) & storages(two)
    assert not {id(vars(module)) for module in one.modules()} & {id(vars(module)) for module in two.modules()}


@pytest.mark.parametrize("make", SHARING.values(), ids=SHARING.keys())
def test_what_classes_share_with_their_copies_is_copied_in_copies_of_the_copy_too(make):
    model = nn.Sequential(make(), nn.Linear(4, 2)).train()
    copied = eval_copy(model)
    again, third = copy.deepcopy(copied), copy.deepcopy(copied)
    for one, two in ((model, copied), (model, again), (copied, again), (again, third)):
        assert_apart(one, two)
    assert not any(module.training for module in copied.modules())
    assert all(module.training for module in model.modules())
    with torch.no_grad():
        assert torch.equal(copied(X), model.eval()(X))
        assert torch.equal(again(X), model(X))
    copied.double()
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_copies_that_share_with_each_other_alone_are_made_apart():
    known = {}

    class Cached(Encoder):
        def __deepcopy__(self, memo):
            if id(self.scale) not in known:
                known[id(self.scale)] = new = type(self)()
                new.load_state_dict(self.state_dict())
                new.scale = self.scale
            return known[id(self.scale)]

    model = nn.Sequential(Cached())
    copied = eval_copy(model)
    assert_apart(copied, copy.deepcopy(copied))
    assert_apart(model, copied)


class Remakes(Encoder):
    """As einops' Rearrange: comes back as it is made, whatever was changed since."""

    def __reduce__(self):
        return type(self), (), self.state_dict()

    def __setstate__(self, state):
        self.load_state_dict(state)


class Locks(Remakes):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def test_what_is_changed_in_a_copy_stays_in_its_copies():
    copied = eval_copy(nn.Sequential(Remakes()))
    copied[0].drop = nn.Identity()
    again = copy.deepcopy(copied)
    assert isinstance(again[0].drop, nn.Identity)
    assert not again[0].training


def test_a_class_that_leaves_out_what_cannot_be_copied_goes_on_copying_itself():
    model = nn.Sequential(Locks())
    copied = eval_copy(model)
    assert_apart(copied, copy.deepcopy(copied))
    assert torch.equal(copied(X), model.eval()(X))


def test_a_copy_can_be_pickled():
    copied = eval_copy(nn.Sequential(Itself()))
    other = pickle.loads(pickle.dumps(copied))
    assert torch.equal(other(X), copied(X))


def test_a_shared_module_in_a_plain_list_is_copied_and_one_that_a_function_refers_to_is_not():
    class Teachers(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.teachers = [Itself().eval()]
            self.others = {"function": functools.partial(Itself().eval())}

        def forward(self, x):
            return self.fc(x) + self.teachers[0](x) + self.others["function"](x)

    model = Teachers()
    copied = eval_copy(model)
    assert_apart(model.teachers[0], copied.teachers[0])
    with torch.no_grad():
        assert torch.equal(model.eval()(X), copied(X))


def test_tied_weights_stay_tied_and_a_shared_module_stays_one():
    encoder = Itself()
    model = nn.ModuleDict({"a": encoder, "b": encoder, "c": nn.Linear(4, 4), "d": nn.Linear(4, 4)})
    model["c"].weight = model["d"].weight
    copied = eval_copy(model)
    assert copied["a"] is copied["b"]
    assert copied["c"].weight is copied["d"].weight


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, weight_norm, nn.Sequential], ids=["new", "old", "none"])
def test_a_tensor_with_its_gradient_graph_is_copied_without_it(wrap):
    model = nn.Sequential(wrap(nn.Linear(4, 4)))
    model[0].features = model(X)  # what a forward keeps for later
    copied = eval_copy(model)
    assert torch.equal(copied[0].features, model[0].features)
    assert not copied[0].features.requires_grad
    assert torch.equal(copied(X), model.eval()(X))


class StoresHalf(Encoder):
    def __getstate__(self):
        return {**vars(self), "half": self.fc.weight.detach().half()}

    def __setstate__(self, state):
        half = state.pop("half")
        self.__dict__.update(state)
        self.fc.weight.data = half.float()


class StartsAnew(Encoder):
    def __deepcopy__(self, memo):
        return type(self)()


class IsInHalf(Encoder):
    def __deepcopy__(self, memo):
        new = type(self)()
        new.load_state_dict(self.state_dict())
        return new.half()


class LosesALayer(Encoder):
    def __setstate__(self, state):
        self.__dict__.update(state)
        self.fc = nn.Identity()


class LosesABuffer(Encoder):
    def __reduce__(self):
        return _without_norm, (self.state_dict(),)


def _without_norm(state):
    new = LosesABuffer()
    new.load_state_dict(state)
    new.norm.register_buffer("running_mean", None)
    return new


class Registered(Encoder):
    """The module copyreg knows how it is copied."""


class Rounds(nn.Parameter):
    def __deepcopy__(self, memo):
        return nn.Parameter(self.detach().half().float())


def a_parameter_that_rounds():
    encoder = Encoder()
    encoder.fc.weight = Rounds(encoder.fc.weight.detach())
    return encoder


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (StoresHalf, "`0.fc.weight` has other values"),
        (StartsAnew, "`0.fc.weight` has other values"),
        (IsInHalf, r"`0.fc.weight` is float16\[4, 4\], in yours float32\[4, 4\]"),
        (LosesALayer, "`0.fc` is a Identity, in yours a Linear"),
        (LosesABuffer, "it has no `0.norm.running_mean`"),
    ],
    ids=["float16 state", "starts anew", "in half", "loses a layer", "loses a buffer"],
)
def test_a_copy_that_is_another_network_is_refused_by_name(make, says):
    message = f"a copy of the model is another network than the model, .*{says}.* of {make.__name__}"
    with pytest.raises(NotFoldableError, match=message) as error:
        eval_copy(nn.Sequential(make()))
    assert error.value.check == "copy"


def test_other_ways_of_copying_are_known_too(monkeypatch):
    monkeypatch.setitem(copyreg.dispatch_table, Registered, lambda module: (Registered, ()))
    for make in (Registered, a_parameter_that_rounds):
        with pytest.raises(
            NotFoldableError, match=r"is another network than the model, .*`0.fc.weight` has other values"
        ):
            eval_copy(nn.Sequential(make()))


def test_attributes_that_a_copy_lacks_are_named_and_flags_are_none():
    class Forgets(Encoder):
        def __getstate__(self):
            return {name: value for name, value in vars(self).items() if name != "scale"}

        def __setstate__(self, state):
            self.__dict__.update(state)
            self.scale = 1.0
            self.train()

    model = nn.Sequential(Forgets()).eval()
    assert unlike_attributes(model, eval_copy(model)) == ["`0.scale`"]
    plain = nn.Sequential(Itself(), Encoder()).train()
    assert unlike_attributes(plain, eval_copy(plain)) == []
