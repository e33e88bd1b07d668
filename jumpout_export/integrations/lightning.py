"""A callback for the Trainer of Lightning, which this file needs."""

from __future__ import annotations

from typing import Any

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:  # the same under its older name
    from pytorch_lightning import Callback, LightningModule, Trainer

from jumpout_export.integrations.following import Following


class ServingStatisticsCallback(Callback):
    """Validates and saves with serving statistics, and leaves them in the module at the end of training.

    They are in the module from the start of each validation to its end, and in every checkpoint: training is bitwise as
    without it, after an exception in a validation too. The sanity check before the first step sees the module as it is.

    Args:
        network: path of the module that `training_step` calls, such as `"model"` where it says `self.model(x)`; empty
            where it calls the LightningModule itself, `self(x)`.
        options: of `ServingStatistics`, such as `keep=8` or `layers=[...]`.

    Example:
        >>> Trainer(callbacks=[ServingStatisticsCallback(network="model", keep=8)])
    """

    def __init__(self, network: str = "", **options: Any) -> None:
        self._network, self._options = network, options
        self._following: Following | None = None
        self._steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts to keep what the network is called with."""
        self._close()
        network = pl_module.get_submodule(self._network)
        self._following, self._steps = Following(network, self._options, _calls_its_own_forward), 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *rest: Any) -> None:
        """Ends a batch of micro-batches where the optimiser took a step."""
        if self._following is None:
            return
        if not self._following.kept:
            raise RuntimeError(
                f"training_step does not call {self._network or 'the LightningModule itself'}, so that no batch could "
                'be kept; name the module that it calls: ServingStatisticsCallback(network="model")'
            )
        self._following.new_batch = trainer.global_step != self._steps
        self._steps = trainer.global_step

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the serving statistics in."""
        if self._following is not None:
            self._following.enter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Puts the buffers back."""
        if self._following is not None:
            self._following.leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Puts the buffers back."""
        self._close()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Puts the serving statistics into the checkpoint."""
        if self._following is None or not self._following.enter():
            return
        try:
            state = checkpoint["state_dict"]
            buffers = {name: buffer.clone() for name, buffer in pl_module.named_buffers() if name in state}
        finally:
            self._following.leave()
        state.update(buffers)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the serving statistics for good."""
        if self._following is not None:
            self._following.write()
        self._close()

    def _close(self) -> None:
        if self._following is not None:
            self._following.close()
        self._following = None


def _calls_its_own_forward(network: Any) -> bool:
    """Whether a call is one of the module's own; DDP gets to `training_step` by a call of the module, too.

    Its strategy puts a function of its own in place of `forward` for the length of that call.
    """
    return "_ForwardRedirection" not in getattr(network.forward, "__qualname__", "")
