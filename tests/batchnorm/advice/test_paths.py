"""Where advice on alpha is given and where not, and that looking for it changes nothing."""

import math

import pytest
import torch
from support.collected import snapshot
from support.masked import Net, activations, advice_of, conv, net
from torch import nn

from jumpout_export import Jumpout
from jumpout_export.batchnorm.advice.alpha import (
    advise,
)
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.layers import batchnorm_layers
from jumpout_export.model.randomness import same_bits


class ScaledConv(nn.Conv2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


FOUND = {
    "nested": net(
        lambda m, x: m.norm(m.linear(m.noise(x))),
        nn.Sequential(nn.Sequential(nn.Identity(), Jumpout(p=0.2)), nn.Identity()),
        linear=nn.Sequential(conv(), nn.Identity()),
    ),
    "relu": net(lambda m, x: m.norm(m.linear(m.relu(m.noise(x)))), relu=nn.ReLU()),
    "relu in place": net(lambda m, x: m.norm(m.linear(m.relu(m.noise(x)))), relu=nn.ReLU(inplace=True)),
    "leaky relu": net(lambda m, x: m.norm(m.linear(m.relu(m.noise(x)))), relu=nn.LeakyReLU()),
    "jumpout in place": net(lambda m, x: m.norm(m.linear(m.noise(x))), Jumpout(p=0.2, relu=True, inplace=True)),
    "functional reshape and back": net(lambda m, x: m.norm(m.linear(m.noise(x).flatten(1).view(x.shape)))),
    "pixels folded before the norm": net(lambda m, x: m.norm(m.linear(m.noise(x)).flatten(2).unsqueeze(3))),
    "by keyword": net(lambda m, x: m.norm(input=m.linear(input=m.noise(x=x)))),
    "read past the layer too": net(
        lambda m, x: (m.norm(m.linear(m.noise(x))), m.past(x))[0],
        past=conv(),
    ),
    "dropout of rate 0 between": net(lambda m, x: m.norm(m.linear(m.drop(m.noise(x)))), drop=nn.Dropout(0.0)),
    "norm called twice on the same": net(lambda m, x: m.norm(m.linear(m.noise(x))) + m.norm(m.linear(m.noise(x)))),
    "linear shared with a clean input": net(lambda m, x: m.norm(m.linear(m.noise(m.linear(x).relu())))),
    "weight norm": net(lambda m, x: m.norm(m.linear(m.noise(x))), linear=nn.utils.parametrizations.weight_norm(conv())),
    "directly": net(lambda m, x: m.norm(m.noise(x))),
    "dropout 1d of maps as sequences": net(
        lambda m, x: m.norm(m.linear(m.noise(x.flatten(2)).view(x.shape))), nn.Dropout1d(0.2)
    ),
}


NOT_FOUND = {
    "channels dropped, then cut up": net(
        lambda m, x: m.norm(m.linear(m.noise(x).view(-1, 9)).view(8, 4, -1, 1)),
        nn.Dropout2d(0.2),
        linear=nn.Linear(9, 9),
    ),
    "channels dropped, then other channels": net(
        lambda m, x: m.norm(m.linear(m.noise(x).view(8, 2, 12, 6))),
        nn.Dropout2d(0.2),
        linear=nn.Conv2d(2, 4, 3),
    ),
    "functional relu": net(lambda m, x: m.norm(m.linear(m.noise(x).relu()))),
    "functional relu in place": net(lambda m, x: m.norm(m.linear(m.noise(x).relu_()))),
    "in place behind the linear layer": net(lambda m, x: m.norm(m.linear(m.noise(x)).mul_(2))),
    "residual add before": net(lambda m, x: m.norm(m.linear(m.noise(x) + x))),
    "residual add behind": net(lambda m, x: m.norm(m.linear(m.noise(x)) + x)),
    "pooling": net(lambda m, x: m.norm(m.linear(m.pool(m.noise(x)))), pool=nn.AvgPool2d(2)),
    "sigmoid": net(lambda m, x: m.norm(m.linear(m.gate(m.noise(x)))), gate=nn.Sigmoid()),
    "relu behind the linear layer": net(lambda m, x: m.norm(m.gate(m.linear(m.noise(x)))), gate=nn.ReLU()),
    "two linear layers": net(lambda m, x: m.norm(m.second(m.linear(m.noise(x)))), second=conv()),
    "only past the layer": net(lambda m, x: (m.noise(x), m.norm(m.linear(x)))[1]),
    "half of it": net(lambda m, x: m.norm(m.linear(m.noise(torch.cat([x, x]))[: len(x)]))),
    "transposed": net(lambda m, x: m.norm(m.linear(m.noise(x).transpose(2, 3)))),
    "channels moved behind the linear layer": net(lambda m, x: m.norm(m.linear(m.noise(x)).transpose(0, 1)[:, :4])),
    "channels cut up behind the linear layer": net(lambda m, x: m.norm(m.linear(m.noise(x)).view(16, 4, 3, 6))),
    "one element read several times": net(
        lambda m, x: m.norm(m.linear(m.noise(x)[:, 0, :, :1].expand(8, 6, 24)).unsqueeze(3)),
        linear=nn.Conv1d(6, 4, 3),
    ),
    "two noises": net(lambda m, x: m.norm(m.linear(m.drop(m.noise(x)))), drop=nn.Dropout(0.2)),
    "noise of another law": net(lambda m, x: m.norm(m.linear(m.drop(m.noise(x)))), drop=nn.AlphaDropout(0.2)),
    "alpha dropout": net(lambda m, x: m.norm(m.linear(m.noise(x))), nn.AlphaDropout(0.2)),
    "whole samples dropped": net(lambda m, x: m.norm(m.linear(m.noise(x))), nn.Dropout3d(0.2)),
    "rate 0": net(lambda m, x: m.norm(m.linear(m.noise(x))), nn.Dropout(0.0)),
    "jumpout of rate 0": net(lambda m, x: m.norm(m.linear(m.noise(x))), Jumpout(sigma=0.0, p_min=0.0)),
    "rate 1": net(lambda m, x: m.norm(m.linear(m.noise(x))), nn.Dropout(1.0)),
    "no unit active": net(lambda m, x: m.norm(m.linear(-m.noise(-x))), Jumpout(p=0.2)),
    "reflected padding": net(
        lambda m, x: m.norm(m.linear(m.noise(x))), linear=nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
    ),
    "a layer of its own": net(lambda m, x: m.norm(m.linear(m.noise(x))), linear=ScaledConv(4, 4, 3)),
    "transposed convolution": net(
        lambda m, x: m.norm(m.linear(m.noise(x))), linear=nn.ConvTranspose2d(4, 4, 3, padding=1)
    ),
    "norm called on clean input too": net(lambda m, x: m.norm(m.linear(m.noise(x))) + m.norm(x)),
    "norm called behind two layers": net(
        lambda m, x: m.norm(m.linear(m.noise(x))) + m.norm(m.second(m.noise(x))), second=conv()
    ),
    "linear on the last of three dimensions": Net(
        lambda m, x: m.norm(m.linear(m.noise(x.flatten(2)))),
        noise=Jumpout(p=0.2),
        linear=nn.Linear(36, 36),
        norm=nn.BatchNorm1d(4),
    ),
    "no noise at all": net(lambda m, x: m.norm(m.linear(x)), nn.Identity()),
}


@pytest.mark.parametrize("model", FOUND.values(), ids=FOUND)
@torch.no_grad()
def test_advice_where_the_law_applies(model):
    x = activations(8, 4, 6, 6).float()
    advice = advice_of(model, x)
    assert list(advice) == ["norm"]
    assert advice["norm"].path.startswith("noise")
    assert math.isfinite(advice["norm"].alpha_star)


@pytest.mark.parametrize("model", NOT_FOUND.values(), ids=NOT_FOUND)
def test_no_advice_where_it_does_not(model):
    assert advice_of(model, activations(8, 4, 6, 6).float() + 0.01) == {}


def test_a_frozen_stochastic_layer_gets_no_advice():
    model = net(lambda m, x: m.norm(m.linear(m.noise(x))))
    x = activations(8, 4, 6, 6).float()
    assert advice_of(model, x)
    model.noise.eval()
    assert advice_of(model, x) == {}
    model.eval()  # nothing tells frozen layers from others in a model that is being served
    assert advice_of(model, x)


def test_frozen_norms_and_other_norms_are_passed_over():
    model = net(lambda m, x: m.norm(m.linear(m.noise(x))))
    x = activations(8, 4, 6, 6).float()
    model.norm.eval()
    assert advice_of(model, x) == {}
    model = nn.Sequential(Jumpout(), nn.InstanceNorm2d(4, track_running_stats=True), conv(), nn.BatchNorm2d(4))
    assert advice_of(model, x) == {}


def test_one_stochastic_layer_may_feed_several_norms():
    model = Net(
        lambda m, x: m.second(m.right(h := m.noise(x))) + m.first(m.left(h)),
        noise=Jumpout(p=0.2),
        left=conv(),
        right=conv(),
        first=nn.BatchNorm2d(4),
        second=nn.BatchNorm2d(4),
    )
    advice = advice_of(model, activations(8, 4, 6, 6).float())
    assert list(advice) == ["first", "second"]
    assert {entry.path for entry in advice.values()} == {"noise"}


def test_memory_that_is_used_again_is_not_mistaken():
    def forward(m, x):
        for _ in range(20):
            m.noise(x)  # freed at once, unless it is held
        return m.norm(m.linear(x + 0))

    assert advice_of(net(forward), activations(8, 4, 6, 6).float()) == {}


def test_inference_mode_gives_no_advice():
    model = net(lambda m, x: m.norm(m.linear(m.noise(x))))
    model.forward = torch.inference_mode()(model.forward)
    assert advice_of(model, activations(8, 4, 6, 6).float()) == {}


def test_autocast_changes_the_advice_by_its_rounding_only():
    model = net(lambda m, x: m.norm(m.linear(m.noise(x))))

    def forward_fn(model, x):
        with torch.autocast("cpu", torch.bfloat16):
            return model(x)

    x = activations(32, 4, 6, 6).float()
    expected = advice_of(model, x)["norm"]
    found = advise(Feed(model, [x], forward_fn=forward_fn), batchnorm_layers(model))["norm"]
    assert found.rho != expected.rho
    assert found.rho == pytest.approx(expected.rho, rel=0.01)


def test_only_so_many_samples_are_seen():
    seen = []
    model = net(lambda m, x: (seen.append(len(x)), m.norm(m.linear(m.noise(x))))[1])
    advice_of(model, *activations(64, 4, 6, 6).float().split(8), samples=20)
    assert seen == [8, 8, 8]
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        advice_of(model, activations(8, 4, 6, 6).float(), samples=0)


def test_samples_are_counted_where_only_forward_fn_knows_the_batch():
    model = net(lambda m, x: m.norm(m.linear(m.noise(x))))
    calls = []

    def forward_fn(model, batch):
        calls.append(1)
        return model(batch.sample)

    class Example:
        sample = activations(8, 4, 6, 6).float()

    feed = Feed(model, [Example()] * 6, forward_fn=forward_fn)
    assert advise(feed, batchnorm_layers(model), 20)
    assert len(calls) == 3


def test_a_batch_of_one_value_per_channel_is_left_out():
    model = nn.Sequential(Jumpout(p=0.2), nn.Linear(30, 5), nn.BatchNorm1d(5))
    x = activations(33, 30).float()
    assert advice_of(model, x[:1]) == {}
    assert advice_of(model, x[:1], x[1:]) == advice_of(model, x[1:])


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_model_is_left_as_it_was_found_also_after_an_exception(training):
    def forward(m, x):
        y = m.norm(m.linear(m.noise(x)))
        if len(x) == 7:
            raise RuntimeError("the user's own")
        return y

    model = net(forward)
    x = activations(15, 4, 6, 6).float()
    model(x)
    model.train(training)
    before = snapshot(model)
    assert advice_of(model, x[:8])
    assert same_bits(snapshot(model), before)
    with pytest.raises(RuntimeError, match="the user's own"):
        advice_of(model, x[:8], x[8:])
    assert same_bits(snapshot(model), before)


@pytest.mark.integration
def test_a_compiled_model_gets_the_same_advice():
    model = net(lambda m, x: m.norm(m.linear(m.noise(x))))
    x = activations(8, 4, 6, 6).float()
    expected = advice_of(model, x)["norm"]
    compiled = torch.compile(model, backend="eager")
    compiled(x)  # what was compiled knows no hook
    assert list(advice_of(compiled, x).values()) == [expected]
