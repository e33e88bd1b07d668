"""Weights that are spread over processes are gathered into a plain network, and the model stays as it is."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed._composable import replicate
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from jumpout_export.fold.network.sharded import gathered

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, about one process and about FSDP

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def group(tmp_path):
    """A gloo group of this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Sequential(nn.ReLU(), nn.Linear(6, 3)))


def fsdp(model, **options):
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **options)


def nested(model):
    model[2] = fsdp(model[2])
    return fsdp(model)


def inside(model):
    model[2] = fsdp(model[2])
    return model


def fully(model):
    fully_shard(model[2])
    return fully_shard(model)


def tensor_parallel(model):
    parallelize_module(model, init_device_mesh("cpu", (1,)), {"0": ColwiseParallel()})
    return parallelize_module(model, init_device_mesh("cpu", (1,)), {"2.1": RowwiseParallel()})


SPREAD = {
    "FSDP": fsdp,
    "FSDP with original parameters": lambda model: fsdp(model, use_orig_params=True),
    "FSDP in FSDP": nested,
    "FSDP inside": inside,
    "fully_shard": fully,
    "replicate": replicate,
    "tensor parallel": tensor_parallel,
}


@pytest.mark.parametrize("after_a_step", [False, True])
@pytest.mark.parametrize("spread", SPREAD.values(), ids=SPREAD.keys())
def test_a_network_that_is_spread_is_gathered_and_goes_on_training(spread, after_a_step):
    plain = network()
    plain[0].register_forward_hook(lambda module, args, output: output * 2)
    expected = copy.deepcopy(plain)
    model = spread(plain)
    if after_a_step:
        model(X).sum().backward()
        expected(X)
    before = [(path, type(module)) for path, module in model.named_modules()]
    parameters = [id(parameter) for parameter in model.parameters()]
    whole = gathered(model)
    assert whole is not model
    assert {type(module) for module in whole.modules()} == {nn.Sequential, nn.Linear, nn.BatchNorm1d, nn.ReLU}
    assert {name: value.shape for name, value in whole.named_parameters()} == {
        name: value.shape for name, value in expected.named_parameters()
    }
    assert all(type(parameter) is nn.Parameter for parameter in whole.parameters())
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(whole).eval()(X), expected.eval()(X))
        whole[0].weight.zero_()
    assert [(path, type(module)) for path, module in model.named_modules()] == before
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert model(X).abs().sum() > 0
    model(X).sum().backward()


def test_a_network_that_is_not_spread_is_itself():
    model = network()
    assert gathered(model) is model
