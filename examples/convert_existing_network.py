"""Turn the dropout of an existing network into jumpout, and load its old checkpoint.

Run it with `python examples/convert_existing_network.py`.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from jumpout_export import convert_dropout

digits = load_digits()  # 1,797 real images of 8 x 8 pixels
images, labels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
train, test = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split([1400, 397])


def existing_network() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout2d(0.1)),
        nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Dropout(0.2)),
        nn.Sequential(nn.Flatten(), nn.Linear(32 * 64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)),
    )


def fit(model: nn.Module, epochs: int) -> float:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        model.train()
        for chosen in train[torch.randperm(len(train))].split(64):
            loss = F.cross_entropy(model(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        return float((model(images[test]).argmax(1) == labels[test]).float().mean())


torch.manual_seed(0)
old = existing_network()
print(f"with dropout, 2 epochs: test accuracy {fit(old, 2):.1%}")

new = existing_network()
for swap in convert_dropout(new, sigma=0.1):
    print(f"  {swap.path}: {swap.kind} " + ("-> Jumpout" if swap.swapped else f"left alone: {swap.reason}"))

new.load_state_dict(old.state_dict())  # strict: jumpout has no parameters and no buffers
x = images[test[:8]]
print("same eval network after loading the old checkpoint:", torch.equal(old(x), new.eval()(x)))
print(f"with jumpout, 2 epochs more: test accuracy {fit(new, 2):.1%}")
