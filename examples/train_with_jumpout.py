"""Train a small network with jumpout in a loop of your own, and watch what jumpout does.

Run it with `python examples/train_with_jumpout.py`.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from jumpout_export import Jumpout, ServingStatistics

torch.manual_seed(0)
digits = load_digits()  # 1,797 real images of 8 x 8 pixels
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
train, test = torch.randperm(len(images)).split([1400, 397])

# `relu=True` does the ReLU in the same pass: one layer instead of nn.ReLU() and nn.Dropout().
model = nn.Sequential(
    *[nn.Linear(64, 128), nn.BatchNorm1d(128), Jumpout(sigma=0.1, relu=True)],
    *[nn.Linear(128, 128), nn.BatchNorm1d(128), Jumpout(sigma=0.1, relu=True)],
    nn.Linear(128, 10),
)
layers = {name: module for name, module in model.named_modules() if isinstance(module, Jumpout)}
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
serving = ServingStatistics(model, keep=8)  # what BatchNorm should store once the noise is off


@torch.no_grad()
def accuracy() -> float:
    model.eval()
    return float((model(images[test]).argmax(1) == labels[test]).float().mean())


print("epoch  loss   test accuracy  with serving statistics   per layer: active fraction q, rate used p'")
for epoch in range(8):
    model.train()
    losses, sampled = [], {name: [] for name in layers}
    for chosen in train[torch.randperm(len(train))].split(64):
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        serving.step(images[chosen])
        losses.append(loss.detach())
        for name, layer in layers.items():
            sampled[name].append(torch.stack([layer.statistics.q, layer.statistics.p_prime]))  # no .item(): no waiting
    running = accuracy()
    with serving():  # the buffers are bitwise back afterwards
        served = accuracy()
    rates = "   ".join("q {:.2f}, p' {:.2f}".format(*torch.stack(s).mean(0)) for s in sampled.values())
    print(f"{epoch + 1:>5}  {torch.stack(losses).mean():.3f}  {running:>13.1%}  {served:>23.1%}   {rates}")

hidden = torch.randn(4, 128)
layer = Jumpout(sigma=0.1).eval()
print("in eval mode jumpout returns its input itself:", layer(hidden) is hidden)
print("jumpout adds nothing to a checkpoint:", not any(name.startswith(("2.", "5.")) for name in model.state_dict()))
