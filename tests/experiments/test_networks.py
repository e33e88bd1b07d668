"""The experiments' networks have the published sizes, and each noise stands where the paper has it."""

import math

import pytest
import torch
from torch import nn

from experiments.config import Config, read_config
from experiments.networks import cifar10s, resnet18, resnet20, slides, wide_resnet
from experiments.regularizers import ConcreteDropout, make_regularizer, penalties
from jumpout_export import Jumpout


def parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def norms(network):
    return sum(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in network.modules())


@pytest.mark.integration
@pytest.mark.parametrize(
    ("network", "size", "batchnorms"),
    [
        (lambda: cifar10s(nn.Identity, batchnorm=False), 2_425_930, 0),
        # 896 biases become 2 x 896 scales and shifts
        (lambda: cifar10s(nn.Identity), 2_425_930 + 896, 6),
        (lambda: wide_resnet(nn.Identity, depth=28, widen=10), 36_479_194, 25),
        (lambda: wide_resnet(nn.Identity, depth=16, widen=8), 10_961_370, 13),
        (lambda: resnet20(nn.Identity), 272_282, 19),
        (lambda: resnet18(nn.Identity), 11_173_962, 20),
        (lambda: slides(nn.Identity, batchnorm=False), 9_027_722, 0),
    ],
    ids=["cifar10s", "cifar10s-bn", "wrn-28-10", "wrn-16-8", "resnet20", "resnet18", "slides"],
)
def test_networks_have_the_published_sizes(network, size, batchnorms):
    made = network()
    assert parameters(made) == size
    assert norms(made) == batchnorms
    assert made.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("network", [cifar10s, slides, wide_resnet, resnet20, resnet18])
def test_noise_stands_behind_a_relu(network):
    class Signed(nn.Module):
        def forward(self, x):
            assert (x >= 0).all()
            return x

    options = {"depth": 10, "widen": 1} if network is wide_resnet else {}
    made = network(Signed, **options)
    assert any(isinstance(module, Signed) for module in made.modules())
    made(torch.randn(2, 3, 32, 32))


def test_the_original_placement_of_a_wide_resnet_is_on_a_signed_tensor():
    signs = []

    class Sign(nn.Module):
        def forward(self, x):
            signs.append(bool((x < 0).any()))
            return x

    wide_resnet(Sign, depth=10, widen=1, placement="original")(torch.randn(2, 3, 32, 32))
    assert signs == [True] * 3


@pytest.mark.parametrize(
    ("placement", "noisy"),
    [
        ("post_relu", ["conv1_noise", "conv2_noise", "conv4_noise", "conv5_noise", "fc1_noise", "fc2_noise"]),
        ("post_pooling", ["conv1_noise", "pool3_noise", "conv4_noise", "pool6_noise", "fc1_noise", "fc2_noise"]),
        ("v3", ["noise", "fc1_noise", "fc2_noise"]),
    ],
)
def test_the_placement_says_where_the_noise_is(placement, noisy):
    network = cifar10s(nn.Dropout, placement=placement)
    assert [name for name, _ in network.named_modules() if name.endswith("noise")] == noisy
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)


def test_an_unknown_placement_is_refused():
    with pytest.raises(ValueError, match="placement must be one of post_relu, post_pooling, v3, got 'before'"):
        cifar10s(nn.Dropout, placement="before")


def test_a_depth_that_no_wide_resnet_has_is_refused():
    with pytest.raises(ValueError, match="depth must be 6 n \\+ 4, got 20"):
        wide_resnet(nn.Identity, depth=20)


def test_every_ablation_is_a_jumpout_layer_and_wrong_settings_are_refused():
    layer = make_regularizer("jumpout", p=0.1, normalize="none", alpha=1.0)()
    assert isinstance(layer, Jumpout)
    assert isinstance(make_regularizer("none")(), nn.Identity)
    with pytest.raises(ValueError, match="kind must be one of none, dropout, jumpout, concrete, got 'drop'"):
        make_regularizer("drop")
    with pytest.raises(ValueError, match="p must be"):
        make_regularizer("jumpout", p=1.5)


def test_concrete_dropout_keeps_the_mean_and_drops_its_rate():
    torch.manual_seed(0)
    layer = ConcreteDropout(0.3)
    y = layer(torch.ones(400, 1000))
    # The relaxed mask has the mean 1 - p only nearly; its median does: half of the relaxed values on each side of 1/2.
    dropped = (y < 0.5 / 0.7).float().mean()
    assert abs(dropped - 0.3) < 6 * math.sqrt(0.3 * 0.7 / y.numel())
    assert abs(y.mean() - 1) < 0.01
    layer.eval()
    x = torch.randn(3)
    assert layer(x) is x


def test_the_penalty_of_concrete_dropout_is_the_negative_entropy():
    layer = ConcreteDropout(0.3)
    layer(torch.ones(2, 5, 3, 3))
    assert layer.penalty().item() == pytest.approx(5 * (0.3 * math.log(0.3) + 0.7 * math.log(0.7)), rel=1e-5)
    assert len(list(penalties(nn.Sequential(layer, nn.ReLU())))) == 1
    layer.penalty().backward()
    # d/dp of p log p + (1 - p) log(1 - p) is the logit of p; towards p = 1/2 the penalty falls.
    assert layer.logit.grad.item() == pytest.approx(5 * math.log(0.3 / 0.7) * 0.3 * 0.7, rel=1e-4)
    with pytest.raises(ValueError, match=r"p must be in \(0, 1\) and temperature > 0, got 0 and 0.1"):
        ConcreteDropout(0)


def test_hendrycks_gimpel_initialisation_keeps_the_size_of_what_passes():
    config = Config(
        rows=(), label="", network="slides", options={"batchnorm": False, "width": 0.25},
        regularizer={"kind": "dropout", "p": 0.5}, initialisation="hendrycks_gimpel", training={"epochs": 1},
    )  # fmt: skip
    torch.manual_seed(0)
    network = config.build(10, (3, 16, 16))
    rows = network.fc2.weight.norm(dim=1)
    # Linear behind ReLU and dropout 1/2: rows of norm 1 / sqrt(E[f^2] M + E[f'^2] / M), M = 2.
    torch.testing.assert_close(rows, torch.full_like(rows, (0.5 * 2 + 0.5 / 2) ** -0.5))
    first = network.conv1.weight.flatten(1).norm(dim=1)
    torch.testing.assert_close(first, torch.ones_like(first))  # the image itself is neither cut off nor dropped


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("network = 1", "rows: Field required; label: Field required; network: Input should be a valid string"),
        ("[training", "is no TOML"),
        ('rows=[]\nlabel=""\nnetwork=""\nregularizer={}\ntraining={epochs=0}', "training.epochs: .*greater than 0"),
        ('rows=[]\nlabel=""\nnetwork=""\nregularizer={}\ntraining={epochs=1, lr=1}', "training.lr: Extra inputs"),
    ],
)
def test_a_wrong_file_names_every_wrong_key(tmp_path, text, message):
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ValueError, match=f"a.toml.*{message}"):
        read_config(tmp_path / "a.toml")


def test_an_unknown_network_or_option_is_named():
    made = {"rows": (), "label": "", "regularizer": {"kind": "none"}, "training": {"epochs": 1}}
    with pytest.raises(ValueError, match=r"network must be one of cifar10s, .*, got 'vgg'"):
        Config(network="vgg", **made).build(10, (3, 16, 16))
    with pytest.raises(ValueError, match=r"slides with .* and {'depth': 3} .*unexpected keyword argument 'depth'"):
        Config(network="slides", options={"depth": 3}, **made).build(10, (3, 16, 16))
