"""A model is put back to how it was found, and what was changed is named."""

import functools

import numpy as np
import pytest
import torch
from torch import nn

from jumpout_export.errors import NotFoldableError
from jumpout_export.model.guard import Found, untouched
from jumpout_export.model.held import held_modules


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.teachers = [nn.Linear(4, 4)]
        self.calls, self.table, self.nested = 0, np.zeros(3), {"a": [1, {2}]}
        self.fc.register_forward_hook(lambda *_: None)


def add_a_hook(model):
    model.norm.register_forward_hook(lambda *_: None)


def nothing(model):
    model.eval()
    model.train()
    model.calls = 1 - 1
    model.fc.double().float()


CHANGES = {
    "flag": (lambda model: model.drop.eval(), ["`drop.training`"]),
    "submodule": (lambda model: setattr(model, "drop", nn.Identity()), ["`drop`"]),
    "submodule in _modules": (lambda model: model._modules.update(drop=nn.Identity()), ["`drop`"]),
    "new submodule": (lambda model: model.add_module("new", nn.Identity()), ["`new`"]),
    "hook": (add_a_hook, ["`norm._forward_hooks`"]),
    "hook removed": (lambda model: model.fc._forward_hooks.clear(), ["`fc._forward_hooks`"]),
    "parameter": (lambda model: model.fc.weight.data.add_(1), ["`fc.weight`"]),
    "parameter replaced": (lambda model: setattr(model.fc, "weight", nn.Parameter(torch.ones(1))), ["`fc.weight`"]),
    "gradient": (lambda model: model.fc.weight.requires_grad_(False), ["`fc.weight`"]),
    "buffer": (lambda model: model.norm.running_mean.add_(1), ["`norm.running_mean`"]),
    "buffer replaced": (lambda model: setattr(model.norm, "running_var", torch.ones(4)), ["`norm.running_var`"]),
    "cast": (lambda model: model.norm.double(), None),
    "moved": (lambda model: setattr(model.fc.weight, "data", torch.zeros(2, 2)), ["`fc.weight`"]),
    "resized": (lambda model: model.norm.running_mean.resize_(9).fill_(3), ["`norm.running_mean`"]),
    "number": (lambda model: setattr(model, "calls", 1), ["`calls`"]),
    "new attribute": (lambda model: setattr(model, "cache", 1), ["`cache`"]),
    "array": (lambda model: model.table.fill(1), ["`table`"]),
    "list": (lambda model: model.nested["a"].append(3), ["`nested`"]),
    "set in a list": (lambda model: model.nested["a"][1].add(3), ["`nested`"]),
    "module in a list": (lambda model: model.teachers[0].eval(), ["`teachers.training`"]),
}


def state(model):
    modules = held_modules(model)
    return [
        (path, dict(vars(one)), {name: dict(own) for name, own in vars(one).items() if isinstance(own, dict)})
        for path, one in modules.items()
    ]


@pytest.mark.parametrize(("change", "names"), CHANGES.values(), ids=CHANGES.keys())
def test_every_change_is_named_and_put_back(change, names):
    model = Net()
    before, values = state(model), {name: value.clone() for name, value in model.state_dict().items()}
    found = Found(model)
    change(model)
    touched = found.restore()
    assert touched == names if names is not None else "`norm.weight`" in touched
    assert [(path, own) for path, own, _ in state(model)] == [(path, own) for path, own, _ in before]
    assert state(model) == before
    assert model.state_dict().keys() == values.keys()
    for name, value in model.state_dict().items():
        assert value.dtype == values[name].dtype
        assert torch.equal(value, values[name]), name
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (model.table == 0).all()
    assert model.nested == {"a": [1, {2}]}
    assert found.restore() == []


def test_what_is_the_same_again_is_no_change():
    model = Net()
    found = Found(model)
    weight = model.fc.weight.data_ptr()
    nothing(model)
    assert model.fc.weight.data_ptr() != weight
    assert found.restore() == []
    assert model.fc.weight.data_ptr() == weight


def test_modules_that_functions_and_objects_refer_to_are_found():
    class Holder:
        pass

    model, inner = nn.Linear(2, 2), [nn.Linear(1, 1) for _ in range(5)]
    model.holder = Holder()
    model.holder.part = {"x": inner[0]}
    model.function = lambda x: inner[1](x)
    model.register_forward_hook(functools.partial(inner[2].forward))
    model.method = inner[3].forward
    model.default = lambda x, module=inner[4]: module(x)
    found = held_modules(model)
    assert set(found.values()) >= {model, *inner}
    assert found["holder.part"] is inner[0]


def test_a_change_is_an_error_even_after_another_one_and_other_errors_stay_what_they_are():
    model = Net()
    with pytest.raises(NotFoldableError, match="running a copy of the model changed `calls` in yours") as error:  # noqa: SIM117
        with untouched(Found(model)):
            model.calls = 5
            raise NotFoldableError("noise")
    assert error.value.check == "copy"
    assert str(error.value.__cause__) == "noise"
    with pytest.raises(KeyboardInterrupt), untouched(Found(model)):
        model.calls = 5
        raise KeyboardInterrupt
    assert model.calls == 0
    with untouched(Found(model)):
        pass
