"""Watch BatchNorm and jumpout while a network trains, by its running and by serving statistics; training is the same.

Run it with `python examples/watch_training.py`; it writes `bn.json`, and `bn.svg` to look at.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from jumpout_export import BatchNormMonitor, Jumpout, ServingStatistics

torch.manual_seed(0)
digits = load_digits()  # 1,797 real images of 8 x 8 pixels
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
train, held_out = torch.randperm(len(images)).split([1285, 512])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *[nn.Linear(64, 128), nn.BatchNorm1d(128), Jumpout(sigma=0.2, relu=True)],
        *[nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.5)],
        *[nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10)],
    )


def fit(model: nn.Module, seen=lambda x: None) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for _ in range(20):
        for chosen in train[torch.randperm(len(train))].split(64):
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen(images[chosen])
        schedule.step()


def watch(x: torch.Tensor) -> None:
    serving.step(x)
    if (look := monitor.step()) is not None:
        both = [f"{name}: {w:.3f} -> {look.w_serving[name]:.3f}" for name, w in look.w.items()]
        print(f"{look.step:>4}", *both, f"q {look.active_fraction['2']:.2f}, p' {look.rate['2']:.2f}", sep="   ")


print("step  W of each BatchNorm by its running -> by serving statistics; q and p' of the jumpout layer")
watched = network()
serving = ServingStatistics(watched, keep=8)
with BatchNormMonitor(watched, images[held_out].split(128), every=70, samples=512, serving=serving) as monitor:
    fit(watched, watch)
print("written:", monitor.save("bn.json"), monitor.plot("bn.svg"))
print("beyond the margin of 0.05 in the end:", [name for name, w in monitor.history.w.items() if w[-1] > 0.05])

unwatched = network()
fit(unwatched)
same = all(map(torch.equal, watched.state_dict().values(), unwatched.state_dict().values()))
print("bitwise the same network without them:", same)
