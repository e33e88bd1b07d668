"""Computes with several threads and ends with 1 unless the process has mapped exactly one OpenMP runtime, torch's.

Two OpenMP runtimes in one process keep two pools of threads, which contend for the same cores. The wheel therefore
carries none: the extension asks for `libgomp.so.1`, and torch has loaded the one of its own wheel under that name.
"""

import re
import sys
from pathlib import Path

import torch

from jumpout_export import jumpout


def mapped() -> set[str]:
    """Returns the OpenMP runtimes that this process has mapped."""
    return set(re.findall(r"\S+/lib(?:g|i)?omp[\w.-]*", Path("/proc/self/maps").read_text()))


torch.set_num_threads(2)
x = torch.randn(1 << 22)
seed = torch.tensor(0)
two = jumpout(x, training=True, seed=seed)
torch.set_num_threads(1)
if not torch.equal(two, jumpout(x, training=True, seed=seed)):
    sys.exit("error: two threads give other bits than one")
found = mapped()
print("OpenMP:", *sorted(found))
if len(found) != 1 or f"{Path(torch.__file__).parent}/" not in next(iter(found)):
    sys.exit(f"error: one OpenMP runtime, torch's, was to be mapped; found {sorted(found) or 'none'}")
