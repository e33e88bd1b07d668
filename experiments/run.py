"""One run: trains what a TOML file says, takes the network through the product, writes one JSON.

    python -m experiments.run experiments/configs/cpu/jumpout.toml --data DIR [--seed 0] [--device cuda]

It goes on where a killed run ended. `torchrun --nproc-per-node N -m experiments.run ...` shares every batch.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from experiments.config import Config, read_config
from experiments.datasets import Images, read_images, shrink, take
from experiments.results import Result, machine, write_result
from experiments.served import serve
from experiments.training import Process, Say, train


def run(
    config: Config,
    name: str,
    images: Images,
    seed: int,
    out: Path,
    device: torch.device,
    say: Say = print,
    process: Process | None = None,
) -> Result | None:
    """Returns the result of one run and writes it to `out/NAME-SEED.json`; the checkpoint is removed then.

    Args:
        config: what to train.
        name: of the result.
        images: the whole data set; the configuration takes its part.
        seed: of the run.
        out: folder, made if it is not there.
        device: where torch runs.
        say: gets one line per epoch.
        process: this process, under torchrun; only the first one goes on after the training and returns something.
    """
    out.mkdir(parents=True, exist_ok=True)
    images = take(images, config.data.train or None, config.data.test or None)
    images = shrink(images, config.data.image_size or images.train.shape[-1])
    checkpoint = out / f"{name}-{seed}.pt"
    network, epochs = train(config, images, seed, device, checkpoint, say, process)
    if process is not None and process.rank:
        return None
    served = serve(network, images, device, config.training.batch_size)
    result = Result(
        config=config,
        name=name,
        seed=seed,
        data=f"{images.name}, {len(images.train)} + {len(images.test)} images of {tuple(images.train.shape[1:])}",
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        epochs=epochs,
        served=served,
        machine=machine(device),
    )
    write_result(result, out / f"{name}-{seed}.json")
    checkpoint.unlink(missing_ok=True)
    return result


def main() -> None:
    """Runs one configuration with one seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="folder with the images, see experiments/datasets.py")
    parser.add_argument("--no-checksums", action="store_true", help="take files that are not the published ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
    arguments = parser.parse_args()
    process = Process(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))
    device = _device(arguments.device)
    if process.size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    say: Say = _say if process.rank == 0 else lambda _: None
    try:
        images = read_images(arguments.data, checksums=not arguments.no_checksums)
        config = read_config(arguments.config)
        result = run(config, arguments.config.stem, images, arguments.seed, arguments.out, device, say, process)
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if result is not None:
        served = result.served
        print(
            f"{result.name} seed {result.seed}: test accuracy {served.accuracy:.1%}, BatchNorm {served.verdict}, "
            f"recalibrated {served.accuracy_after:.1%}, export {'passed' if served.exported else 'FAILED'}"
        )


def _device(name: str) -> torch.device:
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise SystemExit(f"error: --device {name} cannot be used: {str(error).splitlines()[0]}") from error


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
