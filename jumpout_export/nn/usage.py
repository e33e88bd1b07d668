"""How a network uses its dropout layers on an example: which are called, on what inputs, whose rate is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from jumpout_export.model.batches import device_of
from jumpout_export.model.copies import eval_copy
from jumpout_export.model.randomness import random_calls
from jumpout_export.model.signature import example_batch, fresh
from jumpout_export.model.tracing import user_frame
from jumpout_export.model.wrappers import plain_calls, unwrap
from jumpout_export.nn.code import Noise
from jumpout_export.text import first_line


@dataclass
class Use:
    """What happened to one nn.Dropout while the network trained on an example."""

    calls: int = 0
    values: int = 0  # in the inputs of all calls
    negative: int = 0  # of these
    positive: int = 0
    readers: list[str] = field(default_factory=list)  # `file:line` of what read its `p`


def uses_on(example: Any, model: nn.Module) -> tuple[dict[nn.Module, Use], list[Noise]]:
    """Returns how each nn.Dropout of the model is used, and every call that draws random numbers.

    A copy of the model is run in train mode, but for normalisation layers that keep statistics: one sample has none.

    Raises:
        TypeError: if `example` is no batch of the model.
        ValueError: if the model cannot be run on it.
    """
    inner: nn.Module = unwrap(model)
    batch = example_batch(example, inner).to(device_of(inner))
    copied = eval_copy(inner).train()
    found: dict[nn.Module, Use] = {}
    for (_, original), (_, layer) in zip(inner.named_modules(), copied.named_modules(), strict=True):
        if isinstance(layer, _NormBase):
            layer.eval()
        elif type(layer) is nn.Dropout:
            found[original] = Use()
            layer.__dict__["use"] = found[original]
            layer.__class__ = _Watched
    try:
        with plain_calls(copied):
            calls = random_calls(copied, lambda: fresh(batch)(copied))
    except Exception as error:  # the user's forward may raise anything
        raise ValueError(
            f"example: the model cannot be run on it in train mode, {type(error).__name__}: {first_line(error)}"
        ) from error
    outer = next(path for path, module in model.named_modules() if module is inner)
    return found, [
        Noise(f"{outer}.{call.module}".strip("."), call.operator, f"at {call.file}:{call.line}" if call.file else "")
        for call in calls
    ]


class _Watched(nn.Dropout):
    """An nn.Dropout that notes its calls and who reads its rate."""

    def __getattribute__(self, name: str) -> Any:
        own = object.__getattribute__(self, "__dict__")
        if name == "p":
            file, line = user_frame()
            own["use"].readers.append(f"{file}:{line}" if file else "code of torch")
        return super().__getattribute__(name)

    def forward(self, x: Tensor) -> Tensor:
        own = self.__dict__
        use: Use = own["use"]
        use.calls += 1
        use.values += x.numel()
        use.negative += int((x < 0).sum())
        use.positive += int((x > 0).sum())
        return F.dropout(x, own["p"], self.training, self.inplace)
