"""Times the op against its peers: first checks that the results are right, then measures, then writes JSON.

    python benchmarks/op.py [--device cpu|cuda] [--seconds 1.0] [--out benchmarks/results/op-cpu.json]

Bytes per element of size s that have to move (q must be known before any element is written):
    forward 3s + 1/8, backward 2s + 1/8; `relu + dropout` of PyTorch moves 2s + (2s + 1), backward (2s + 1) + 3s.

On an x86 CPU the kernels are also timed alone, beside the least that their memory traffic costs: see floor.cpp.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timing import alternate, competing_loader, machine
from torch import Tensor

from jumpout_export import jumpout
from jumpout_export.nn.reference import jumpout_reference

SMALL = 16
SHAPES: dict[str, tuple[int, ...]] = {
    "16 elements": (SMALL,),
    "1 MB": (1 << 18,),
    "16 MB": (1 << 22,),
    "256 MB": (1 << 26,),
    "64x64x32x32": (64, 64, 32, 32),
    "128x160x32x32": (128, 160, 32, 32),
    "256x64x56x56": (256, 64, 56, 56),
}
_LARGE = 1 << 22
ROOT = Path(__file__).parents[1]
CUDA_SHAPES = {**SHAPES, "64 Mi elements": (1 << 26,)}


def composed(x: Tensor) -> Tensor:
    """Jumpout composed from PyTorch calls, as a user would write it."""
    q = (x > 0).float().mean()
    p = (0.01 + (torch.randn((), device=x.device) * 0.1).abs()).clamp(max=0.6)
    rate = torch.where(q > 0, p / q, 0.0).clamp(max=0.95)
    keep = torch.rand_like(x) >= rate
    return x * keep * ((1 - rate) ** -0.75).to(x.dtype)


class BareFunction(torch.autograd.Function):
    """What any autograd.Function costs: one new tensor forward, one backward, two saved, and no work."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(torch.empty(1), torch.empty(1))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        _first, _second = ctx.saved_tensors
        return torch.empty_like(dy)


def peers() -> dict[str, Callable[[Tensor], Tensor]]:
    """The functions of one forward pass; ours are `jumpout` and, with the ReLU in the same pass, `relu+jumpout`."""
    return {
        "copy": torch.clone,
        "dropout": lambda x: F.dropout(x, 0.2),
        "relu": F.relu,
        "relu+dropout": lambda x: F.dropout(F.relu(x), 0.2),
        "composed": composed,
        "compiled composed": torch.compile(composed),
        "compiled relu+dropout": torch.compile(lambda x: F.dropout(F.relu(x), 0.2)),
        "jumpout": jumpout,
        "relu+jumpout": lambda x: jumpout(x, relu=True),
    }


def check(device: str) -> None:
    """Raises if the op does not give the reference's result."""
    seed = torch.tensor(3)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(129, 1134).to(dtype)
        expected, _ = jumpout_reference(x, seed)
        torch.testing.assert_close(jumpout(x.to(device), seed=seed.to(device)).cpu(), expected, rtol=0, atol=0)


def with_backward(function: Callable[[Tensor], Tensor], x: Tensor, dy: Tensor) -> Callable[[], Any]:
    """Forward and backward in one call."""
    return lambda: torch.autograd.grad(function(x), x, dy)


def in_place(x: Tensor) -> Callable[[], Any]:
    """In place at the rate 0, which costs what any other costs and keeps the values as they are."""
    return lambda: jumpout(x, p=0.0, inplace=True)


def measure(device: str, seconds: float) -> list[dict[str, Any]]:
    """Returns a row per shape, dtype, threads, direction and function."""
    rows = []
    all_threads = torch.get_num_threads()
    for name, shape in (CUDA_SHAPES if device == "cuda" else SHAPES).items():
        # On a CPU a round of all peers takes half a minute at the largest sizes: one thread and float32 there.
        large = device == "cpu" and torch.Size(shape).numel() > _LARGE
        for dtype in (torch.float32,) if large else (torch.float32, torch.bfloat16):
            for count in {1} if large or device == "cuda" else {1, all_threads}:
                torch.set_num_threads(count)
                x = torch.randn(shape, device=device).to(dtype)
                leaf, dy = x.clone().requires_grad_(), torch.randn_like(x)
                for direction in ("forward", "forward+backward"):
                    torch._dynamo.reset()  # each combination compiled for itself, never the fallback to eager
                    if direction == "forward":
                        functions = {key: partial(f, x) for key, f in peers().items()}
                        functions["jumpout in place"] = in_place(x.clone())
                    else:
                        functions = {key: with_backward(f, leaf, dy) for key, f in peers().items()}
                        if x.numel() == SMALL:
                            functions["bare autograd.Function"] = with_backward(BareFunction.apply, leaf, dy)
                    for function, timing in alternate(functions, device, seconds).items():
                        row = {"shape": name, "elements": x.numel(), "dtype": str(dtype).removeprefix("torch.")}
                        row |= {"threads": count, "direction": direction, "function": function, **timing}
                        rows.append(row)
                print(f"{name} {dtype} {count} thread(s)", flush=True)
    torch.set_num_threads(all_threads)
    return rows


def measure_beside_loader(seconds: float) -> list[dict[str, Any]]:
    """Returns rows as `measure` does, for all threads while a data loader's worker takes one of the cores.

    Only eager functions, forward and backward: what a training step on a small machine sees.
    """
    rows = []
    ours = {name: function for name, function in peers().items() if not name.startswith("compiled")}
    with competing_loader():
        for name in ("1 MB", "16 MB"):
            for dtype in (torch.float32, torch.bfloat16):
                x = torch.randn(SHAPES[name]).to(dtype)
                leaf, dy = x.clone().requires_grad_(), torch.randn_like(x)
                functions = {key: with_backward(f, leaf, dy) for key, f in ours.items()}
                for function, timing in alternate(functions, "cpu", seconds).items():
                    row = {"shape": name, "elements": x.numel(), "dtype": str(dtype).removeprefix("torch.")}
                    row |= {"threads": torch.get_num_threads(), "direction": "forward+backward"}
                    rows.append(row | {"function": function, **timing})
    return rows


def saved_bytes(device: str) -> dict[str, int]:
    """Returns the bytes that each function saves for backward, for one Mi float32 elements."""
    result = {}
    for name, function in peers().items():
        sizes: dict[int, int] = {}
        x = torch.randn(1 << 20, device=device, requires_grad=True)

        def note(tensor: Tensor, sizes: dict[int, int] = sizes, x: Tensor = x) -> Tensor:
            if tensor.data_ptr() != x.data_ptr():
                sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            function(x)
        result[name] = sum(sizes.values())
    return result


def kernel_floors() -> dict[str, Any]:
    """Returns ns per element of the kernels and of their floors, from a C++ program that is built for the purpose."""
    kernels = sorted(path for path in (ROOT / "cpp" / "op").glob("cpu_*.cpp") if path.stem != "cpu_neon")
    sources = [Path(__file__).parent / "floor.cpp", *kernels]
    flags = ["-O3", "-std=c++17", "-march=native", "-ffp-contract=off", "-DJUMPOUT_X86", f"-I{kernels[0].parent}"]
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "floor"
        subprocess.run(["c++", *flags, *map(str, sources), "-o", str(program)], check=True)
        return dict(json.loads(subprocess.run([program], check=True, capture_output=True, text=True).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, default=1.0, help="per shape, dtype, thread count and direction")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    out = options.out or Path(__file__).parent / "results" / f"op-{options.device}.json"
    torch.manual_seed(0)
    check(options.device)
    result = {
        "machine": machine(options.device),
        "saved_bytes_for_1Mi_float32": saved_bytes(options.device),
        "kernels": kernel_floors() if options.device == "cpu" and platform.machine() == "x86_64" else {},
        "rows": measure(options.device, options.seconds),
        "rows_beside_loader": measure_beside_loader(options.seconds) if options.device == "cpu" else [],
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
