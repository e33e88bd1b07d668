"""The compiled op against the plain-PyTorch reference: every dtype, setting, size and layout, bit for bit."""

import math
import statistics

import pytest
import torch
from scipy.special import ndtri

from jumpout_export import jumpout, ops
from jumpout_export.model.randomness import same_bits
from jumpout_export.nn.functional import check_settings, jumpout_with_statistics
from jumpout_export.nn.reference import jumpout_reference, philox_reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SETTINGS = {
    "default": {},
    "constant": {"p": 0.3},
    "zero": {"p": 0.0},
    "sample": {"normalize": "sample", "sigma": 0.2},
    "dropout": {"p": 0.4, "normalize": "none", "alpha": 1.0},
    "clip": {"truncation": "clip", "sigma": 0.3},
    "relu": {"relu": True},
    "relu sample": {"relu": True, "normalize": "sample"},
    "cap": {"p": 0.9, "rate_cap": 0.5},
}
SHAPES = [(0,), (1,), (7,), (8,), (129,), (1134,), (5, 7, 3), (4, 5, 3, 3), (3, 0, 2), (70000,)]

# Published known-answer vectors of Random123 (kat_vectors): rounds, counter, key, output.
PHILOX_VECTORS = [
    (7, "00000000 00000000 00000000 00000000", "00000000 00000000", "5f6fb709 0d893f64 4f121f81 4f730a48"),
    (7, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "5207ddc2 45165e59 4d8ee751 8c52f662"),
    (7, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "4dfccaba 190a87f0 c47362ba b6b5242a"),
    (10, "00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    (10, "ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (10, "243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


def words(text):
    return tuple(int(word, 16) for word in text.split())


def assert_same(actual, expected):
    """Bit for bit; in float64 the scale comes from another pow and may differ by rounding errors."""
    tolerance = {"rtol": 1e-14, "atol": 0.0} if expected.dtype == torch.float64 else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(actual, expected, equal_nan=True, **tolerance)


@pytest.mark.parametrize(("rounds", "counter", "key", "output"), PHILOX_VECTORS)
def test_philox_gives_the_published_vectors(rounds, counter, key, output):
    assert ops.philox(words(counter), words(key), rounds) == words(output)
    reference = philox_reference(torch.tensor([words(counter)]), words(key), rounds)
    assert tuple(reference[0].tolist()) == words(output)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_equals_the_reference_at_every_size(dtype, settings):
    for shape in SHAPES:
        x = torch.randn(shape).to(dtype)
        seed = torch.randint(-(2**63), 2**63 - 1, ())
        y, sampled = jumpout_with_statistics(x, _checked(settings), seed=seed)
        expected, expected_sampled = jumpout_reference(x, seed, **settings)
        assert_same(y, expected)
        torch.testing.assert_close(sampled, torch.stack(expected_sampled, 1), rtol=1e-12, atol=1e-15)


def _checked(settings):
    keys = ("sigma", "p_min", "p_max", "p", "normalize", "alpha", "rate_cap", "truncation", "relu")
    defaults = (None, 0.01, 0.6, None, "batch", 0.75, 0.95, "shift", False)
    return check_settings(*(settings.get(key, default) for key, default in zip(keys, defaults, strict=True)))


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_the_gradient_equals_the_references(settings):
    x = torch.randn(6, 37, requires_grad=True)
    seed, dy = torch.tensor(5), torch.randn(6, 37)
    (expected,) = torch.autograd.grad(jumpout_reference(x, seed, **settings)[0], x, dy)
    (actual,) = torch.autograd.grad(jumpout(x, seed=seed, **settings), x, dy)
    assert_same(actual, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_specials_pass_where_kept_and_do_not_count(dtype):
    inf, nan = math.inf, math.nan
    x = torch.tensor([nan, inf, -inf, -0.0, 0.0, 1.0, -1.0, nan] * 40, dtype=dtype)
    for settings in ({"p": 0.1}, {"p": 0.1, "relu": True}):
        y, sampled = jumpout_with_statistics(x, _checked(settings), seed=torch.tensor(1))
        assert sampled[0, 0].item() == 0.25  # inf and 1; neither NaN nor -0
        assert_same(y, jumpout_reference(x, torch.tensor(1), **settings)[0])
        assert y.isnan().any()
        assert (y == inf).any()
        assert (y == 0).any()


def test_small_halves_round_once():
    x = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.float16)  # every float16 there is
    seed = torch.tensor(7)
    assert_same(jumpout(x, p=0.2, seed=seed), jumpout_reference(x, seed, p=0.2)[0])
    x = x.view(torch.bfloat16)
    assert_same(jumpout(x, p=0.2, seed=seed), jumpout_reference(x, seed, p=0.2)[0])


@pytest.mark.parametrize("normalize", ["batch", "sample"])
def test_a_dense_tensor_is_processed_in_memory_order(normalize):
    x = torch.randn(4, 6, 5, 3)
    seed = torch.tensor(11)
    last = x.to(memory_format=torch.channels_last)
    y = jumpout(last, seed=seed, normalize=normalize)
    assert y.is_contiguous(memory_format=torch.channels_last)
    in_memory = x.permute(0, 2, 3, 1).contiguous()
    assert torch.equal(y.permute(0, 2, 3, 1), jumpout(in_memory, seed=seed, normalize=normalize))


def test_a_transposed_tensor_keeps_its_strides_and_per_sample_rows():
    x = torch.randn(6, 8).t()
    seed = torch.tensor(3)
    assert torch.equal(jumpout(x, seed=seed).t(), jumpout(x.t(), seed=seed))
    per_sample = jumpout(x, seed=seed, normalize="sample")
    assert torch.equal(per_sample, jumpout(x.contiguous(), seed=seed, normalize="sample"))


LAYOUTS = {
    "sliced": lambda: torch.randn(9, 14)[1:8, 3::2],
    "expanded": lambda: torch.randn(5, 1).expand(5, 13),
    "overlapping": lambda: torch.randn(20).as_strided((6, 6), (2, 1)),
    "strided vector": lambda: torch.randn(40)[::3],
    "sliced channels_last": lambda: torch.randn(4, 6, 5, 5).to(memory_format=torch.channels_last)[:, 1:4],
    "scalar": lambda: torch.randn(()),
    "unaligned": lambda: torch.randn(1000)[3:],
}


@pytest.mark.parametrize("make", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_any_other_tensor_is_made_contiguous_first(make):
    x = make()
    seed = torch.tensor(2)
    assert torch.equal(jumpout(x, seed=seed), jumpout(x.contiguous(), seed=seed))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_belongs_to_positions_whatever_its_own_strides(layout):
    x = torch.randn(3, 4, 5, 6).to(memory_format=layout).requires_grad_()
    y = jumpout(x, p=0.4, seed=torch.tensor(9))
    dy = torch.randn(3, 4, 5, 6)
    for gradient in (dy, dy.to(memory_format=torch.channels_last), dy[:1].expand(3, 4, 5, 6)):
        (dx,) = torch.autograd.grad(y, x, gradient, retain_graph=True)
        torch.testing.assert_close(dx, torch.where(y == 0, 0, y / x) * gradient)


@pytest.mark.parametrize("make", [lambda: torch.randn(6, 7), LAYOUTS["sliced"], LAYOUTS["sliced channels_last"]])
def test_in_place_writes_the_same_result_into_its_input(make):
    x = make()
    expected = jumpout(x, seed=torch.tensor(4))
    y = jumpout(x, seed=torch.tensor(4), inplace=True)
    assert y.data_ptr() == x.data_ptr()
    assert torch.equal(x, expected)


def test_threads_do_not_change_the_result():
    x = torch.randn(3, 50001)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results += [
                [jumpout(x, seed=torch.tensor(6), normalize=mode, relu=True) for mode in ("batch", "sample", "none")]
            ]
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_half_normal_quantile_is_exact():
    from jumpout_export import _C

    points = [(i + 0.5) / 5000 for i in range(5000)] + [1 - 2.0**-k for k in range(12, 52)]
    for u in points:
        expected = -ndtri((1 - u) / 2)
        assert math.isclose(_C.half_normal_quantile(u), expected, rel_tol=1e-12, abs_tol=1e-15)
    assert math.isclose(_C.half_normal_quantile(0.5), statistics.NormalDist().inv_cdf(0.75), rel_tol=1e-14)


def test_the_exact_logarithm_and_exponential_are_accurate():
    from jumpout_export import _C

    for i in range(1, 4000):
        assert math.isclose(_C.exact_log(i / 4000), math.log(i / 4000), rel_tol=1e-14)
        assert math.isclose(_C.exact_exp(i / 10), math.exp(i / 10), rel_tol=1e-15 * (2 + i / 100))
    assert _C.exact_exp(0.0) == 1.0
    assert _C.exact_exp(1e4) == math.inf


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_results_too_large_for_the_caches_are_what_a_piece_of_memory_that_is_written_in_place_gets(dtype):
    x = torch.randn((1 << 24) // dtype.itemsize + 11, dtype=torch.float32).to(dtype)  # beyond where stores change
    settings = (None, 0.1, 0.01, 0.6, 0.75, 0.95, "batch", "shift", False)
    y, keep, sampled = torch.ops.jumpout.forward(x, torch.tensor(3), *settings)
    inplace = x.clone()
    bits, again = torch.ops.jumpout.forward_(inplace, torch.tensor(3), *settings)
    assert same_bits([y, keep, sampled], [inplace, bits, again])
    dx = torch.ops.jumpout.backward(x, keep, sampled, x.stride())
    assert same_bits([dx], [y])  # the same map


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("size", [1, 13, 20007])
def test_without_normalisation_the_active_fraction_is_told_all_the_same(threads, size):
    x = torch.randn(size)
    x[::5] = torch.nan
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        inplace = x.clone()
        _, sampled = torch.ops.jumpout.forward_(
            inplace, torch.tensor(3), 0.2, 0.0, 0.01, 0.6, 0.75, 0.95, "none", "shift", True
        )
    finally:
        torch.set_num_threads(before)
    assert float(sampled[0, 0]) == float((x > 0).double().mean())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu"])
def test_every_instruction_set_gives_the_same_bits(monkeypatch, dtype, relu):
    bits = torch.randint(-(2**15), 2**15, (20007,), dtype=torch.int16)
    x = bits.view(dtype) if dtype.itemsize == 2 else torch.randn(20007, dtype=dtype)  # every kind of half, NaN too
    x, dy = x[3:].view(12, 1667), torch.randn(12, 1667).to(dtype)
    results = {}
    for isa in ("scalar", "avx2", "avx512", "avx512_bf16", "neon"):
        monkeypatch.setenv("JUMPOUT_CPU_ISA", isa)
        try:
            y, keep, sampled = torch.ops.jumpout.forward(
                x, torch.tensor(3), 0.3, 0.0, 0.01, 0.6, 0.75, 0.95, "sample", "shift", relu
            )
        except ValueError:
            continue  # this processor does not have it
        dx = torch.ops.jumpout.backward(dy, keep, sampled, x.stride())
        results[isa] = [t.contiguous().view(torch.uint8) for t in (y, keep, sampled, dx)]
    assert "scalar" in results
    for other in results.values():
        assert all(torch.equal(a, b) for a, b in zip(results["scalar"], other, strict=True))
