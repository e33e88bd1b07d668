"""What one TOML file says: a network, what stands after its ReLUs, the data and the training."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from experiments.networks import NETWORKS
from experiments.regularizers import make_regularizer
from jumpout_export.nn.init import hendrycks_gimpel_, second_moment


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Data(_Table):
    """Which images.

    Attributes:
        image_size: average the images down to it; 0 leaves them as they are.
        train: number of training images; 0 for all.
        test: number of test images; 0 for all.
        augment: shift by up to 4 pixels (in proportion to 32) and flip, training images only.
    """

    image_size: int = Field(0, ge=0)
    train: int = Field(0, ge=0)
    test: int = Field(0, ge=0)
    augment: bool = False


class Training(_Table):
    """SGD with Nesterov momentum and a cosine schedule.

    Attributes:
        epochs: passes over the training images.
        batch_size: images per step, over all processes.
        learning_rate: at the start, after a warm-up of one epoch.
        momentum: in [0, 1).
        weight_decay: on every parameter.
        precision: `bfloat16` and `float16` are autocast, the latter with a scaled loss and on CUDA only.
        compile: torch.compile the training step's network.
        reestimate: epochs after which the variances of the BatchNorm layers are estimated anew without noise, as
            Hendrycks and Gimpel do; training goes on with them.
        serving: optimiser batches whose serving statistics each epoch is tested with, too; 0 for none. Training is
            bitwise the same.
    """

    epochs: int = Field(gt=0)
    batch_size: int = Field(100, gt=1)
    learning_rate: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    weight_decay: float = Field(5e-4, ge=0)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    compile: bool = False
    reestimate: tuple[int, ...] = ()
    serving: int = Field(0, ge=0)


class Config(_Table):
    """One experiment.

    Attributes:
        rows: the paper's figures and tables it belongs to.
        label: what its row is called there.
        network: name in `networks.py`.
        options: of the network.
        regularizer: kind and settings, as `regularizers.py` takes them.
        initialisation: `default`, the network's own, or `hendrycks_gimpel`.
        data: which images.
        training: how it is trained.
        seeds: one run for each.
        ratios: measure the mean and variance ratios of Figs 3 and 5 after every epoch.
    """

    rows: tuple[str, ...]
    label: str
    network: str
    options: dict[str, Any] = Field(default_factory=dict)
    regularizer: dict[str, Any]
    initialisation: Literal["default", "hendrycks_gimpel"] = "default"
    data: Data = Data()
    training: Training
    seeds: tuple[int, ...] = (0,)
    ratios: bool = False

    def build(self, classes: int, image: tuple[int, int, int]) -> nn.Module:
        """Returns the network, initialised from torch's generator.

        Raises:
            ValueError: if a name is unknown or an option wrong.
        """
        if self.network not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {self.network!r}")
        make: Callable[..., nn.Module] = partial(NETWORKS[self.network], classes=classes, image=image)
        try:
            network = make(make_regularizer(**self.regularizer), **self.options)
            if self.initialisation == "hendrycks_gimpel":
                with torch.no_grad():
                    self._hendrycks_gimpel(network)
            return network
        except (TypeError, KeyError, ZeroDivisionError, RuntimeError) as error:
            what = f"{self.network} with {self.regularizer} and {self.options} for images of {image}"
            raise ValueError(f"{what} cannot be made: {type(error).__name__}: {error}") from error

    def _hendrycks_gimpel(self, network: nn.Module) -> None:
        """The first layer has no noise at its input; all others have that of the regularizer."""
        settings = {key: value for key, value in self.regularizer.items() if key != "kind"}
        kind = self.regularizer["kind"]
        moment = 1.0
        if kind == "dropout":
            moment = 1 / (1 - settings["p"])
        elif kind == "jumpout":
            alone = settings.pop("normalize", "batch") == "none"
            moment = second_moment(**settings, active_fraction=1.0 if alone else 0.5)
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        for number, layer in enumerate(layers):
            hendrycks_gimpel_(layer, "relu" if number else "identity", moment if number else 1.0)


def read_config(path: Path) -> Config:
    """Returns what a TOML file says.

    Raises:
        ValueError: naming the file and every key that is missing, unknown or out of its range.
    """
    try:
        return Config(**tomllib.loads(path.read_text()))
    except FileNotFoundError as error:
        raise ValueError(f"there is no file {path}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no TOML: {error}") from error
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}" for entry in error.errors()]
        raise ValueError(f"{path}: {'; '.join(problems)}") from error
