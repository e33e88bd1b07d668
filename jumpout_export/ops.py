"""The compiled op as torch sees it: the one file that knows both `_C` and `torch.library`.

`jumpout::forward` is pure: (x, seed, settings) -> (y, keep_bits, statistics). `jumpout::backward` reads the bits.
Both are opaque to torch.compile and differentiable through the `autograd.Function` below, which is skipped when no
gradient is needed (it costs more than a small kernel).

Over 300 lines because every way into the op, eager, compiled, functional and in place, on either device, agrees on
one schema, and the fast ones skip parts of torch's dispatch for reasons that stand where they do.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from jumpout_export.errors import MissingExtensionError

try:
    from jumpout_export import _C
except ImportError as error:
    raise MissingExtensionError(
        "jumpout_export's compiled extension `_C` is missing or cannot be loaded "
        f"({error}). Build it with `pip install .` in the project's folder; if it is installed already and this "
        "Python was started inside the source folder, start it from another folder or use `pip install -e .`"
    ) from error

STATS_FIELDS: tuple[str, ...] = _C.STATS_FIELDS
PHILOX_ROUNDS: int = _C.build_info()["philox_rounds"]
HAS_CUDA = hasattr(_C, "forward_cuda")


class Settings(NamedTuple):
    """Settings in the order of the op's schema; `p` None means: sample the rate."""

    p: float | None
    sigma: float
    p_min: float
    p_max: float
    alpha: float
    rate_cap: float
    normalize: str
    truncation: str
    relu: bool


_DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_SETTINGS = (
    "float? p, float sigma, float p_min, float p_max, float alpha, float rate_cap, str normalize, str truncation, "
    "bool relu"
)
# The keep bits belong to positions in memory, so a compiler must not change the strides we are called with.
_TAGS = (torch.Tag.needs_exact_strides, torch.Tag.pt2_compliant_tag)

_library = torch.library.Library("jumpout", "DEF")
_library.define(f"forward(Tensor x, Tensor seed, {_SETTINGS}) -> (Tensor, Tensor, Tensor)", tags=_TAGS)
_library.define(f"forward_(Tensor(a!) x, Tensor seed, {_SETTINGS}) -> (Tensor, Tensor)", tags=_TAGS)
_library.define("backward(Tensor dy, Tensor keep_bits, Tensor stats, SymInt[] stride) -> Tensor", tags=_TAGS)


def apply(x: Tensor, seed: Tensor, settings: Settings, inplace: bool = False) -> tuple[Tensor, Tensor]:
    """Returns jumpout of `x` and the statistics, differentiable in `x`.

    Args:
        x: (*) floating tensor on a CPU or CUDA device; float32, float64, bfloat16 or float16; any strides.
        seed: () int64 tensor on x's device.
        settings: see `Settings`; checked by the caller.
        inplace: write the result into `x`.

    Returns:
        y: shape, dtype and, where x is dense, strides of x.
        stats: (rows, 5) float64 columns q, p, p_prime, scale, capped; one row, or one per sample.
    """
    needs_gradient = torch.is_grad_enabled() and x.requires_grad
    if torch.compiler.is_compiling() or not _is_plain(x):
        return _apply_by_dispatcher(x, seed, settings, inplace, needs_gradient)
    if needs_gradient:
        sampled: list[Tensor] = []
        return _JumpoutEager.apply(x, seed, settings, inplace, sampled), sampled[0]
    if inplace:
        _, stats = torch.ops.jumpout.forward_(x, seed, *settings)
        return x, stats
    y, _, stats = _run(x, seed, settings)
    return y, stats


def build_info() -> dict[str, Any]:
    """Returns facts about the compiled extension: version, compiler, threads, CUDA."""
    return dict(_C.build_info())


def philox(
    counter: tuple[int, int, int, int], key: tuple[int, int], rounds: int = PHILOX_ROUNDS
) -> tuple[int, int, int, int]:
    """Returns the four 32-bit words of Philox-4x32 as the kernels compute them."""
    return _C.philox(*counter, *key, rounds)


def _apply_by_dispatcher(
    x: Tensor, seed: Tensor, settings: Settings, inplace: bool, needs_gradient: bool
) -> tuple[Tensor, Tensor]:
    tangent = not torch.compiler.is_compiling() and forward_ad._current_level >= 0
    if needs_gradient or tangent:
        # Neither torch.compile nor torch.func can trace mark_dirty; a copy means the same to them.
        y, _, stats = (_JumpoutWithTangent if tangent else _Jumpout).apply(x, seed, settings)
        return x.copy_(y) if inplace else y, stats
    if inplace:
        _, stats = torch.ops.jumpout.forward_(x, seed, *settings)
        return x, stats
    y, _, stats = torch.ops.jumpout.forward(x, seed, *settings)
    return y, stats


def _is_plain(x: Tensor) -> bool:
    """Whether the dispatcher would call our kernel on x as it is; calling it directly is then the same, 5 us faster.

    Tensors that are fake, lazy, sparse, negated views, zero tensors, subclasses or made in inference mode have other
    dispatch keys; tracers and the like are modes; torch.func and forward-mode AD have flags.
    """
    return bool(
        torch._C._len_torch_dispatch_stack() == 0
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and torch._C._dispatch_keys(x).raw_repr() == _plain_keys(x.is_cuda)
    )


@functools.cache
def _plain_keys(cuda: bool) -> Any:
    with torch.inference_mode(False):
        return torch._C._dispatch_keys(torch.empty(0, device="cuda" if cuda else "cpu")).raw_repr()


class _WithoutVmap(torch.autograd.Function):
    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        raise RuntimeError(
            "jumpout does not work under torch.func.vmap: its rate depends on the whole batch. Call it outside vmap, "
            "or put the module in eval mode"
        )


class _Jumpout(_WithoutVmap):
    @staticmethod
    def forward(x: Tensor, seed: Tensor, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.jumpout.forward(x, seed, *settings)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        y, keep_bits, stats = output
        ctx.mark_non_differentiable(keep_bits, stats)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(keep_bits, stats)
        ctx.stride = y.stride()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _grad(ctx, grads[0]), None, None


class _JumpoutWithTangent(_Jumpout):
    """The same for forward-mode AD, apart because torch.compile traces no Function that has a jvp."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _Jumpout.setup_context(ctx, inputs, output)
        ctx.save_for_forward(*output[1:])

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _grad(ctx, tangents[0]), None, None


class _JumpoutEager(torch.autograd.Function):
    """The same for eager mode, about 60 us faster at each call.

    `setup_context` is what torch.func needs and costs 40 us (torch binds the arguments by inspection). And y is the
    only output, because each output costs; the statistics go into the list `sampled`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: Tensor, settings: Settings, inplace: bool, sampled: list[Tensor]) -> Tensor:
        if inplace:
            keep_bits, stats = torch.ops.jumpout.forward_(x, seed, *settings)
            ctx.mark_dirty(x)
            y = x
        else:
            y, keep_bits, stats = _run(x, seed, settings)
        ctx.save_for_backward(keep_bits, stats)
        ctx.stride = y.stride()
        sampled.append(stats)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _grad(ctx, grads[0]), None, None, None, None


class _JumpoutBackward(_WithoutVmap):
    """dy -> dx is linear, so its own derivative is the same map: mask and scale once more."""

    @staticmethod
    def forward(dy: Tensor, keep_bits: Tensor, stats: Tensor, stride: tuple[int, ...]) -> Tensor:
        return torch.ops.jumpout.backward(dy, keep_bits, stats, stride)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        _, keep_bits, stats, ctx.stride = inputs
        ctx.save_for_backward(keep_bits, stats)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _grad(ctx, grads[0]), None, None, None


def _grad(ctx: Any, dy: Tensor | None) -> Tensor | None:
    if dy is None:
        return None
    keep_bits, stats = ctx.saved_tensors
    if torch.is_grad_enabled() and dy.requires_grad:
        return _JumpoutBackward.apply(dy, keep_bits, stats, ctx.stride)
    if torch.compiler.is_compiling() or not _is_plain(dy):
        return torch.ops.jumpout.backward(dy, keep_bits, stats, ctx.stride)
    return _backward(dy, keep_bits, stats, ctx.stride)


def _forward(x: Tensor, seed: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _run(x, seed, Settings(*settings))


def _run(x: Tensor, seed: Tensor, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    x = _in_memory_order(x, settings.normalize)
    y = torch.empty_like(x)
    return y, *_run_into(y, x, seed, settings)


def _forward_inplace(x: Tensor, seed: Tensor, *values: Any) -> tuple[Tensor, Tensor]:
    settings = Settings(*values)
    dense = _in_memory_order(x, settings.normalize)
    keep_bits, stats = _run_into(dense, dense, seed, settings)
    if dense is not x:
        x.copy_(dense)
    return keep_bits, stats


def _run_into(y: Tensor, x: Tensor, seed: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    keep_bits, stats = _new_bits_and_stats(x, settings.normalize)
    pointers = x.data_ptr(), y.data_ptr(), keep_bits.data_ptr(), stats.data_ptr(), seed.data_ptr()
    what = x.numel(), stats.shape[0], _DTYPES[x.dtype], _packed(settings)
    if x.is_cuda:
        # torch's guard restores the device that was current without creating a context there.
        with torch.cuda.device(x.device.index):
            size = _C.scratch_cuda(x.numel(), stats.shape[0], x.device.index)
            scratch = torch.empty(size, dtype=torch.float64, device=x.device) if size else stats  # not used
            _C.forward_cuda(*pointers, scratch.data_ptr(), *what, *_device_and_stream(x))
    else:
        _C.forward_cpu(*pointers, *what, torch.get_num_threads())
    return keep_bits, stats


@functools.lru_cache(maxsize=1024)
def _packed(settings: Settings) -> _C.Settings:
    p, sigma, p_min, p_max, alpha, rate_cap, normalize, truncation, relu = settings
    rate = -1.0 if p is None else p
    return _C.Settings(rate, sigma, p_min, p_max, rate_cap, alpha, normalize != "none", truncation == "clip", relu)


def _backward(dy: Tensor, keep_bits: Tensor, stats: Tensor, stride: list[int]) -> Tensor:
    dx = torch.empty_strided(dy.shape, stride, dtype=dy.dtype, device=dy.device)
    if dy.stride() != tuple(stride):
        dy = dx.copy_(dy)
    pointers = dy.data_ptr(), keep_bits.data_ptr(), stats.data_ptr(), dx.data_ptr()
    what = dy.numel(), stats.shape[0], _DTYPES[dy.dtype]
    if dy.is_cuda:
        with torch.cuda.device(dy.device.index):
            _C.backward_cuda(*pointers, *what, *_device_and_stream(dy))
    else:
        _C.backward_cpu(*pointers, *what, torch.get_num_threads())
    return dx


def _device_and_stream(x: Tensor) -> tuple[int, int]:
    return x.device.index, torch.cuda.current_stream(x.device).cuda_stream


def _forward_fake(x: Tensor, seed: Tensor, *values: Any) -> tuple[Tensor, Tensor, Tensor]:
    settings = Settings(*values)
    x = _in_memory_order(x, settings.normalize)
    return torch.empty_like(x), *_new_bits_and_stats(x, settings.normalize)


def _forward_inplace_fake(x: Tensor, seed: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return _new_bits_and_stats(x, Settings(*settings).normalize)


def _backward_fake(dy: Tensor, keep_bits: Tensor, stats: Tensor, stride: list[int]) -> Tensor:
    return torch.empty_strided(dy.shape, stride, dtype=dy.dtype, device=dy.device)


def _new_bits_and_stats(x: Tensor, normalize: str) -> tuple[Tensor, Tensor]:
    rows = x.shape[0] if normalize == "sample" else 1
    keep_bits = torch.empty((x.numel() + 7) // 8, dtype=torch.uint8, device=x.device)
    return keep_bits, torch.empty((rows, len(STATS_FIELDS)), dtype=torch.float64, device=x.device)


def _in_memory_order(x: Tensor, normalize: str) -> Tensor:
    """Returns x itself if its elements (and those of each sample) fill a piece of memory, else a contiguous copy."""
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    if normalize == "sample" and x.shape[0] > 1 and x.stride(0) * x.shape[0] != x.numel():
        return x.contiguous()
    expected = 1
    for stride, size in sorted((stride, size) for stride, size in zip(x.stride(), x.shape, strict=True) if size != 1):
        if stride != expected:
            return x.contiguous()
        expected *= size
    return x


for _device in ("CPU", "CUDA") if HAS_CUDA else ("CPU",):
    _library.impl("forward", _forward, _device)
    _library.impl("forward_", _forward_inplace, _device)
    _library.impl("backward", _backward, _device)
torch.library.register_fake("jumpout::forward", _forward_fake, lib=_library)
torch.library.register_fake("jumpout::forward_", _forward_inplace_fake, lib=_library)
torch.library.register_fake("jumpout::backward", _backward_fake, lib=_library)
