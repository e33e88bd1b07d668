"""The operations that PyTorch runs for one batch: in which module, reading which weights and which results before."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode

from jumpout_export.model.batches import Batch
from jumpout_export.model.randomness import rng_restored
from jumpout_export.model.signature import fresh, tensors
from jumpout_export.model.tracing import module_stack, user_frame
from jumpout_export.model.wrappers import plain_calls

# Operators whose result depends on no value of what they are given.
_SHAPE_ALONE = frozenset({"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like",
                          "empty_like", "sym_size", "new_empty_strided"})  # fmt: skip


@dataclass(frozen=True)
class Operation:
    """One result of one operation; an operation with several results is several of these."""

    name: str  # for example `aten.convolution.default`
    module: str  # path of the innermost module that was running, empty for the model itself
    shape: torch.Size  # of the result
    dtype: torch.dtype  # of the result
    inputs: tuple[int, ...]  # indices of the operations whose results it reads
    weights: tuple[str, ...]  # names of the parameters and buffers it reads, also through operations on weights alone
    from_data: bool  # whether it depends on the model's inputs
    # what it was called with; tensors that are no weights may have been changed in place since
    arguments: tuple[Any, ...]
    source: tuple[str, int]  # file and line of the user's source, empty and 0 where they are unknown
    options: Mapping[str, Any] = field(default_factory=dict)  # what it was called with by name
    # whether it runs functions of its own, as torch.cond does, whose operations and weights are not seen
    is_opaque: bool = False

    @property
    def short_name(self) -> str:
        """Its name without namespace and overload, for example `convolution`; as it is where it has neither."""
        parts = self.name.split(".")
        return parts[1] if len(parts) > 1 else self.name

    @property
    def reads_values(self) -> bool:
        """Whether its result depends on the values of what it is given, and not on shapes alone."""
        return self.short_name not in _SHAPE_ALONE


@dataclass(frozen=True)
class Recording:
    """What a model did on one batch."""

    operations: list[Operation]  # in the order in which they ran; views that only reshape are left out
    result: Any  # what the model returned
    # per tensor in the result, the index of the operation it comes from; None for an input or a weight
    producers: list[int | None]
    names: dict[int, str]  # of the parameters and buffers by their `id`, those that were only reshaped too
    held: list[Tensor] = field(default_factory=list)  # read, and neither inputs, weights nor results: the model's own

    def live(self) -> set[int]:
        """Returns the operations whose results reach what the model returned."""
        found: set[int] = set()
        left = [index for index in self.producers if index is not None]
        while left:
            index = left.pop()
            if index not in found:
                found.add(index)
                left += self.operations[index].inputs
        return found

    def returned(self) -> set[str]:
        """Returns the names of the weights that the model returns as they are."""
        return {self.names[id(tensor)] for tensor in _tensors(self.result) if id(tensor) in self.names}

    def read_directly(self, index: int) -> set[str]:
        """Returns the names of the weights that an operation itself reads, not those that its operands are made of."""
        operation = self.operations[index]
        leaves = _tensors((operation.arguments, dict(operation.options)))
        return {self.names[id(tensor)] for tensor in leaves if id(tensor) in self.names}


def record(
    model: nn.Module,
    batch: Batch,
    keep: Callable[[int, Tensor], None] | None = None,
    constants: dict[int, Tensor] | None = None,
) -> Recording:
    """Returns the operations that the model runs on copies of a batch; generators are restored, hooks removed.

    The model, in eval mode, is run as it is, so pass a copy of one that keeps state. `keep` is called with index and
    result of every operation, before anything can change the result in place. `constants` gets what the operations make
    of weights and numbers alone, by the index of the operation, copied where it is no part of a weight.
    """
    weights = itertools.chain(model.named_parameters(), model.named_buffers())
    names = {id(tensor): name for name, tensor in weights}
    batch = fresh(batch)
    stack: list[str] = []
    seen = _Recorder(names, _tensors(tensors(batch)), stack, keep, constants)
    with plain_calls(model), rng_restored(), torch.no_grad(), no_fast_path(), module_stack(model, stack), seen:
        result = batch(model)
    producers = [max(seen.producers(leaf), default=None) for leaf in _tensors(result)]
    return Recording(seen.operations, result, producers, names, list(seen.held.values()))


@contextlib.contextmanager
def no_fast_path() -> Iterator[None]:
    """Switches the fast path of transformer layers off: it is one operation, of which nothing can be told apart."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _Recorder(TorchDispatchMode):
    # torch.cond and its like run as one operator.
    supports_higher_order_operators = True

    def __init__(
        self,
        names: dict[int, str],
        inputs: list[Tensor],
        stack: list[str],
        keep: Callable[[int, Tensor], None] | None,
        constants: dict[int, Tensor] | None,
    ) -> None:
        super().__init__()
        self._constants = constants
        self.operations: list[Operation] = []
        self.held: dict[int, Tensor] = {}
        self._names, self._stack, self._keep = names, stack, keep
        self._producers: dict[int, tuple[int, ...]] = {}
        self._written: dict[int, tuple[int, ...]] = {}
        self._data = {id(tensor) for tensor in inputs}
        self._alive: list[Any] = [inputs]  # an id says which tensor it is only as long as the tensor lives

    def producers(self, tensor: Tensor) -> tuple[int, ...]:
        """The operations that this tensor's values come from: what made it, and what wrote into its storage since."""
        made = self._producers.get(id(tensor), ())
        since = [index for index in self._written.get(_storage(tensor), ()) if index > max(made, default=-1)]
        return tuple(dict.fromkeys((*made, *since)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        reads = _tensors((args, kwargs))
        inputs = tuple(dict.fromkeys(index for tensor in reads for index in self.producers(tensor)))
        known = self._names.keys() | self._data
        self.held |= {id(one): one for one in reads if id(one) not in known and not self.producers(one)}
        result = func(*args, **kwargs)
        results = _tensors(result)
        self._alive.append((reads, results))
        from_data = any(id(tensor) in self._data for tensor in reads) or any(
            self.operations[index].from_data for index in inputs
        )
        if len(results) == 1 and any(_only_reshaped(results[0], tensor) for tensor in reads):
            self._producers[id(results[0])] = inputs
            if id(results[0]) not in self._names and len(reads) == 1 and id(reads[0]) in self._names:
                self._names[id(results[0])] = self._names[id(reads[0])]
            self._data |= {id(results[0])} if from_data else set()
            return result
        weights = [self._names[id(tensor)] for tensor in reads if id(tensor) in self._names]
        weights += [
            name for index in inputs if not self.operations[index].from_data for name in self.operations[index].weights
        ]
        for tensor in results:
            index = len(self.operations)
            self.operations.append(
                Operation(
                    name=str(func),
                    module=self._stack[-1] if self._stack else "",
                    shape=tensor.shape,
                    dtype=tensor.dtype,
                    inputs=inputs,
                    weights=tuple(dict.fromkeys(weights)),
                    from_data=from_data,
                    arguments=tuple(args),
                    source=user_frame(),
                    options=kwargs,
                    is_opaque=isinstance(func, HigherOrderOperator),
                )
            )
            self._producers[id(tensor)] = (index,)
            if self._keep is not None:
                self._keep(index, tensor)
            if self._constants is not None and not from_data:
                shared = any(_storage(tensor) == _storage(read) for read in reads)
                self._constants[index] = tensor.detach() if shared else tensor.detach().clone()
        for tensor in _changed(func, args):
            storage = _storage(tensor)
            self._written[storage] = (*self._written.get(storage, ()), len(self.operations) - 1)
        return result


def _changed(func: Any, args: tuple[Any, ...]) -> Iterator[Tensor]:
    """The arguments that the operation writes into."""
    schema = getattr(func, "_schema", None)
    for value, argument in zip(args, schema.arguments if schema is not None else (), strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Tensor):
            yield value


def _only_reshaped(result: Tensor, source: Tensor) -> bool:
    """Whether the result is a view with all of the source's values in the source's order."""
    return (
        result is not source
        and result.numel() == source.numel()
        and _storage(result) == _storage(source)
        and result.storage_offset() == source.storage_offset()
        and result.is_contiguous()
        and source.is_contiguous()
    )


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
