"""One process of tests/batchnorm/measure/test_distributed.py: `distributed_worker.py SCENARIO OUT`, under torchrun."""

import json
import os
import sys
import textwrap
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from jumpout_export import Jumpout, check_batchnorm, recalibrate_batchnorm
from jumpout_export.errors import NotVerifiableError

SAMPLES = 203
LOSSES = (NotVerifiableError, ValueError, RuntimeError)


def network() -> nn.Module:
    """A network whose stored statistics are wrong, the same in every process."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        Jumpout(sigma=0.2, relu=True),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 36, 5),
    )
    x, _ = samples()
    model.train()
    for part in x[:128].split(32):
        model(part)
    return model.eval()


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SAMPLES, 3, 6, 6, generator=generator) + torch.randn(SAMPLES, 1, 1, 1, generator=generator)
    return x, torch.randint(5, (SAMPLES,), generator=generator)


def shard(rank: int, size: int, batch_size: int = 16) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every size-th sample, so that the shards are uneven: 203 is no multiple of 2 or 3."""
    x, labels = (tensor[rank::size] for tensor in samples())
    return list(zip(x.split(batch_size), labels.split(batch_size), strict=True))


class Failing(list):
    """Batches that fail in the second one: with an exception, or by the end of the process."""

    def __init__(self, batches: list, how: str) -> None:
        super().__init__(batches)
        self.how = how

    def __iter__(self):
        for index, batch in enumerate(super().__iter__()):
            if index == 1 and self.how == "exception":
                raise OSError("the disk is gone")
            if index == 1 and self.how == "death":
                os._exit(7)
            yield batch


def wrapped(scenario: str, model: nn.Module, batches: list) -> dict[str, object]:
    """What check and fix say of a model right after a step of DistributedDataParallel, or of one in it."""
    parallel = DistributedDataParallel(model, broadcast_buffers=scenario != "ddp without broadcast")
    parallel.train()(batches[0][0]).sum().backward()
    parallel.eval()
    given = model if scenario == "ddp, the model in it" else parallel
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result: dict[str, object] = {
        "running": {name: tensor.tolist() for name, tensor in before.items() if "running" in name}
    }

    def same() -> bool:
        return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    def check() -> object:
        return json.loads(check_batchnorm(given, batches, samples=SAMPLES, process_group="world").model_dump_json())

    try:
        result["report"] = check()
        result["unchanged"] = same()
        undo = recalibrate_batchnorm(given, batches, process_group="world")
        result["fixed"] = {name: tensor.tolist() for name, tensor in model.state_dict().items() if "running" in name}
        undo()
        result["undone"] = same()
    except ValueError as error:
        result["error"], result["unchanged"] = str(error), same()
        lines = str(error).splitlines()[1:]
        exec(textwrap.dedent("\n".join(lines)), {"model": model, "torch": torch})
        result["report"] = check()
    return result


def main() -> None:
    scenario, out = sys.argv[1], Path(sys.argv[2])
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    model, batches = network(), shard(rank, size)
    result: dict[str, object] = {}
    if scenario == "check":
        report = check_batchnorm(model, batches, samples=SAMPLES, process_group="world")
        result["report"] = json.loads(report.model_dump_json())
    elif scenario == "recalibrate":
        undo = recalibrate_batchnorm(model, batches, process_group=dist.group.WORLD)
        result["state"] = {name: tensor.tolist() for name, tensor in model.state_dict().items() if "running" in name}
        undo()
        before = network().state_dict()
        result["undone"] = all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    elif scenario.startswith("ddp"):
        result = wrapped(scenario, model, batches)
    else:
        if scenario == "different" and rank == size - 1:
            model[4].running_var[2] *= 1.5
        if scenario in ("exception", "death") and rank == 1:
            batches = Failing(batches, scenario)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        try:
            recalibrate_batchnorm(model, batches, process_group="world")
        except (*LOSSES, OSError) as error:
            result["error"] = f"{type(error).__name__}: {error}"
        result["unchanged"] = all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    out.joinpath(f"rank{rank}.json").write_text(json.dumps(result))
    os._exit(0)  # gloo's threads sometimes abort in the destructors of a process that ends normally


if __name__ == "__main__":
    main()
