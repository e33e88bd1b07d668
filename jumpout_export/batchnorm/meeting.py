"""A meeting of the processes of a group before something collective: who comes alone gets an error, and no hang."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import torch.distributed as dist

from jumpout_export.errors import NotVerifiableError

# How often each group has met; all its processes count alike, because a meeting that failed does not count.
_met: Counter[str] = Counter()


def meet(group: dist.ProcessGroup, timeout: float, what: str) -> None:
    """Waits until every process of `group` has come here, at most `timeout` seconds.

    By way of the store with which the processes found each other: it works for every backend, and unlike a collective
    it can be given up.

    Raises:
        NotVerifiableError: naming the ranks that did not come; `what` says what they should have called.
    """
    store = dist.distributed_c10d._get_default_store()
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    name = group.group_name
    keys = [f"jumpout_export/{name}/{_met[name]}/{number}" for number in range(size)]
    store.set(keys[rank], "here")
    try:
        store.wait(keys, timedelta(seconds=timeout))
    except RuntimeError as error:
        absent = [str(number) for number, key in enumerate(keys) if not store.check([key])]
        store.delete_key(keys[rank])
        raise NotVerifiableError(
            f"rank {', '.join(absent)} did not come within {timeout:g} s; {what}: every rank has to, also where only "
            "one of them validates or saves"
        ) from error
    _met[name] += 1
