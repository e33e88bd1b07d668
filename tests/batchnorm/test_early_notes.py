"""A check that stops early still says what the model does in eval mode."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jumpout_export import check_batchnorm, recalibrate_batchnorm


class NoisyHead(nn.Module):
    """Draws random numbers in eval mode, behind a BatchNorm that has nothing to do with them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.norm(x), 0.3, training=True)


def test_random_numbers_are_reported_where_every_layer_is_decided_early():
    torch.manual_seed(0)
    model, batches = NoisyHead(), torch.randn(64, 64, 4).unbind()
    recalibrate_batchnorm(model, batches)
    early = {"training_batch_size": 100_000, "attribution": False, "outputs": False}
    report = check_batchnorm(model, batches, **early)
    assert (report.verdict, report.stopped_early) == ("ok", True)
    assert [note for note in report.notes if note.startswith("The model draws random numbers in eval mode")]
