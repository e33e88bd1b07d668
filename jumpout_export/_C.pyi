from typing import Any

STATS_FIELDS: tuple[str, ...]

class Settings:
    def __init__(
        self,
        p: float,
        sigma: float,
        p_min: float,
        p_max: float,
        rate_cap: float,
        alpha: float,
        normalize: bool,
        clip: bool,
        relu: bool,
    ) -> None: ...

def forward_cpu(
    x: int,
    y: int,
    keep_bits: int,
    stats: int,
    seed: int,
    n: int,
    rows: int,
    dtype: int,
    settings: Settings,
    threads: int,
) -> None: ...
def backward_cpu(dy: int, keep_bits: int, stats: int, dx: int, n: int, rows: int, dtype: int, threads: int) -> None: ...

# Only in a build with CUDA.
def scratch_cuda(n: int, rows: int, device: int) -> int: ...
def forward_cuda(
    x: int,
    y: int,
    keep_bits: int,
    stats: int,
    seed: int,
    scratch: int,
    n: int,
    rows: int,
    dtype: int,
    settings: Settings,
    device: int,
    stream: int,
) -> None: ...
def backward_cuda(
    dy: int, keep_bits: int, stats: int, dx: int, n: int, rows: int, dtype: int, device: int, stream: int
) -> None: ...
def philox(c0: int, c1: int, c2: int, c3: int, k0: int, k1: int, rounds: int) -> tuple[int, int, int, int]: ...
def half_normal_quantile(u: float) -> float: ...
def exact_log(x: float) -> float: ...
def exact_exp(x: float) -> float: ...
def build_info() -> dict[str, Any]: ...
