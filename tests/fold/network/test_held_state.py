"""Objects that a module holds: a state or a generator in one is followed and found."""

import dataclasses
import logging
import random
import time
import types

import numpy as np
import pytest
import torch
from support.reports import found
from torch import nn

from jumpout_export.errors import NotFoldableError
from jumpout_export.export.publish import export_onnx
from jumpout_export.fold.network.folded import fold, fold_model
from jumpout_export.model.held import snapshot

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)) + 3


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


@pytest.mark.integration
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
    assert found(report).keys() == {"state"}
    assert f"on which its result depends: {name}" in found(report)["state"]


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
