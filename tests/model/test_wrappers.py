"""Wrappers around a network: names without them, and calls that go to the network itself."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from jumpout_export.model.wrappers import (
    COMPILED,
    DISTRIBUTED,
    plain_calls,
    plain_names,
    unwrap,
    without_wrappers,
)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()


@pytest.fixture
def group(tmp_path):
    """A gloo group of this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_wrappers_are_looked_through_however_many_there_are(group):
    inner = network()
    wrapped = torch.compile(AveragedModel(nn.DataParallel(inner)), backend="eager")
    assert unwrap(inner) is inner
    assert unwrap(nn.DataParallel(inner)) is inner
    assert unwrap(DistributedDataParallel(inner)) is inner
    assert [type(module) for module in unwrap(wrapped)] == [nn.Conv2d, nn.BatchNorm2d]
    assert list(plain_names(wrapped).values())[-2:] == ["0", "1"]


def test_wrappers_inside_a_network_add_nothing_to_names_either():
    shared = network()
    model = nn.ModuleDict(
        {"module": torch.compile(network(), backend="eager"), "a": nn.DataParallel(shared), "b": shared}
    )
    names = plain_names(model)
    # A module of the user's that is called `module` keeps its name.
    assert names["module._orig_mod.1"] == "module.1"
    assert names["a.module.1"] == "a.1"
    assert names["b.1"] == "b.1"


def test_a_name_that_two_modules_would_have_stays_as_it_is():
    class Odd(nn.DataParallel):
        pass

    class Wrapper(AveragedModel):
        pass

    model = Wrapper(network())
    model.add_module("1", nn.BatchNorm2d(4))
    names = plain_names(model)
    assert (names["module.1"], names["1"], names["module.0"]) == ("module.1", "1", "0")
    assert unwrap(Odd(network()))[1].num_features == 4


def test_a_wrapper_of_the_same_name_that_is_not_torchs_is_a_module_like_any_other():
    class DataParallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = network()

    model = DataParallel()
    assert unwrap(model) is model
    assert plain_names(model)["module.1"] == "module.1"


def test_only_the_wrappers_that_are_asked_for_are_taken_away(group):
    inner = network()
    parallel = nn.DataParallel(inner)
    compiled = torch.compile(parallel, backend="eager")
    assert unwrap(compiled, (COMPILED,)) is parallel
    assert unwrap(torch.compile(DistributedDataParallel(inner)), (COMPILED, DISTRIBUTED)) is inner
    assert unwrap(parallel, (COMPILED, DISTRIBUTED)) is parallel
    assert unwrap("no module", (COMPILED,)) == "no module"


def test_a_submodule_of_the_users_is_no_wrapper_whatever_its_name():
    model = nn.Module()
    model._orig_mod = network()
    assert unwrap(model) is model
    assert plain_names(model)["_orig_mod.1"] == "_orig_mod.1"


def test_a_name_alone_loses_what_wrappers_usually_add():
    assert without_wrappers("module._orig_mod.layer.module.bn") == "layer.bn"
    assert without_wrappers("modules.bn") == "modules.bn"
    assert without_wrappers("module") == ""


@pytest.mark.parametrize("how", ["torch.compile", "Module.compile", "a part"])
def test_compiled_models_run_uncompiled_so_that_new_hooks_fire_and_nothing_compiles_anew(how):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    class Net(nn.Sequential):  # torch does not compile the forward of its own container
        def forward(self, x):
            return self[1](self[0](x))

    torch._dynamo.reset()
    inner = Net(*network()).eval()
    if how == "torch.compile":
        model = torch.compile(inner, backend=backend)
    elif how == "Module.compile":
        inner.compile(backend=backend)
        model = inner
    else:
        model = nn.Sequential(torch.compile(inner, backend=backend))
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        model(x)
        before = len(compiled)
        assert before > 0
        for number in range(3):
            calls = []
            handle = inner[1].register_forward_pre_hook(lambda *_, calls=calls, number=number: calls.append(number))
            with plain_calls(model):
                model(x)
                inner[1].training = not inner[1].training
                model(x)
            handle.remove()
            assert calls == [number, number]
        inner.eval()
        assert len(compiled) == before
        model(x)


def test_torch_cond_runs_in_plain_calls():
    class Branch(nn.Module):
        def forward(self, x):
            return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))

    model = torch.compile(Branch(), backend="eager")
    with plain_calls(model):
        assert model(torch.ones(2)).tolist() == [2, 2]


def test_a_distributed_model_sends_no_buffers_around_and_is_as_before_afterwards(group, monkeypatch):
    model = DistributedDataParallel(network())
    sent = []
    monkeypatch.setattr(model, "_sync_buffers", lambda: sent.append(1))
    x = torch.randn(2, 3, 4, 4)
    model(x)
    assert sent == [1]
    with pytest.raises(ZeroDivisionError), plain_calls(model):
        model(x)
        assert sent == [1]
        raise ZeroDivisionError
    model(x)
    assert sent == [1, 1]


def test_data_parallel_runs_on_one_device_and_is_as_before_afterwards():
    model = nn.DataParallel(network())
    model.device_ids = [0, 1]  # as with two devices; this machine may have none
    with plain_calls(model):
        assert model.device_ids == []
        assert model(torch.randn(2, 3, 4, 4)).shape == (2, 4, 4, 4)
    assert model.device_ids == [0, 1]
