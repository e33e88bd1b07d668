"""Dropout makes stored BatchNorm statistics wrong: measure it with an error bar, find where it starts, fix it exactly.

Run it with `python examples/check_and_recalibrate.py`.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from jumpout_export import check_batchnorm, recalibrate_batchnorm

torch.manual_seed(0)
digits = load_digits()  # 1,797 real images of 8 x 8 pixels
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
train, test = torch.randperm(len(images)).split([1400, 397])


def block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(0.5))


# Nothing but plain PyTorch: the check knows no difference between dropout, jumpout or any other training noise.
model = nn.Sequential(block(64, 128), block(128, 128), block(128, 128), nn.Linear(128, 10))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 15)
for _ in range(15):
    for chosen in train[torch.randperm(len(train))].split(64):
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    schedule.step()

train_batches = [(images[chosen], labels[chosen]) for chosen in train.split(128)]
test_batches = [(images[chosen], labels[chosen]) for chosen in test.split(128)]


def show(title: str, report) -> None:
    print(f"{title}: {report.verdict}" + (f", starting at {report.origin}" if report.origin else ""))
    for layer in report.layers:
        print(f"  {layer.name:<4} W = {layer.w:.3f} [{layer.w_low:.3f}, {layer.w_high:.3f}]  {layer.verdict}")


before = check_batchnorm(model, train_batches)
show("as trained", before)
print(" ", before.layers[1].note)

# The check also tries recalibration on a copy, with the images it gets: here images that training did not see.
effect = check_batchnorm(model, test_batches).outputs
print(f"  recalibrating would change test NLL from {effect.nll_before:.3f} to {effect.nll_after:.3f}")

undo = recalibrate_batchnorm(model, train_batches)
show("recalibrated", check_batchnorm(model, train_batches))

undo()
again = check_batchnorm(model, train_batches)
print("undone, bitwise as before:", [layer.w for layer in again.layers] == [layer.w for layer in before.layers])
