"""Whether a layer returns its input in eval mode: proven, or shown on values that tell one that works."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from jumpout_export.model.randomness import same_bits
from jumpout_export.model.stochastic import StochasticLayer
from jumpout_export.text import first_line

# Noise of these sizes, of both signs.
_SCALES = (1e-3, 1.0, 1e4)
# First axes on which it is tried besides the example's.
_SIZES = (1, 2, 67)


def watch(layer: StochasticLayer, seen: dict[str, list[Tensor] | None]) -> torch.utils.hooks.RemovableHandle:
    """Records the inputs of the layer; None once it was called with anything but one floating-point tensor."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = seen.setdefault(layer.path, [])
        if len(args) != 1 or kwargs or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
            seen[layer.path] = None
        elif inputs is not None:
            inputs.append(args[0].detach().clone())

    return layer.module.register_forward_pre_hook(hook, with_kwargs=True)


def not_identity(layer: StochasticLayer, seen: list[Tensor] | None) -> str:
    """Why the layer cannot be replaced; empty if it returns its input (or its relu) bit for bit.

    Args:
        layer: in eval mode, in a copy of the model that is not used afterwards.
        seen: what the example gives it, by `watch`.
    """
    if not seen:
        return "is called with more than one tensor, so it is not known to return its input in eval mode"
    kinds = {(value.ndim, value.dtype): value for value in seen}
    if layer.action == "identity":
        found = [_hands_on(layer.module, value) for value in kinds.values()]
        if None in found:
            return "decides by a size in eval mode"
        if all(found):
            return ""
    for x in (*seen, *(value for example in kinds.values() for value in _telling(example))):
        expected = torch.relu(x) if layer.action == "relu" else x.clone()
        try:
            with torch.no_grad():
                output = layer.module(x.clone())
        except Exception as error:  # a user's forward may raise anything; the reason is reported
            return f"fails on other values with {type(error).__name__}: {first_line(error)}"
        if not isinstance(output, Tensor) or not same_bits(expected, output):
            return "does more in eval mode than return its input"
    return ""


def _hands_on(layer: nn.Module, value: Tensor) -> bool | None:
    """Whether it returns the very object, whatever its values and its sizes: it gets a tensor that has neither.

    No operation may run on it. None where a size decided something: at others it may be another layer.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    sizes = ShapeEnv(
        duck_shape=False, specialize_zero_one=False
    )  # or 1, and two that are equal, would be taken as such
    axes = [DimDynamic.DYNAMIC] * value.ndim
    try:
        with FakeTensorMode(shape_env=sizes) as mode, torch.no_grad():
            fake = mode.from_tensor(value, symbolic_context=StatelessSymbolicContext(axes))
            known = len(sizes.guards)
            with _Operations() as operations:
                output = layer(fake)
    except Exception:  # it looks at the values, or may raise anything; then they are tried
        return False
    if output is not fake or operations.seen:
        return False
    return None if len(sizes.guards) != known else True


class _Operations(TorchDispatchMode):
    """Notes whether any operation runs."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen = True
        return func(*args, **(kwargs or {}))


def _telling(example: Tensor) -> Iterator[Tensor]:
    """Values on which a clamp, a check for NaN, a rounding and the like show, each kind alone and all together."""
    limits = torch.finfo(example.dtype)
    huge, tiny = [limits.max, -limits.max, limits.max / 2, -limits.max / 4], [limits.tiny, -limits.tiny]
    tiny += [limits.smallest_normal * limits.eps, -limits.smallest_normal * limits.eps, limits.eps]
    zeros, broken, plain = [0.0, -0.0], [torch.nan, torch.inf, -torch.inf], [1.0, -1.0, 0.1, -3.7, 255.0]
    kinds = [zeros, [0.0], [-0.0], tiny, huge, plain, [1.0], [*plain, torch.nan], [*plain, torch.inf]]
    kinds.append([*plain, *huge, *tiny, *zeros, *broken])
    generator = torch.Generator().manual_seed(0)
    shapes = [example.shape, *((size, *example.shape[1:]) for size in _SIZES if example.ndim)]
    for shape in shapes:
        noise = torch.randn(shape, generator=generator).to(example)
        yield from (noise * scale for scale in _SCALES)
        for values in kinds:
            some = torch.tensor(values, dtype=torch.float64).to(example)
            yield some.repeat(-(-noise.numel() // len(values)))[: noise.numel()].reshape(shape)
