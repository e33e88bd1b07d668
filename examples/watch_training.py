"""Watch BatchNorm and jumpout while a network trains, and show that training does not notice.

Run it with `python examples/watch_training.py`; it writes `bn.json`, and `bn.svg` to look at.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from jumpout_export import BatchNormMonitor, Jumpout

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


def fit(model: nn.Module, monitor: BatchNormMonitor | None = None) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for _ in range(20):
        for chosen in train[torch.randperm(len(train))].split(64):
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            look = monitor.step() if monitor is not None else None
            if look is not None:
                drift = "   ".join(f"{name}: {w:.3f}" for name, w in look.w.items())
                print(f"{look.step:>4}  {drift}   q {look.active_fraction['2']:.2f}, p' {look.rate['2']:.2f}")
        schedule.step()


print("step  W of each BatchNorm, in stored standard deviations; q and p' of the jumpout layer")
watched = network()
with BatchNormMonitor(watched, images[held_out].split(128), every=70, images=512) as monitor:
    fit(watched, monitor)
print("written:", monitor.save("bn.json"), monitor.plot("bn.svg"))
last = {name: values[-1] for name, values in monitor.history.w.items()}
print("beyond the margin of 0.05 in the end:", ", ".join(name for name, w in last.items() if w > 0.05))

unwatched = network()
fit(unwatched)
same = all(map(torch.equal, watched.state_dict().values(), unwatched.state_dict().values()))
print("bitwise the same network without the monitor:", same)
