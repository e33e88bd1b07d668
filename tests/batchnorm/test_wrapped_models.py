"""A wrapped, sharded, compiled or checkpointed model gives the report of the network in it."""

import copy

import pytest
import torch
import torch.distributed as dist
from support.checked_models import Net, assert_row, check, samples
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

from jumpout_export import recalibrate_batchnorm
from jumpout_export.model.randomness import same_bits


@pytest.fixture
def group(tmp_path):
    """A gloo group of this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Checkpointed(Net):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def sharded(model):
    return fully_shard(model, mesh=init_device_mesh("cpu", (1,)))


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "DistributedDataParallel": DistributedDataParallel,
    "FSDP": sharded,
    "torch.compile": lambda model: torch.compile(model, backend="eager"),
    "Module.compile": compiled_in_place,
    "AveragedModel": AveragedModel,
    "symbolic_trace": torch.fx.symbolic_trace,
    "all at once": lambda model: torch.compile(DistributedDataParallel(AveragedModel(model)), backend="eager"),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_a_wrapped_model_gives_the_report_of_the_network_in_it(group, wrap):
    expected = check(Net())
    model = wrap(Net())
    before = copy.deepcopy(dict(model.named_buffers()))
    report = check(model)
    assert [layer.name for layer in report.layers] == ["bn1", "bn2"]
    for layer, other in zip(report.layers, expected.layers, strict=True):
        assert layer.model_dump(exclude={"note"}) == other.model_dump(exclude={"note"})
    assert same_bits(before, dict(model.named_buffers()))


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_a_wrapped_model_is_recalibrated_like_the_network_in_it(group, wrap):
    plain, model = Net(), wrap(Net())
    recalibrate_batchnorm(plain, samples().split(32))
    undo = recalibrate_batchnorm(model, samples().split(32), layers=["bn1", "bn2"])
    after = {name.split(".")[-2:][0] + name.split(".")[-1]: buffer for name, buffer in model.named_buffers()}
    for name, buffer in plain.named_buffers():
        assert torch.equal(after[name.replace(".", "")], buffer)
    assert check(model).verdict == "ok"
    undo()
    assert check(model).verdict == "drift"


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_counts_no_sample_twice(reentrant):
    model = Checkpointed(reentrant)
    report = check(model)
    assert [(layer.samples, layer.calls) for layer in report.layers] == [(128, []), (128, [])]
    assert_row(report.layers[0], model, model.bn1)


def test_synchronised_batchnorm_in_a_process_group_on_a_cpu(group):
    report = check(Net(nn.SyncBatchNorm(4)))
    assert [layer.kind for layer in report.layers] == ["SyncBatchNorm", "BatchNorm2d"]
    assert not any("was not measured" in note for note in report.notes)
    assert report.layers[0].stale is not None


def test_a_lazy_model_is_checked_once_it_has_run():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match="is not initialised yet; run one forward pass of the model first"):
        check(model)
    model.eval()(samples(2))
    report = check(model)
    assert [(layer.kind, layer.samples) for layer in report.layers] == [("BatchNorm2d", 128)]


def test_a_layer_under_two_names_is_one_row_that_names_both():
    model = Net()
    model.alias = model.bn2
    report = check(model)
    assert [layer.name for layer in report.layers] == ["bn1", "bn2"]
    assert "Also `alias`: one module under several names, which is one layer." in report.layers[1].note
    recalibrate_batchnorm(model, [samples()], layers=["alias"])
    assert check(model).layers[1].w == pytest.approx(0, abs=1e-6)
