"""Several processes that share the samples: each runs its own, and the sums of all of them are added up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jumpout_export.batchnorm.measure.layers import Layer
from jumpout_export.batchnorm.measure.moments import Moments
from jumpout_export.errors import NotVerifiableError
from jumpout_export.model.randomness import same_bits

# Accepted as `process_group` for the default group, so that callers need not import torch.distributed.
WORLD = "world"


class Ranks:
    """The processes of a group.

    Every method is collective: all processes of the group have to call it, in the same order.

    Args:
        group: a process group, `"world"` for the default one, or None for this process alone.

    Attributes:
        rank: number of this process in the group.
        size: number of processes.

    Raises:
        ValueError: if a group is given and torch.distributed is not initialised, or this process is not in the group.
    """

    def __init__(self, group: dist.ProcessGroup | str | None = None) -> None:
        self._group: dist.ProcessGroup | None = None
        self.rank, self.size = 0, 1
        if group is None:
            return
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError(
                "process_group needs an initialised torch.distributed; call torch.distributed.init_process_group "
                "first, or leave process_group out"
            )
        if isinstance(group, str) and group != WORLD:
            raise ValueError(f"process_group must be a process group or 'world', got {group!r}")
        self._group = dist.group.WORLD if isinstance(group, str) else group
        self.rank, self.size = dist.get_rank(self._group), dist.get_world_size(self._group)
        if self.rank < 0:
            raise ValueError("this process is not in the process_group; only its members may call this")

    def share(self, samples: int | None) -> int | None:
        """Returns how many of `samples` this process has to run; the shares add up to `samples`."""
        if samples is None:
            return None
        return samples // self.size + (self.rank < samples % self.size)

    def gather(self, value: Any) -> list[Any]:
        """Returns the (small, picklable) value of every process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _lost_ranks():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replaces float64 tensors by their sums over the processes, in place, in one exchange."""
        if self.size == 1 or not tensors:
            return
        nccl = dist.get_backend(self._group) == "nccl"
        device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
        flat = torch.cat([tensor.to(device).flatten() for tensor in tensors])
        with _lost_ranks():
            dist.all_reduce(flat, group=self._group)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Runs a block on all processes; if it raises an exception on one, it does so on all of them.

        Raises:
            NotVerifiableError: on the processes whose own block was fine, with the rank and error of another.
        """
        if self.size == 1:
            yield
            return
        raised: BaseException | None = None
        try:
            yield
        except (NotVerifiableError, KeyboardInterrupt, SystemExit):
            raise  # a rank is lost, or this one is about to be
        except BaseException as error:  # what only ends a loop early is no Exception, and is raised again
            raised = error
        messages = self.gather(f"{type(raised).__name__}: {raised}" if isinstance(raised, Exception) else None)
        for rank, message in enumerate(messages):
            if message is not None and not isinstance(raised, Exception):
                raise NotVerifiableError(f"rank {rank} failed, so the others stop too: {message}")
        if raised is not None:
            raise raised

    def require_same_statistics(self, layers: Sequence[Layer]) -> None:
        """Checks that all processes hold the same BatchNorm layers with bitwise the same statistics.

        What a DistributedDataParallel model would make the same in its next forward is so within `buffers_as_served`.

        Raises:
            ValueError: on every process, naming the first layer that differs and the ranks.
        """
        if self.size == 1:
            return
        own = {layer.name: [buffer.cpu() for buffer in layer.statistics()] for layer in layers if layer.tracked}
        everyone = self.gather(own)
        for rank, other in enumerate(everyone):
            for name in {**everyone[0], **other}:
                if name not in other or name not in everyone[0]:
                    raise ValueError(
                        f"all ranks must run the same model, but BatchNorm `{name}` is not on rank 0 and rank {rank}"
                    )
                if not same_bits(everyone[0][name], other[name]):
                    raise ValueError(
                        f"all ranks must hold the same statistics, but those of BatchNorm `{name}` differ between rank "
                        f"0 and rank {rank}, as each trained on its own samples; pass the DistributedDataParallel "
                        "model itself, of which rank 0's are taken where it broadcasts them, or make them the same "
                        "first:\n"
                        "    for buffer in model.buffers():\n"
                        "        torch.distributed.broadcast(buffer, 0)"
                    )

    @contextlib.contextmanager
    def buffers_as_served(self, model: nn.Module) -> Iterator[bool]:
        """Gives every process the buffers that a DistributedDataParallel model would start its next forward from.

        With `broadcast_buffers=True`, the default, it takes those of rank 0 at the start of each forward, so that after
        a training step every rank holds what its own samples made of them. Here that is done for models of these very
        processes; each gets its own buffers back, bitwise, on the way out. Yields whether any were others.
        """
        own = [buffer for module in model.modules() for buffer in self._broadcast(module)] if self.size > 1 else []
        saved = [buffer.clone() for buffer in own]
        try:
            if own:
                self._take_first(own)
            same = all(same_bits(buffer, before) for buffer, before in zip(own, saved, strict=True))
            yield not all(self.gather(same))
        finally:
            _write(own, saved)

    def _broadcast(self, module: nn.Module) -> list[Tensor]:
        """The buffers that a module broadcasts from the first of these processes before each forward."""
        if not isinstance(module, DistributedDataParallel) or hasattr(module, "buffer_hook"):
            return []
        members = dist.get_process_group_ranks(self._group)
        if not module.will_sync_module_buffers() or dist.get_process_group_ranks(module.process_group) != members:
            return []
        named = module.module.named_buffers()
        return [buffer for name, buffer in named if name not in module.parameters_to_ignore]

    def _take_first(self, buffers: Sequence[Tensor]) -> None:
        shapes = self.gather([(buffer.shape, buffer.dtype) for buffer in buffers])
        if any(other != shapes[0] for other in shapes):
            return  # they are of different models, which is said where layers are compared
        for buffer in buffers:
            value = buffer.contiguous()
            with _lost_ranks():
                dist.broadcast(value, group=self._group, group_src=0)
            _write([buffer], [value])


ALONE = Ranks()


def _write(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for buffer, value in zip(buffers, values, strict=True):
            if not same_bits(buffer, value):
                buffer.copy_(value)


@contextlib.contextmanager
def _lost_ranks() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        # What gloo and NCCL raise when a peer is gone: they name a socket, not the reason.
        raise NotVerifiableError(
            f"another process of the group has ended or does not answer, so nothing was decided ({error}); "
            "its own output says why"
        ) from error


def merge_moments(
    ranks: Ranks, moments: dict[str, Moments], layers: Sequence[Layer], *, by_pixels: bool = False
) -> None:
    """Replaces the moments of every layer by those of all processes together, in place.

    Layers come in the call order of the first process that reached them. All processes hold bitwise the same sums
    afterwards, and must hold the same stored statistics, which are the unit of the sums.
    """
    own = {name: (one.count, one.samples, one.calls, one.outside, len(one.call_sums)) for name, one in moments.items()}
    by_batch = any(ranks.gather(any(one.batches is not None for one in moments.values())))
    everyone = ranks.gather(own)
    by_name = {layer.name: layer for layer in layers}
    sums: list[Tensor] = []
    for name in dict.fromkeys(name for other in everyone for name in other):
        counts = [other[name] for other in everyone if name in other]
        one = moments.pop(name, None) or Moments(by_name[name], by_pixels=by_pixels, by_batch=by_batch)
        moments[name] = one
        one.count, one.samples = sum(count for count, *_ in counts), sum(samples for _, samples, *_ in counts)
        one.calls, one.outside = max(calls for _, _, calls, *_ in counts), any(outside for *_, outside, _ in counts)
        one.call_sums += [torch.zeros_like(one.sums[0]) for _ in range(max(n for *_, n in counts) - len(one.call_sums))]
        sums += [one.sums, *one.call_sums, *([] if one.batches is None else [one.batches])]
    ranks.add(sums)


def merge_fields(ranks: Ranks, own: Any) -> None:
    """Replaces every attribute of an object that only counts and sums by what all processes have together, in place.

    Numbers and tensors are added, flags hold if they hold everywhere, other attributes are objects of the same kind.
    """
    first, *others = ranks.gather(own)
    for other in others:
        _add_fields(first, other)
    vars(own).update(vars(first))


def _add_fields(to: Any, other: Any) -> None:
    for name, value in vars(other).items():
        mine = getattr(to, name)
        if isinstance(value, bool):
            setattr(to, name, mine and value)
        elif isinstance(value, int | float | Tensor):
            setattr(to, name, mine + value)
        else:
            _add_fields(mine, value)
