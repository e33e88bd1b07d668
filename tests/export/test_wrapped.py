"""A network in a wrapper is exported and verified as the network in it."""

import pytest
import torch
import torch.distributed as dist
from support.reports import found
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from jumpout_export import export_onnx, verify_onnx

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore")]  # torch's own, about one process

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def group(tmp_path):
    """A gloo group of this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Outer(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x) + self.body.module(x)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3))


WRAPPED = {
    "DistributedDataParallel": DistributedDataParallel,
    "DistributedDataParallel inside": lambda model: Outer(DistributedDataParallel(model)),
    "DataParallel": nn.DataParallel,
    "checkpoint_wrapper": checkpoint_wrapper,
    "FullyShardedDataParallel": lambda model: FullyShardedDataParallel(model, device_id=torch.device("cpu")),
    "fully_shard": fully_shard,
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED.keys())
def test_the_network_in_a_wrapper_is_exported_and_verified(wrap, group, tmp_path):
    model = wrap(network()).train()
    report = export_onnx(model, tmp_path / "model.onnx", X)
    assert report, found(report)
    assert [(layer.path, layer.action) for layer in report.folded] == [
        ("body.module.1" if isinstance(model, Outer) else "1", "identity")
    ]
    spread = any("spread over processes" in note for note in report.notes)
    assert spread is ("FSDP" in type(model).__name__ or isinstance(model, FullyShardedDataParallel))
    assert all(module.training for module in model.modules())
    report = verify_onnx(tmp_path / "model.onnx", model, X)
    assert report, found(report)
    other = wrap(nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)))
    assert not verify_onnx(tmp_path / "model.onnx", other, X)
