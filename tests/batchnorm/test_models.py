"""The check and the fix on every kind of model and loader: the numbers are right, and each edge case is said."""

import copy
import gc
from collections import UserDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.ao.nn.intrinsic.qat import ConvBn2d
from torch.ao.quantization import get_default_qat_qconfig
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from jumpout_export import check_batchnorm, recalibrate_batchnorm
from jumpout_export.model.randomness import same_bits
from jumpout_export.report import BatchNormReport


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's and detectron2's."""

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))

    def forward(self, x):
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


class Net(nn.Module):
    """Two BatchNorms behind convolutions, the first optionally of another kind."""

    def __init__(self, norm: nn.Module | None = None, between: nn.Module | None = None):
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.bn1, self.between, self.bn2 = norm or nn.BatchNorm2d(4), between or nn.ReLU(), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn2(self.conv2(self.between(self.bn1(self.conv1(x)))))


class Checkpointed(Net):
    def __init__(self, reentrant):
        super().__init__()
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=self.reentrant)


@pytest.fixture
def group(tmp_path):
    """A gloo group of this process alone."""
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def images(count=128):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def check(model, batches=None, **options) -> BatchNormReport:
    return check_batchnorm(model, list(images().split(32)) if batches is None else batches, outputs=False, **options)


def inputs_of(model, module, batches=None) -> torch.Tensor:
    """What `module` gets while `model` is served, by a hook of our own."""
    seen = []
    flags = [(part, part.training) for part in model.modules()]
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    model.eval()
    with torch.no_grad():
        for batch in list(images().split(32)) if batches is None else batches:
            model(batch)
    handle.remove()
    for part, training in flags:
        part.training = training
    return torch.cat(seen)


def by_hand(model, module, batches=None) -> tuple[torch.Tensor, torch.Tensor]:
    """delta and log_ratio as the definition has them, with the unbiased variance."""
    x = inputs_of(model, module, batches).double().transpose(0, 1).flatten(1)
    tau2 = module.running_var.double() + module.eps
    return (x.mean(1) - module.running_mean.double()) / tau2.sqrt(), ((x.var(1) + module.eps) / tau2).log()


def assert_row(row, model, module, batches=None, **tolerance):
    delta, log_ratio = by_hand(model, module, batches)
    tolerance = tolerance or {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.tensor(row.delta, dtype=torch.float64), delta, **tolerance)
    torch.testing.assert_close(torch.tensor(row.log_ratio, dtype=torch.float64), log_ratio, **tolerance)


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
    recalibrate_batchnorm(plain, images().split(32))
    undo = recalibrate_batchnorm(model, images().split(32), layers=["bn1", "bn2"])
    after = {name.split(".")[-2:][0] + name.split(".")[-1]: buffer for name, buffer in model.named_buffers()}
    for name, buffer in plain.named_buffers():
        assert torch.equal(after[name.replace(".", "")], buffer)
    assert check(model).verdict == "ok"
    undo()
    assert check(model).verdict == "drift"


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing_counts_no_image_twice(reentrant):
    model = Checkpointed(reentrant)
    report = check(model)
    assert [(layer.images, layer.calls) for layer in report.layers] == [(128, []), (128, [])]
    assert_row(report.layers[0], model, model.bn1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_measured_in_double(dtype):
    model = Net().to(dtype)
    batches = list(images().to(dtype).split(32))
    report = check(model, batches)
    for layer, module in zip(report.layers, (model.bn1, model.bn2), strict=True):
        assert_row(layer, model, module, batches)
    recalibrate_batchnorm(model, batches)
    assert {buffer.dtype for name, buffer in model.named_buffers() if "running" in name} == {dtype}
    after = check(model, batches)
    # What is left is the rounding of the buffers.
    assert max(layer.w for layer in after.layers) < 4 * torch.finfo(dtype).eps


def test_a_model_of_another_dtype_than_the_images_gets_torchs_own_message():
    with pytest.raises(RuntimeError, match=r"Input type \(float\) and bias type \(c10::BFloat16\) should"):
        check(Net().bfloat16())


@pytest.mark.parametrize("where", ["around the check", "in forward_fn"])
def test_autocast_is_measured_as_it_computes(where):
    model = Net().eval()

    def forward(network, batch):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return network(batch)

    if where == "in forward_fn":
        report = check(model, forward_fn=forward)
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            report = check(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = inputs_of(model, model.bn1)
    assert x.dtype == torch.bfloat16
    x = x.double().transpose(0, 1).flatten(1)
    delta = (x.mean(1) - model.bn1.running_mean) / (model.bn1.running_var + model.bn1.eps).double().sqrt()
    torch.testing.assert_close(torch.tensor(report.layers[0].delta, dtype=torch.float64), delta, rtol=1e-5, atol=1e-6)


def test_channels_last_changes_nothing():
    model = Net()
    expected = check(model)
    batches = [batch.to(memory_format=torch.channels_last) for batch in images().split(32)]
    report = check(model.to(memory_format=torch.channels_last), batches)
    for layer, other in zip(report.layers, expected.layers, strict=True):
        assert layer.w == pytest.approx(other.w, rel=1e-4)
        assert layer.delta == pytest.approx(other.delta, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (nn.BatchNorm1d(5), (5,)),
        (nn.BatchNorm1d(5), (5, 7)),
        (nn.BatchNorm2d(5), (5, 3, 4)),
        (nn.BatchNorm3d(5), (5, 2, 3, 4)),
        (nn.SyncBatchNorm(5), (5, 3)),
    ],
    ids=["1d (N, C)", "1d (N, C, L)", "2d", "3d", "Sync"],
)
def test_every_dimension_is_measured(norm, shape):
    torch.manual_seed(2)
    batches = [2 * torch.randn(size, *shape) + 1 for size in (40, 40, 1)]
    model = nn.Sequential(norm)
    report = check(model, batches, attribution=False)
    assert report.layers[0].images == 81
    assert_row(report.layers[0], model, norm, batches)
    recalibrate_batchnorm(model, batches)
    assert check(model, batches, attribution=False).layers[0].w == pytest.approx(0, abs=1e-6)


def test_synchronised_batchnorm_in_a_process_group_on_a_cpu(group):
    report = check(Net(nn.SyncBatchNorm(4)))
    assert [layer.kind for layer in report.layers] == ["SyncBatchNorm", "BatchNorm2d"]
    assert not any("was not measured" in note for note in report.notes)
    assert report.layers[0].stale is not None


def test_a_lazy_model_is_checked_once_it_has_run():
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())
    with pytest.raises(ValueError, match="is not initialised yet; run one forward pass of the model first"):
        check(model)
    model.eval()(images(2))
    report = check(model)
    assert [(layer.kind, layer.images) for layer in report.layers] == [("BatchNorm2d", 128)]


def test_a_layer_under_two_names_is_one_row_that_names_both():
    model = Net()
    model.alias = model.bn2
    report = check(model)
    assert [layer.name for layer in report.layers] == ["bn1", "bn2"]
    assert "Also `alias`: one module under several names, which is one layer." in report.layers[1].note
    recalibrate_batchnorm(model, [images()], layers=["alias"])
    assert check(model).layers[1].w == pytest.approx(0, abs=1e-6)


class BatchNormAct2d(nn.BatchNorm2d):
    """As timm's: its own forward, with the activation in it."""

    def __init__(self, num_features):
        super().__init__(num_features)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x):
        by_batch = self.training or not self.track_running_stats
        mean, var = (None, None) if by_batch and not self.track_running_stats else (self.running_mean, self.running_var)
        return self.act(F.batch_norm(x, mean, var, self.weight, self.bias, by_batch, self.momentum, self.eps))


def test_a_subclass_with_a_forward_of_its_own_is_measured_in_every_state():
    plain = check(Net())
    model = Net(BatchNormAct2d(4), nn.Identity())
    report = check(model)
    assert report.layers[0].kind == "BatchNormAct2d"
    for layer, other in zip(report.layers, plain.layers, strict=True):
        assert layer.delta == pytest.approx(other.delta, rel=1e-4, abs=1e-6)
        for part in ("stale", "stochastic", "propagated"):
            assert getattr(layer, part) == pytest.approx(getattr(other, part), rel=1e-3, abs=1e-4)


def instance_norm(**options):
    return Net(nn.InstanceNorm2d(4, track_running_stats=True, **options))


def test_instance_norm_is_compared_with_averages_of_each_images_own_statistics():
    model = instance_norm()
    x = inputs_of(model, model.bn1).double().flatten(2)
    report = check(model)
    layer = report.layers[0]
    assert (layer.kind, layer.channels, layer.images) == ("InstanceNorm2d", 4, 128)
    tau2 = 1 + model.bn1.eps
    expected_delta = x.mean(2).mean(0) / tau2**0.5
    expected_ratio = ((x.var(2).mean(0) + model.bn1.eps) / tau2).log()
    torch.testing.assert_close(torch.tensor(layer.delta).double(), expected_delta, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.tensor(layer.log_ratio).double(), expected_ratio, rtol=1e-5, atol=1e-6)
    # The sampling error of a mean of independent numbers, one per image.
    errors = x.mean(2).std(0) / 128**0.5 / tau2**0.5
    torch.testing.assert_close(torch.tensor(layer.delta_se).double(), errors, rtol=1e-4, atol=1e-8)
    errors = x.var(2).std(0) / 128**0.5 / (x.var(2).mean(0) + model.bn1.eps)
    torch.testing.assert_close(torch.tensor(layer.log_ratio_se).double(), errors, rtol=1e-4, atol=1e-8)
    assert "compared with the averages over images of each image's own mean and variance" in layer.note
    assert "serves with the averages" in layer.note


def test_instance_norm_is_recalibrated_to_what_training_would_store():
    model, trained = instance_norm(), instance_norm(momentum=1.0)
    recalibrate_batchnorm(model, images().split(32))
    trained.train()
    with torch.no_grad():
        trained(images())
    torch.testing.assert_close(model.bn1.running_mean, trained.bn1.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.bn1.running_var, trained.bn1.running_var, rtol=1e-5, atol=1e-6)
    report = check(model)
    assert [layer.w for layer in report.layers] == pytest.approx([0, 0], abs=1e-6)
    assert report.verdict == "ok"
    assert model.bn1.training is model.bn1.track_running_stats is True


def test_instance_norm_without_statistics_is_no_row():
    assert [layer.name for layer in check(Net(nn.InstanceNorm2d(4))).layers] == ["bn2"]


@pytest.mark.parametrize("method", ["exact", "batch"])
def test_fixed_batchnorm_is_checked_and_only_fixed_by_name(method):
    model = Net(FrozenBatchNorm2d(4))
    attributes = set(vars(model.bn1))
    report = check(model)
    layer = report.layers[0]
    assert (layer.kind, layer.channels, layer.verdict) == ("FrozenBatchNorm2d", 4, "drift")
    assert "Frozen: training leaves its statistics alone; it is recalibrated only if named in `layers`." in layer.note
    assert_row(layer, model, model.bn1)
    before = copy.deepcopy(model.bn1.state_dict())
    recalibrate_batchnorm(model, [images()], method)
    assert same_bits(before, model.bn1.state_dict())
    recalibrate_batchnorm(model, [images()], method, layers=["bn1"])
    assert check(model).layers[0].w == pytest.approx(0, abs=1e-6)
    assert set(vars(model.bn1)) == attributes


def qat():
    torch.manual_seed(0)
    config = get_default_qat_qconfig("fbgemm")
    return nn.Sequential(ConvBn2d(3, 4, 3, qconfig=config), nn.ReLU(), ConvBn2d(4, 4, 3, qconfig=config))


def test_quantisation_aware_modules_are_checked_left_as_they_were_and_said():
    model = qat()
    before = copy.deepcopy(model.state_dict())
    report = check(model)
    assert [layer.name for layer in report.layers] == ["0.bn", "2.bn"]
    assert "Part of the quantisation-aware ConvBn2d, which rounds weights to ranges" in report.layers[0].note
    assert same_bits(before, model.state_dict())
    match = r"all are frozen or store no running statistics \(those of quantisation-aware modules count as frozen\)"
    with pytest.raises(ValueError, match=match):
        recalibrate_batchnorm(model, [images()])
    assert same_bits(before, model.state_dict())
    recalibrate_batchnorm(model, [images()], layers=["0.bn"])
    assert check(model).layers[0].w == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("size", [1, 31], ids=["one by one", "the last one alone"])
def test_batches_of_one_image(size):
    model = Net()
    report = check(model, list(images(32).split(size)))
    assert report.images == 32
    assert_row(report.layers[1], model, model.bn2, [images(32)])


class Pair(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor


@dataclass
class Item:
    image: torch.Tensor
    index: torch.Tensor


LABELS = torch.arange(32) % 3
LOADERS = {
    "tuple": lambda x: (x, LABELS),
    "list": lambda x: [x, LABELS],
    "dict": lambda x: {"image": x, "label": LABELS, "path": ["a"] * 32},
    "mapping": lambda x: UserDict(pixel_values=x, labels=LABELS),
    "named tuple": lambda x: Pair(x, LABELS),
    "data class": lambda x: Item(x, LABELS),
    "one-hot": lambda x: (x, F.one_hot(LABELS).float()),
    "regression": lambda x: (x, torch.randn(32)),
    "label and index": lambda x: (x, LABELS, torch.arange(32)),
    "dict and label": lambda x: ({"x": x}, LABELS),
    "nested": lambda x: [[x], LABELS],
}


@pytest.mark.parametrize("make", LOADERS.values(), ids=LOADERS.keys())
def test_every_kind_of_batch_gives_the_same_report(make):
    expected = check(Net())
    report = check(Net(), [make(x) for x in images().split(32)])
    assert [layer.model_dump() for layer in report.layers] == [layer.model_dump() for layer in expected.layers]
    assert report.images == 128


def test_labels_of_every_kind_give_accuracy():
    x = images().split(32)
    one_hot = [(batch, F.one_hot(LABELS, 4).float()) for batch in x]
    model = nn.Sequential(Net(), nn.Flatten(), nn.Linear(64, 4))
    reports = [check_batchnorm(model, batches) for batches in ([(batch, LABELS) for batch in x], one_hot)]
    assert reports[0].outputs.top1_before is not None
    assert reports[0].outputs == reports[1].outputs
    assert check_batchnorm(model, [(batch, torch.randn(32)) for batch in x]).outputs.top1_before is None


def test_several_inputs_and_forward_fn():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, left, right):
            return self.net(left) + self.net(right)

    x = list(images().split(32))
    report = check(Two(), [(one, one.flip(0)) for one in x])
    called = check(
        Two(), [{"l": one} for one in x], forward_fn=lambda model, batch: model(batch["l"], batch["l"].flip(0))
    )
    assert [len(layer.calls) for layer in report.layers] == [2, 2]
    for layer, other in zip(report.layers, called.layers, strict=True):
        assert layer.model_dump() == other.model_dump()


def test_workers_and_generators_change_nothing():
    data = TensorDataset(images(), torch.arange(128) % 4)
    options = {"batch_size": 32, "shuffle": True}
    loaders = [
        DataLoader(data, num_workers=workers, generator=torch.Generator().manual_seed(5), **options)
        for workers in (0, 2)
    ]
    reports = [check(Net(), loader) for loader in loaders]
    assert reports[0].model_dump() == reports[1].model_dump()


def test_a_parametrised_model_of_the_users_own_device_rules_gets_its_batches_there():
    report = check(Net(), device="cpu")
    assert report.images == 128
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        check(Net(), device="meta")


def test_memory_does_not_grow_with_the_images():
    held = []

    def count(*_):
        tensors = [value for value in gc.get_objects() if type(value) is torch.Tensor]
        held.append(sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values()))

    class Made:
        def __iter__(self):
            return (images(16) for _ in range(12))

    check(Net(), Made(), progress=count)
    assert len(held) == 12
    assert max(held[2:]) <= held[1]


def test_sixty_five_thousand_channels():
    torch.manual_seed(0)
    channels = 1 << 16
    model = nn.Sequential(nn.BatchNorm1d(channels))
    batches = [torch.randn(16, channels) * 2 for _ in range(2)]
    report = check(model, batches, attribution=False)
    layer = report.layers[0]
    assert (layer.channels, layer.verdict) == (channels, "drift")
    x = torch.cat(batches).double()
    torch.testing.assert_close(torch.tensor(layer.delta).double(), x.mean(0) / (1 + 1e-5) ** 0.5, rtol=1e-4, atol=1e-5)


def test_random_numbers_in_eval_mode_are_a_note_and_the_verdict_stays():
    class Noisy(Net):
        def forward(self, x):
            return super().forward(x + 0.001 * torch.randn_like(x))

    model = Noisy()
    recalibrate_batchnorm(model, [images()])
    report = check(model)
    assert report.verdict == "ok"
    (note,) = [note for note in report.notes if "random numbers" in note]
    assert f"aten.randn_like.default in the model's own forward at {__file__}:" in note


def test_functional_batchnorm_by_batch_statistics_is_a_note():
    class Functional(nn.Module):
        def forward(self, x):
            return F.batch_norm(x, None, None, training=True)

    report = check(Net(between=Functional()))
    (note,) = [note for note in report.notes if "statistics of the batch" in note]
    assert f"batch_norm in module `between` at {__file__}:" in note


def test_parts_that_cannot_be_checked_are_notes():
    class OwnNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("running_mean", torch.zeros(4))
            self.register_buffer("running_var", torch.ones(4))

        def forward(self, x):
            return x

    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        scripted = torch.jit.script(nn.BatchNorm2d(4))
    report = check(Net(between=nn.Sequential(OwnNorm(), scripted)))
    own, script = [note for note in report.notes if note.startswith("`between")]
    assert own.startswith("`between.0` (OwnNorm) stores running_mean and running_var but is none of BatchNorm1d")
    assert script.startswith("`between.1` is a torch.jit.ScriptModule: BatchNorms in it, if any, cannot be observed")
    assert [layer.name for layer in report.layers] == ["bn1", "bn2"]


def test_an_averaged_model_is_a_note():
    assert any(
        note.startswith("The model is an AveragedModel (SWA or EMA)") for note in check(AveragedModel(Net())).notes
    )
    assert not any("AveragedModel" in note for note in check(Net()).notes)


def test_images_repeated_by_a_distributed_sampler_are_a_note():
    data = TensorDataset(images(30))
    loader = DataLoader(data, 8, sampler=DistributedSampler(data, num_replicas=4, rank=0, shuffle=False))
    (note,) = [note for note in check(Net(), loader).notes if "DistributedSampler" in note]
    assert note.startswith("The DistributedSampler repeats 2 of 30 images")
