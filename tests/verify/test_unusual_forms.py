"""Right networks of unusual forms: each is exported, and nothing of it is called wrong or left unshown."""

import math

import pytest
import torch
import torch.nn.functional as F
from support.reports import found
from torch import nn

from jumpout_export import export_onnx


class Bounded(nn.Module):
    """A table whose rows are shortened, square matrices, a slope that is a weight, a sum over places."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(40, 8, max_norm=1.0, padding_idx=3)
        self.pairs, self.slope, self.gain = nn.Bilinear(8, 8, 4), nn.PReLU(4), nn.Parameter(torch.ones(4) / 3)

    def forward(self, x):
        h = self.words(x)
        y = self.slope(self.pairs(h[:, 0], h[:, 1]))
        return y + self.gain * torch.tanh(y.cumsum(1))


class Rotated(nn.Module):
    """A language model: rotated places, fewer keys than queries, root-mean-square norms, a causal mask."""

    def __init__(self):
        super().__init__()
        self.words, self.out = nn.Embedding(60, 16), nn.Linear(16, 60)
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8)
        self.o, self.gain = nn.Linear(16, 16, bias=False), nn.Parameter(torch.rand(16) + 0.5)
        self.register_buffer("rates", 1 / 10000 ** (torch.arange(0, 8, 2) / 8))

    def rotated(self, x):
        angles = torch.outer(torch.arange(x.shape[2]).float(), self.rates)
        angles = torch.cat([angles, angles], -1)
        one, two = x.chunk(2, -1)
        return x * angles.cos() + torch.cat([-two, one], -1) * angles.sin()

    def forward(self, x):
        h = self.words(x)
        y = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain
        q, k, v = (layer(y).unflatten(2, (-1, 8)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        k, v = (one.repeat_interleave(2, 1) for one in (k, v))
        a = F.scaled_dot_product_attention(self.rotated(q), self.rotated(k), v, is_causal=True)
        return self.out(h + self.o(a.transpose(1, 2).flatten(2)))


class Cosine(nn.Module):
    """Swin's second attention: a bounded scale, a network of constants alone, a table of places."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 4)
        self.scale = nn.Parameter(torch.log(10 * torch.ones(2, 1, 1)))
        self.places = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 2))
        self.register_buffer("table", torch.randn(9, 1))
        self.register_buffer("index", torch.randint(0, 9, (25,)))

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        a = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        a = a * self.scale.clamp(max=math.log(100)).exp()
        bias = 16 * torch.sigmoid(self.places(self.table)[self.index].view(5, 5, 2).permute(2, 0, 1))
        return self.out(((a + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)).mean(1)


class Standardized(nn.Module):
    """A convolution whose kernel is standardized, gates between 0 and 6, means over samples."""

    def __init__(self):
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.out = nn.Linear(8, 3)

    def forward(self, x):
        w = self.conv.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        h = F.hardswish(F.conv2d(x, w, self.conv.bias))
        gate = F.relu6(self.up(F.relu6(self.down(h.mean((2, 3), keepdim=True)))) + 3) / 6
        return self.out(F.relu6(h * gate).mean((2, 3)))


class Spoken(nn.Module):
    """A head for connectionist temporal classification behind a recurrent layer in both directions."""

    def __init__(self):
        super().__init__()
        self.conv, self.rnn = (
            nn.Conv1d(8, 16, 5, stride=2, padding=2),
            nn.GRU(16, 12, batch_first=True, bidirectional=True),
        )
        self.out = nn.Linear(24, 30)

    def forward(self, x):
        h = F.gelu(self.conv(x.transpose(1, 2))).transpose(1, 2)
        return F.log_softmax(self.out(self.rnn(h)[0]), -1)


class Places(nn.Module):
    """Places that are counted in the words, as RoBERTa does; buckets of numbers beside them."""

    def __init__(self):
        super().__init__()
        self.words, self.places, self.buckets = nn.Embedding(300, 16, 1), nn.Embedding(40, 16, 1), nn.Embedding(10, 16)
        self.norm, self.out = nn.LayerNorm(16), nn.Linear(16, 4)
        self.register_buffer("edges", torch.linspace(-2, 2, 9))

    def forward(self, x, y):
        mask = (x != 1).int()
        h = self.words(x) + self.places((mask.cumsum(1).int() * mask + 1).long())
        return self.out(self.norm(h + self.buckets(torch.bucketize(y, self.edges))).mean(1))


NETS = {
    "bounded": (Bounded, lambda: torch.randint(0, 40, (4, 2))),
    "rotated": (Rotated, lambda: torch.randint(0, 60, (3, 7))),
    "cosine": (Cosine, lambda: torch.randn(3, 5, 16)),
    "standardized": (Standardized, lambda: torch.randn(3, 3, 8, 8)),
    "spoken": (Spoken, lambda: torch.randn(3, 20, 8)),
    "places": (Places, lambda: (torch.randint(2, 50, (3, 9)), torch.randn(3, 9))),
}


@pytest.mark.parametrize("name", NETS)
def test_a_right_network_passes_and_nothing_is_left_unshown(name, tmp_path):
    torch.manual_seed(0)
    make, inputs = NETS[name]
    report = export_onnx(make().eval(), tmp_path / "m.onnx", inputs())
    assert report, found(report)
    assert [note for note in report.notes if "shown" in note or "known by" in note] == []
    assert {"numbers"}.isdisjoint(check.name for check in report.checks)
