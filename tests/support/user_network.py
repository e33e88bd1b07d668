"""A trained jumpout network as a script of a user has it: its class is of `__main__`."""

SOURCE = """
import torch
from torch import nn
from jumpout_export import Jumpout

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn = nn.BatchNorm2d(4)
        self.drop = Jumpout(sigma=0.1, relu=True)
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2))
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        return self.linear(self.second(self.drop(self.bn(self.conv(x)))).mean((2, 3)))

def trained():
    torch.manual_seed(3)
    model = Net()
    for _ in range(3):
        model(torch.randn(16, 1, 8, 8) * 2 + 1)
    return model
"""


NAMESPACE = {"__name__": "__main__"}
exec(SOURCE, NAMESPACE)


trained = NAMESPACE["trained"]
