"""Which layers are checked, what is known of them without running the model, and what is said of those that are not."""

import pytest
import torch
from torch import nn
from torch.ao.nn.intrinsic.qat import ConvBn2d
from torch.ao.quantization import get_default_qat_qconfig
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from jumpout_export.batchnorm.measure.layers import averaged_copy, batchnorm_layers, select_layers, unseen


class FrozenBatchNorm2d(nn.Module):
    """As torchvision's and detectron2's: everything is a buffer."""

    def __init__(self, num_features, eps=1e-5):
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))


class OtherNorm(nn.Module):
    """As a normalisation of the user's own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(4))
        self.register_buffer("running_var", torch.ones(4))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def scripted(model: nn.Module) -> nn.Module:
    with pytest.warns(DeprecationWarning, match="torch.jit.script"):
        return torch.jit.script(model)


def test_every_kind_of_layer_with_running_statistics_is_found():
    class BatchNormAct2d(nn.BatchNorm2d):  # as timm's
        pass

    class FrozenBatchNorm(FrozenBatchNorm2d):
        pass

    model = nn.ModuleDict(
        {
            "one": nn.BatchNorm1d(2),
            "two": BatchNormAct2d(3),
            "three": nn.BatchNorm3d(4),
            "sync": nn.SyncBatchNorm(5),
            "untracked": nn.BatchNorm2d(6, track_running_stats=False),
            "instance": nn.InstanceNorm2d(7, track_running_stats=True),
            "instance without": nn.InstanceNorm2d(7),
            "fixed": FrozenBatchNorm2d(8),
            "fixed copy": FrozenBatchNorm(9),
            "layer": nn.LayerNorm(9),
            "group": nn.GroupNorm(3, 9),
        }
    )
    layers = batchnorm_layers(model)
    assert [(layer.name, layer.kind, layer.channels) for layer in layers] == [
        ("one", "BatchNorm1d", 2),
        ("two", "BatchNormAct2d", 3),
        ("three", "BatchNorm3d", 4),
        ("sync", "SyncBatchNorm", 5),
        ("untracked", "BatchNorm2d", 6),
        ("instance", "InstanceNorm2d", 7),
        ("fixed", "FrozenBatchNorm2d", 8),
        ("fixed copy", "FrozenBatchNorm", 9),
    ]
    assert [layer.name for layer in layers if not layer.tracked] == ["untracked"]
    assert [layer.name for layer in layers if layer.per_instance] == ["instance"]
    assert [layer.name for layer in layers if layer.fixed] == ["fixed", "fixed copy"]
    assert [layer.name for layer in layers if layer.frozen] == ["fixed", "fixed copy"]


def test_settings_are_those_of_the_layer():
    norm = nn.BatchNorm2d(3, eps=0.5, momentum=None)
    model = nn.Sequential(norm, nn.BatchNorm2d(3, track_running_stats=False), FrozenBatchNorm2d(3, eps=0.25))
    norm(torch.randn(4, 3, 2, 2))
    first, untracked, fixed = batchnorm_layers(model)
    assert (first.eps, first.momentum, first.batches_tracked) == (0.5, None, 1)
    assert (untracked.momentum, untracked.batches_tracked) == (0.1, None)
    assert (fixed.eps, fixed.momentum, fixed.batches_tracked) == (0.25, 0.0, None)


def test_a_fixed_layer_without_eps_adds_what_others_do():
    module = FrozenBatchNorm2d(3)
    del module.eps
    assert batchnorm_layers(nn.Sequential(module))[0].eps == 1e-5


def test_unusable_channels_depend_on_eps():
    module = FrozenBatchNorm2d(3, eps=0.0)
    module.running_var[1] = 0
    module.running_mean[2] = float("nan")
    assert batchnorm_layers(nn.Sequential(module))[0].unusable_channels().tolist() == [False, True, True]
    module.eps = 1e-3
    assert batchnorm_layers(nn.Sequential(module))[0].unusable_channels().tolist() == [False, False, True]


def test_a_shared_layer_is_one_layer_with_several_names():
    norm = nn.BatchNorm2d(4)
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(nn.ReLU(), norm), "c": nn.BatchNorm2d(4)})
    shared, other = batchnorm_layers(model)
    assert (shared.name, shared.aliases, shared.paths) == ("a", ("b.1",), ("a", "b.1"))
    assert other.aliases == ()
    for names in (["b.1"], ["a"], ["a", "b.1"]):
        assert select_layers([shared, other], names) == [shared]


@pytest.mark.parametrize(
    ("wrap", "path"),
    [
        (nn.DataParallel, "module.1"),
        (AveragedModel, "module.1"),
        (lambda model: torch.compile(model, backend="eager"), "_orig_mod.1"),
        (lambda model: nn.DataParallel(AveragedModel(model)), "module.module.1"),
    ],
    ids=["DataParallel", "AveragedModel", "torch.compile", "two of them"],
)
def test_names_are_those_without_wrappers_and_both_are_understood(wrap, path):
    layers = batchnorm_layers(wrap(network()))
    assert [(layer.name, layer.aliases, layer.paths) for layer in layers] == [("1", (), (path,))]
    assert select_layers(layers, ["1"]) == select_layers(layers, [path]) == layers
    with pytest.raises(ValueError, match="got '2'; allowed are '1'"):
        select_layers(layers, ["2"])


def test_a_batchnorm_of_quantisation_aware_training_knows_what_it_is_part_of():
    model = nn.Sequential(ConvBn2d(3, 4, 1, qconfig=get_default_qat_qconfig("fbgemm")), nn.BatchNorm2d(4))
    assert [(layer.name, layer.fused) for layer in batchnorm_layers(model)] == [("0.bn", "ConvBn2d"), ("1", "")]


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (
            nn.Linear(2, 2),
            "Linear has no BatchNorm layer, so there is nothing to check or recalibrate; pass a model with",
        ),
        (nn.InstanceNorm2d(3), "InstanceNorm with running statistics, and before its BatchNorms are folded into conv"),
        (
            nn.Sequential(OtherNorm()),
            r"`0` \(OtherNorm\) stores running_mean and running_var but is none of BatchNorm1d",
        ),
    ],
)
def test_a_model_without_such_a_layer_is_refused(model, match):
    with pytest.raises(ValueError, match=match):
        batchnorm_layers(model)


def test_a_scripted_or_traced_model_is_refused():
    match = "is a torch.jit.ScriptModule, whose BatchNorm layers cannot be observed; pass the Python model it was made"
    with pytest.raises(ValueError, match=f"RecursiveScriptModule {match}"):
        batchnorm_layers(scripted(network()))
    with pytest.warns(DeprecationWarning, match="torch.jit.trace"):
        traced = torch.jit.trace(network().eval(), torch.randn(2, 3, 4, 4))
    with pytest.raises(ValueError, match=f"TopLevelTracedModule {match}"):
        batchnorm_layers(traced)


def test_an_exported_model_is_refused():
    exported = torch.export.export(network().eval(), (torch.randn(2, 3, 4, 4),))
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, got ExportedProgram; pass the model that was exp"):
        batchnorm_layers(exported)
    match = "the model is a graph with 1 batch_norm operators, which cannot be observed; pass the model it was exported"
    with pytest.raises(ValueError, match=match):
        batchnorm_layers(exported.module())


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, got function$"):
        batchnorm_layers(lambda x: x)


def test_a_traced_graph_of_modules_is_fine():
    assert [layer.name for layer in batchnorm_layers(torch.fx.symbolic_trace(network()))] == ["1"]


def test_a_folded_model_is_refused_with_the_reason():
    model = network().eval()
    folded = torch.nn.utils.fusion.fuse_conv_bn_eval(model[0], model[1])
    with pytest.raises(ValueError, match="before its BatchNorms are folded into convolutions"):
        batchnorm_layers(folded)


@pytest.mark.parametrize(
    ("model", "match"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.LazyBatchNorm2d()), "BatchNorm `1` is not initialised yet; run one forw"),
        (nn.Sequential(nn.LazyConv2d(4, 1), nn.BatchNorm2d(4)), "LazyConv2d `0` is not initialised yet; run one forw"),
        (
            nn.DataParallel(nn.Sequential(nn.BatchNorm1d(4), nn.LazyLinear(2))),
            "LazyLinear `1` is not initialised yet; run one forward pass of the model first",
        ),
    ],
)
def test_lazy_parts_must_be_initialised(model, match):
    with pytest.raises(ValueError, match=match):
        batchnorm_layers(model)


def test_a_lazy_model_that_has_run_is_fine():
    model = nn.Sequential(nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d())
    model(torch.randn(2, 3, 4, 4))
    assert [layer.kind for layer in batchnorm_layers(model)] == ["BatchNorm2d"]


def test_parts_that_cannot_be_observed_are_named():
    class Functional(nn.Module):
        def forward(self, x):
            return F.batch_norm(x, torch.zeros(4), torch.ones(4))

    exported = torch.export.export(network().eval(), (torch.randn(2, 3, 4, 4),)).module()
    model = nn.ModuleDict(
        {
            "scripted": scripted(network()),
            "graph": exported,
            "traced": torch.fx.symbolic_trace(Functional()),
            "own": OtherNorm(),
            "quantised": torch.ao.nn.quantized.BatchNorm2d(4),
            "plain": network(),
            "fixed": FrozenBatchNorm2d(4),
            "instance": nn.InstanceNorm2d(4, track_running_stats=True),
        }
    )
    assert [layer.name for layer in batchnorm_layers(model)] == ["plain.1", "fixed", "instance"]
    script, graph, traced, own, quantised = unseen(model)
    assert script == (
        "`scripted` is a torch.jit.ScriptModule: BatchNorms in it, if any, cannot be observed; use the Python module."
    )
    assert graph.startswith("`graph` is a graph with 1 batch_norm operators, which cannot be observed; pass the model")
    assert traced.startswith("`traced` is a graph with 1 batch_norm operators")
    assert own.startswith("`own` (OtherNorm) stores running_mean and running_var but is none of BatchNorm1d")
    assert own.endswith("it was not checked.")
    assert quantised.startswith(
        "`quantised` (BatchNorm2d) is quantised, its statistics too; check the float model, before"
    )
    assert unseen(network()) == []


def test_an_averaged_copy_is_said_unless_its_buffers_are_averaged_too():
    (note,) = averaged_copy(AveragedModel(network()))
    assert note.startswith(
        "The model is an AveragedModel (SWA or EMA) with use_buffers=False: its weights are averages"
    )
    assert "recalibrate_batchnorm(model, batches) before use." in note
    assert averaged_copy(AveragedModel(network(), use_buffers=True)) == averaged_copy(network()) == []
