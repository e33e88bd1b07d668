"""Bad input: each message says what was got and what is allowed, and names the argument."""

import math

import pytest
import torch

from jumpout_export import Jumpout, jumpout

BAD_SETTINGS = [
    ({"sigma": -0.1}, "sigma must be finite and >= 0, got -0.1"),
    ({"sigma": math.nan}, "sigma must be finite and >= 0, got nan"),
    ({"sigma": math.inf}, "sigma must be finite and >= 0, got inf"),
    ({"p_min": -0.1}, r"p_min must be in \[0, 1\), got -0.1"),
    ({"p_min": 1.0, "p_max": 1.0}, r"p_min must be in \[0, 1\), got 1.0"),
    ({"p_max": 0.01}, r"p_max must be in \(p_min, 1\] with p_min=0.01, got 0.01"),
    ({"p_max": 1.1}, r"p_max must be in \(p_min, 1\] with p_min=0.01, got 1.1"),
    ({"p": 1.0}, r"p must be in \[0, 1\), got 1.0"),
    ({"p": -0.1}, r"p must be in \[0, 1\), got -0.1"),
    ({"p": math.nan}, r"p must be in \[0, 1\), got nan"),
    ({"p": 0.2, "sigma": 0.1}, "give either p .* or sigma .*, not both: got p=0.2 and sigma=0.1"),
    ({"rate_cap": 0.0}, r"rate_cap must be in \(0, 1\), got 0.0"),
    ({"rate_cap": 1.0}, r"rate_cap must be in \(0, 1\), got 1.0"),
    ({"alpha": -1.0}, "alpha must be finite and >= 0, got -1.0"),
    ({"alpha": math.inf}, "alpha must be finite and >= 0, got inf"),
    ({"normalize": "layer"}, "normalize must be 'batch', 'sample' or 'none', got 'layer'"),
    ({"truncation": "cut"}, "truncation must be 'shift' or 'clip', got 'cut'"),
]


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS)
def test_a_setting_out_of_range_is_named(settings, message):
    with pytest.raises(ValueError, match=message):
        Jumpout(**settings)
    with pytest.raises(ValueError, match=message):
        jumpout(torch.ones(3), **settings)


def test_a_setting_changed_to_a_wrong_value_is_found_at_the_next_call():
    layer = Jumpout(p=0.2)
    layer.p = 2.0
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\), got 2.0"):
        layer(torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_only_floating_tensors_are_taken(dtype):
    with pytest.raises(TypeError, match=f"x must be a floating tensor .*, got {dtype}"):
        jumpout(torch.ones(3).to(dtype))


def test_something_that_is_no_tensor_is_named():
    with pytest.raises(TypeError, match=r"x must be a tensor, got list"):
        jumpout([1.0, 2.0])


def test_per_sample_mode_needs_samples():
    with pytest.raises(ValueError, match="normalize='sample' needs a first dimension of samples, got a 0-d tensor"):
        jumpout(torch.tensor(1.0), normalize="sample")


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (3, TypeError, "seed must be an int64 scalar tensor, got int"),
        (torch.tensor(3, dtype=torch.int32), TypeError, "seed must be an int64 scalar tensor, got torch.int32"),
        (torch.tensor([3]), ValueError, r"seed must be a scalar \(0-d\) tensor, got shape \(1,\)"),
        (torch.tensor(3, device="meta"), ValueError, "seed must be on x's device cpu, got meta"),
    ],
)
def test_a_wrong_seed_is_named(seed, error, message):
    with pytest.raises(error, match=message):
        jumpout(torch.ones(3), seed=seed)


def test_vmap_says_what_to_do_instead():
    with pytest.raises(RuntimeError, match=r"jumpout does not work under torch\.func\.vmap"):
        torch.func.vmap(torch.func.grad(lambda x: jumpout(x, seed=torch.tensor(1)).sum()))(torch.ones(3, 4))
