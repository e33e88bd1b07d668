"""A check and a recalibration run the model itself, and leave it exactly as it was, whatever its forward does."""

import copy

import pytest
import torch
from torch import nn

from jumpout_export import check_batchnorm, recalibrate_batchnorm
from jumpout_export.model.randomness import same_bits

TOKENS = [torch.randint(10, (16, 3), generator=torch.Generator().manual_seed(seed)) for seed in range(2)]


class Writes(nn.Module):
    """Its forward renormalises a weight, counts, keeps results and replaces a part."""

    def __init__(self, fails_at=99):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.norm, self.fc = nn.Embedding(10, 4, max_norm=1.0), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.calls, self.seen, self.act, self.fails_at = 0, [], nn.ReLU(), fails_at
        with torch.no_grad():
            self.embed.weight.mul_(10)

    def forward(self, x):
        self.calls += 1
        if self.calls == self.fails_at:
            raise RuntimeError("too many")
        self.act = nn.ReLU()
        y = self.fc(self.act(self.norm(self.embed(x).mean(1))))
        self.seen.append(y)
        self.last = y
        return y


def everything(model):
    names = [name for name in vars(model) if not name.startswith("_")]
    return copy.deepcopy(model.state_dict()), model.act, model.calls, list(model.seen), names, model.training


@pytest.mark.parametrize("fails_at", [99, 3])
@pytest.mark.parametrize("entry", [check_batchnorm, recalibrate_batchnorm])
def test_the_model_is_exactly_as_it_was(entry, fails_at):
    model = Writes(fails_at).train()
    before, weight = everything(model), model.embed.weight
    try:
        undo = entry(model, TOKENS)
    except RuntimeError:
        undo = None
    assert model.embed.weight is weight
    if entry is recalibrate_batchnorm and undo is not None:
        assert not torch.equal(model.norm.running_mean, before[0]["norm.running_mean"])
        undo()
    after = everything(model)
    assert same_bits(dict(after[0]), dict(before[0]))
    assert after[1] is before[1]
    assert after[2:] == before[2:]
