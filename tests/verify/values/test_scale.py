"""The size of each channel, which errors are measured in."""

import torch

from jumpout_export.verify.values.reference import Expected
from jumpout_export.verify.values.scale import Scale


def test_ties_that_pytorch_orders_otherwise_in_float64_are_told_from_an_amplifier():
    exact = torch.linspace(1, 2, 100, dtype=torch.float64)[None]
    own = (exact + 1e-7).float()
    swapped, amplified = own.clone(), own + torch.linspace(0.1, 0.2, 100)
    swapped[0, [10, 60]] = own[0, [60, 10]]
    whys = {}
    for name, value in (("swapped", swapped), ("amplified", amplified)):
        scale = Scale()
        scale.add(Expected("y", value, exact))
        assert scale.own_coarse > 0.05
        whys[name] = scale.why
    assert whys["amplified"] == "the model amplifies rounding"
    assert whys["swapped"].startswith("PyTorch itself orders near ties differently in float32 and float64")
