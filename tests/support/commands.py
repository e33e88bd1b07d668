"""The command line as tests run it: a module of factories to name on it, and a process of its own."""

import os
import subprocess
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from support.onnx_files import saved
from support.warm import warm_python

FACTORIES = """
import time
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from jumpout_export import Jumpout

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), Jumpout(relu=True), nn.Flatten(), nn.Linear(144, 3))

class Noisy(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.inner = model()
        self.draw = draw
    def forward(self, x):
        return self.draw(self.inner(x))

def functional_dropout(): return Noisy(lambda x: F.dropout(x, 0.5, training=True))
def noise_mask(): return Noisy(lambda x: x * (torch.rand_like(x) > 0.5))

def nan_variance():
    net = model()
    net[1].running_var[2] = float("nan")
    return net

def one_child_in_train_mode():
    net = model().eval()
    net[2].train()
    return net

class Slow(nn.Module):
    def forward(self, x):
        print("running", flush=True)
        time.sleep(60)
        return x

def slow(): return Slow()

def exits(): raise SystemExit(0)

class Exits(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(1)
    def forward(self, x):
        if x.shape[0] != 128:
            raise SystemExit(0)
        return self.bn(x)

def exits_later(): return Exits()

def prints():
    print("hello")
    return model()

def two_norms():
    torch.manual_seed(0)
    return nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 3))

def softened():
    net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 3))
    torch.manual_seed(0)
    nn.init.normal_(net[2].weight, std=0.5)
    net[1].running_var.fill_(9.0)
    return net

class Picks(nn.Module):
    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(1)
    def forward(self, x):
        y = self.bn(3 * x + 1)
        return y[y > 0.5]

def picks(): return Picks()

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)
    def forward(self, x, y):
        return self.a(x) + self.b(y)

def two(): return Two()

class NoiseFirst(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(Jumpout(p=0.3), nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    def forward(self, x):
        return self.inner(x)

def random_weights(): return NoiseFirst()  # nothing seeds them but the command

class Marks(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = model()
    def forward(self, x):
        open("ran", "w").close()
        return self.inner(x)

def marks(): return Marks()

class TakesFolder(Marks):
    def forward(self, x):
        open("r", "w").close()
        return super().forward(x)

def takes_folder(): return TakesFolder()  # puts a file where the folder `r` goes, once it runs
"""

# What a command says where a report cannot be written.
KEPT = "what was found is printed, and the exit code is that of the verdict"


def calibrated(path):
    """Weights whose BatchNorm agrees with data.npz."""
    import cli_factories

    from jumpout_export import recalibrate_batchnorm

    net = cli_factories.model()
    recalibrate_batchnorm(net, torch.from_numpy(np.load("data.npz")["inputs"]).split(100))
    save_file(net.state_dict(), path)


def random_file(path):
    """A file that draws."""
    saved("g (float[2] x) => (float[2] y) { [noise] y = RandomNormalLike(x) }", Path(path))


def process(
    arguments,
    *,
    before="",
    entry="from jumpout_export.__main__ import main; main()",
    stdout=subprocess.PIPE,
    python=None,
):
    """A command in a process of its own, with code that runs before it, in a Python that has imported everything.

    `python=[sys.executable]` is one that has imported nothing, for what is about that.
    """
    code = f"import atexit, os, signal, sys\n{before}\nsys.argv = {['jumpout-export', *arguments]!r}\n{entry}\n"
    command = [*(python or warm_python()), "-c", code]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=100, check=False)


def worker(name, *arguments, timeout):
    """A script of this folder in a process of its own, which prints its result in the last line of stdout."""
    return subprocess.run(
        [*warm_python(), "-W", "ignore", "-m", f"support.{name}", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
    )


def signal_at(number, event, ending):
    """Sends this process a signal when Python is about to do something with a file or module of that name."""
    return (
        "def watch(event, details):\n"
        f"    names = details[:2] if event == {event!r} else ()\n"
        f"    if any(isinstance(name, str | os.PathLike) and os.fspath(name).endswith({ending!r}) for name in names):\n"
        f"        os.kill(os.getpid(), {int(number)})\n"
        "sys.addaudithook(watch)"
    )


EXPORT = ["export", "cli_factories:model", "m.onnx", "--input-shape", "2,1,8,8", "--report", "r"]
