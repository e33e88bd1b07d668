"""What each command does before its one call: build the model, read the data, show how far it is."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from jumpout_export import loading
from jumpout_export.cli.progress import progress_on_stderr
from jumpout_export.cli.ranks import rank, world_size
from jumpout_export.errors import LoadError, NotVerifiableError
from jumpout_export.extras import require_onnx
from jumpout_export.filenetwork.network import FileNetwork
from jumpout_export.model.batches import Batch, Progress, split_batch, tensors_in
from jumpout_export.model.guard import put_back
from jumpout_export.model.randomness import reseed, rng_restored
from jumpout_export.signals import Interrupted
from jumpout_export.text import first_line


@contextlib.contextmanager
def working() -> Iterator[Progress]:
    """Shows progress on stderr, where prints of the user's code go too, and lets no exit of that code pass for ours."""
    try:
        with contextlib.redirect_stdout(sys.stderr), progress_on_stderr(quiet=rank() != 0) as progress:
            yield progress
    except Interrupted:
        raise
    except SystemExit as error:
        raise NotVerifiableError(
            f"the code of the model or the data ended the process, sys.exit({error.code})"
        ) from error
    except (Exception, GeneratorExit):
        raise
    except BaseException as error:  # KeyboardInterrupt too: a real Ctrl-C is Interrupted
        raise NotVerifiableError(
            f"the code of the model or the data raised {type(error).__name__}: {first_line(error)}"
        ) from error


@dataclass(frozen=True)
class Job:
    """A network and its batches, as the arguments that every command has name them."""

    network: nn.Module  # on the device, with its weights
    batches: Any  # this process's part of them; the network can run the first one

    def some(self) -> list[Any]:
        """Returns the batches that a file is verified on."""
        return list(itertools.islice(self.batches, 4))

    def up_to(self, samples: int) -> Iterator[Any]:
        """Returns the batches until they hold so many samples."""
        return up_to(self.batches, samples)


def build_job(
    spec: str,
    weights: Path | None,
    device: str,
    data: str | None,
    shapes: list[str] | None,
    batch_size: int,
    seed: int,
    *,
    programs: bool = False,
    files: bool = False,
    groups: str | None = None,
) -> Job:
    """Returns the network, or an exported program as a module, and its batches, tried on the first one.

    The arguments are what `options.py` describes, MODEL as `spec` and `--input-shape` as `shapes`; `programs` and
    `files` say whether the command can work with an exported program or an ONNX file, `groups` is --groups.

    Raises:
        LoadError: if one of the arguments is wrong, or the network cannot run the first batch.
        NotVerifiableError: if CUDA is asked for and unusable.
    """
    reseed(seed)  # what the factory, the data and the noise of training draw: one command gives one result
    network = _load_file(spec, weights) if files and is_file(spec) else _build_model(spec, weights, device, programs)
    if (data is None) == (not shapes):
        raise LoadError("give either --data or --input-shape")
    if isinstance(network, FileNetwork):  # tried once it is known to be one that may be run
        given = loading.load_data(data, batch_size, seed) if data else loading.random_batches(shapes or [], seed)
        return Job(network, network.batches(given))
    if data is not None:
        return Job(network, batches_for(network, data, batch_size, seed, groups))
    return Job(network, _own_share(network, loading.random_batches(shapes or [], seed)))


def batches_for(
    network: nn.Module, data: str, batch_size: int, seed: int, groups: str | None = None, option: str = "--data"
) -> Any:
    """Returns this process's part of the batches that --data or --reference names, tried on the network.

    `option` is the one that named them. With `groups`, --groups, every batch has an entry of that name; batches that
    have it themselves are not tried.

    Raises:
        LoadError: if they cannot be read, or the network cannot run the first one.
    """
    try:
        batches = loading.load_data(data, batch_size, seed)
    except LoadError as error:  # which names the option that data usually come by
        raise LoadError(str(error).replace("--data", option, 1)) from error
    if groups is None:
        return _own_share(network, batches)
    named = loading.with_groups(batches, groups)
    if named is not batches:
        _try_first_batch(network, batches)
    return named


def sets_of(data: list[str], *, per_folder: bool) -> dict[str, str]:
    """Returns the sets of samples by name, what --data names or with --per-folder the folders in it.

    Raises:
        LoadError: if two have one name, or there is no folder.
    """
    if per_folder:
        folders = [folder for root in data for folder in sorted(Path(root).glob("*")) if folder.is_dir()]
        if not folders:
            raise LoadError(f"--per-folder: {', '.join(data)} must be a folder of folders, one for each set of samples")
        names, specs = [folder.name for folder in folders], [str(folder) for folder in folders]
    else:
        names, specs = data, data
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise LoadError(f"--data: two sets of samples are named {twice}; rename one, or give it once")
    return dict(zip(names, specs, strict=True))


def _own_share(network: nn.Module, batches: Any) -> Any:
    share = loading.share_of(batches, rank(), world_size())
    _try_first_batch(network, share)
    return share


def is_program(spec: str) -> bool:
    """Whether MODEL names a file with an exported program."""
    return spec.endswith(".pt2")


def is_file(spec: str) -> bool:
    """Whether MODEL names an ONNX file."""
    return spec.endswith(".onnx")


def _load_file(spec: str, weights: Path | None) -> nn.Module:
    if weights is not None:
        raise LoadError(f"--weights {weights}: the file {spec} holds its own weights")
    require_onnx("onnx")
    return FileNetwork(spec)


def _build_model(spec: str, weights: Path | None, device: str, programs: bool) -> nn.Module:
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise LoadError(f"--device must be cpu or cuda[:N], got {device!r}") from error
    if target.type == "cuda" and not torch.cuda.is_available():
        raise NotVerifiableError(f"--device {device}: torch {torch.__version__} sees no usable CUDA device")
    if is_program(spec):
        return _load_program(spec, weights, programs).to(target)
    model = loading.load_model(spec)
    if weights is not None:
        loading.load_weights(model, weights)
    return model.to(target)


def _load_program(spec: str, weights: Path | None, programs: bool) -> nn.Module:
    if not programs:
        raise LoadError(
            f"MODEL {spec}: an exported program is a graph without BatchNorm layers, so there is nothing to check or "
            "recalibrate; give package.module:factory of the module that was exported"
        )
    if weights is not None:
        raise LoadError(f"--weights {weights}: the exported program {spec} holds its own weights")
    from jumpout_export.program.file import load_program
    from jumpout_export.program.network import as_module

    network: nn.Module = as_module(load_program(Path(spec)))
    return network


def _try_first_batch(network: nn.Module, batches: Any) -> None:
    try:
        batch = split_batch(next(iter(batches)), network, next(network.parameters(), torch.empty(0)).device)
    except StopIteration:
        return  # an empty loader has its own message
    except TypeError as error:
        raise LoadError(f"--data: {error}") from error
    try:
        with put_back(network), torch.no_grad(), rng_restored():
            batch(network.eval())
    except Exception as error:
        tensors = [value for value in (*batch.args, *batch.kwargs.values()) if isinstance(value, torch.Tensor)]
        inputs = ", ".join(f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}" for tensor in tensors)
        hint = "; convert images to float in [0, 1]" if any(x.dtype == torch.uint8 for x in tensors) else ""
        raise LoadError(f"the model cannot run a batch of {inputs}: {type(error).__name__}: {error}{hint}") from error


def up_to(batches: Any, samples: int) -> Iterator[Any]:
    """Yields batches until they hold so many samples."""
    seen = 0
    for batch in batches:
        if seen >= samples:
            return
        yield batch
        seen += _size(batch)


def _size(batch: Any) -> int:
    tensors = tensors_in(batch if not isinstance(batch, Batch) else (batch.args, batch.kwargs))
    return next((len(tensor) for tensor in tensors if tensor.ndim), 1)
