"""The check and the fix on every kind of BatchNorm, dtype and dimension, and what is a note."""

import copy

import pytest
import torch
from support.checked_models import Net, assert_row, check, inputs_of, samples
from torch import nn
from torch.ao.nn.intrinsic.qat import ConvBn2d
from torch.ao.quantization import get_default_qat_qconfig
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from jumpout_export import recalibrate_batchnorm
from jumpout_export.model.randomness import same_bits


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_measured_in_double(dtype):
    model = Net().to(dtype)
    batches = list(samples().to(dtype).split(32))
    report = check(model, batches)
    for layer, module in zip(report.layers, (model.bn1, model.bn2), strict=True):
        assert_row(layer, model, module, batches)
    recalibrate_batchnorm(model, batches)
    assert {buffer.dtype for name, buffer in model.named_buffers() if "running" in name} == {dtype}
    after = check(model, batches)
    # What is left is the rounding of the buffers.
    assert max(layer.w for layer in after.layers) < 4 * torch.finfo(dtype).eps


def test_a_model_of_another_dtype_than_the_samples_gets_torchs_own_message():
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
    batches = [batch.to(memory_format=torch.channels_last) for batch in samples().split(32)]
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
    assert report.layers[0].samples == 81
    assert_row(report.layers[0], model, norm, batches)
    recalibrate_batchnorm(model, batches)
    assert check(model, batches, attribution=False).layers[0].w == pytest.approx(0, abs=1e-6)


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


def test_instance_norm_is_compared_with_averages_of_each_samples_own_statistics():
    model = instance_norm()
    x = inputs_of(model, model.bn1).double().flatten(2)
    report = check(model)
    layer = report.layers[0]
    assert (layer.kind, layer.channels, layer.samples) == ("InstanceNorm2d", 4, 128)
    tau2 = 1 + model.bn1.eps
    expected_delta = x.mean(2).mean(0) / tau2**0.5
    expected_ratio = ((x.var(2).mean(0) + model.bn1.eps) / tau2).log()
    torch.testing.assert_close(torch.tensor(layer.delta).double(), expected_delta, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(torch.tensor(layer.log_ratio).double(), expected_ratio, rtol=1e-5, atol=1e-6)
    # The sampling error of a mean of independent numbers, one per sample.
    errors = x.mean(2).std(0) / 128**0.5 / tau2**0.5
    torch.testing.assert_close(torch.tensor(layer.delta_se).double(), errors, rtol=1e-4, atol=1e-8)
    errors = x.var(2).std(0) / 128**0.5 / (x.var(2).mean(0) + model.bn1.eps)
    torch.testing.assert_close(torch.tensor(layer.log_ratio_se).double(), errors, rtol=1e-4, atol=1e-8)
    assert "compared with the averages over samples of each sample's own mean and variance" in layer.note
    assert "serves with the averages" in layer.note


def test_instance_norm_is_recalibrated_to_what_training_would_store():
    model, trained = instance_norm(), instance_norm(momentum=1.0)
    recalibrate_batchnorm(model, samples().split(32))
    trained.train()
    with torch.no_grad():
        trained(samples())
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
    recalibrate_batchnorm(model, [samples()], method)
    assert same_bits(before, model.bn1.state_dict())
    recalibrate_batchnorm(model, [samples()], method, layers=["bn1"])
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
        recalibrate_batchnorm(model, [samples()])
    assert same_bits(before, model.state_dict())
    recalibrate_batchnorm(model, [samples()], layers=["0.bn"])
    assert check(model).layers[0].w == pytest.approx(0, abs=1e-6)


@pytest.mark.integration
def test_sixty_five_thousand_channels():
    torch.manual_seed(0)
    channels = 1 << 16
    model = nn.Sequential(nn.BatchNorm1d(channels))
    batches = [torch.randn(16, channels) * 2 for _ in range(2)]
    report = check(model, batches, attribution=False)
    layer = report.layers[0]
    assert (layer.channels, layer.verdict) == (channels, "drift")
    x = torch.cat(batches).double()
    expected = x.mean(0)[list(layer.indices)] / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(torch.tensor(layer.delta).double(), expected, rtol=1e-4, atol=1e-5)


def test_random_numbers_in_eval_mode_are_a_note_and_the_verdict_stays():
    class Noisy(Net):
        def forward(self, x):
            return super().forward(x + 0.001 * torch.randn_like(x))

    model = Noisy()
    recalibrate_batchnorm(model, [samples()])
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
