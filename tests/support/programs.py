"""Small networks as exported programs."""

import warnings

import torch
from torch.export import Dim

X = torch.linspace(-1, 2, 4 * 64).reshape(4, 1, 8, 8)


def trained(model, x=X):
    model.train()
    with torch.no_grad():
        for step in range(3):
            model(x * (1 + step) + step)
    return model


def exported(model, mode, x=X, *, dynamic=True):
    model.train(mode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own about copies of its tree specs
        shapes = ({0: Dim.DYNAMIC},) if dynamic else None
        return torch.export.export(model, (x,), dynamic_shapes=shapes)
