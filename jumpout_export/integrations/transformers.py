"""A callback for the Trainer of Hugging Face's transformers, which this file needs."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from jumpout_export.integrations.following import Following


class ServingStatisticsCallback(TrainerCallback):
    """Evaluates and saves with serving statistics, and leaves them in the model at the end of training.

    They go in after the step that an evaluation or a checkpoint follows, and out before the next step begins: training
    is bitwise as without it. A checkpoint holds them; going on from it trains alike, because training does not read
    running statistics. With `load_best_model_at_end` the model ends with those of that checkpoint. A callback is not
    told of an exception in an evaluation: after it `leave()` puts the buffers back.

    Args:
        options: of `ServingStatistics`, such as `keep=8` or `layers=[...]`.

    Example:
        >>> Trainer(model, args, train_dataset=data, callbacks=[ServingStatisticsCallback(keep=8)])
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._following: Following | None = None

    def leave(self) -> None:
        """Puts the buffers back, if the serving statistics are in."""
        if self._following is not None:
            self._following.leave()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Starts to keep what the model is called with."""
        self._close()
        self._following = Following(kwargs["model"], self._options)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Puts the buffers back before training goes on."""
        self.leave()

    on_epoch_begin = on_step_begin

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ends a batch of micro-batches, and puts the serving statistics in before an evaluation or checkpoint."""
        if self._following is not None:
            self._following.new_batch = True
            if control.should_evaluate or control.should_save:
                self._following.enter()

    on_epoch_end = on_step_end

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Puts the buffers back after the last step, before the best model is loaded into them."""
        if "train_runtime" in kwargs.get("logs", {}):
            self.leave()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Writes the serving statistics for good, unless the best model was loaded, which was saved with its own."""
        loaded = args.load_best_model_at_end and state.best_model_checkpoint is not None
        if self._following is not None and not loaded:
            self._following.write()
        self._close()

    def _close(self) -> None:
        if self._following is not None:
            self._following.close()
        self._following = None
