"""The callback for transformers, with the real Trainer: evaluations and checkpoints serve, training feels nothing."""

import pytest
import torch
from support.serving import statistics
from torch import nn

from jumpout_export.model.randomness import same_bits

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
load_file = pytest.importorskip("safetensors.torch").load_file

from jumpout_export.integrations.transformers import ServingStatisticsCallback  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::Warning")]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.4), nn.Conv2d(4, 4, 3))
        self.norm, self.classify = nn.BatchNorm2d(4), nn.Linear(16, 2)

    def forward(self, pixel_values, labels=None):
        logits = self.classify(self.norm(self.body(pixel_values)).flatten(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Recorder(transformers.TrainerCallback):
    """What the buffers are in each step of training, in each evaluation and in each checkpoint, and what is kept."""

    def __init__(self, callback=None) -> None:
        self.steps, self.evaluations, self.saved, self.kept = [], [], [], []
        self._callback = callback

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(statistics(model))

    def on_step_end(self, args, state, control, **kwargs):
        if self._callback is not None:
            self.kept = [batch.size for batch in self._callback._following._serving._kept]

    def on_evaluate(self, args, state, control, model=None, **kwargs):
        self.evaluations.append(statistics(model))

    def on_save(self, args, state, control, model=None, **kwargs):
        self.saved.append(statistics(model))


def data() -> list[dict[str, torch.Tensor]]:
    x = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return [{"pixel_values": image, "labels": (image.mean() > 0).long()} for image in x]


def trainer(model, folder, callbacks, **options):
    arguments = transformers.TrainingArguments(
        folder,
        num_train_epochs=2,
        learning_rate=1e-2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **{"per_device_train_batch_size": 8, "eval_strategy": "epoch", "save_strategy": "epoch", **options},
    )
    return transformers.Trainer(model, arguments, train_dataset=data(), eval_dataset=data(), callbacks=callbacks)


def fit(folder, callbacks, **options) -> nn.Module:
    model = Network()
    trainer(model, folder, callbacks, **options).train()
    return model


def checkpoint(folder) -> list[torch.Tensor]:
    state = load_file(folder / "model.safetensors")
    model = Network()
    model.load_state_dict(state)
    return statistics(model)


@pytest.mark.parametrize("strategy", ["epoch", "steps"])
def test_evaluations_and_checkpoints_serve_and_training_is_bitwise_the_same(tmp_path, strategy):
    options = {"eval_strategy": strategy, "save_strategy": strategy, "eval_steps": 4, "save_steps": 4}
    plain, watched = Recorder(), Recorder()
    expected = fit(tmp_path / "plain", [plain], **options)
    model = fit(tmp_path / "watched", [ServingStatisticsCallback(keep=2), watched], **options)
    assert same_bits(watched.steps, plain.steps)
    assert same_bits(dict(model.named_parameters()), dict(expected.named_parameters()))
    last = [name for name in ("checkpoint-8", "checkpoint-16") if (tmp_path / "watched" / name).exists()]
    assert last == ["checkpoint-8", "checkpoint-16"]
    assert len(watched.evaluations) == len(plain.evaluations) >= 2
    for own, other in zip(watched.evaluations, plain.evaluations, strict=True):
        assert not torch.allclose(own[1], other[1], rtol=0.02)
    assert same_bits(watched.saved, watched.evaluations)
    assert same_bits(checkpoint(tmp_path / "watched" / "checkpoint-16"), watched.saved[-1])
    assert same_bits(statistics(model), watched.saved[-1])  # the last step's, left for good
    assert not model._forward_pre_hooks


def test_micro_batches_are_one_batch(tmp_path):
    callback = ServingStatisticsCallback(keep=2)
    recorder = Recorder(callback)
    fit(tmp_path, [callback, recorder], per_device_train_batch_size=2, gradient_accumulation_steps=4)
    assert recorder.kept == [8, 8]


@pytest.mark.parametrize("greater", [True, False])
def test_the_best_model_keeps_the_statistics_that_it_was_saved_with(tmp_path, greater):
    recorder = Recorder()
    options = {"load_best_model_at_end": True, "metric_for_best_model": "eval_runtime", "greater_is_better": greater}
    callback = ServingStatisticsCallback(keep=2)
    model = Network()
    run = trainer(model, tmp_path, [callback, recorder], **options)
    run.train()
    best = run.state.best_model_checkpoint
    assert same_bits(statistics(model), checkpoint(tmp_path / best.rpartition("/")[2]))
    assert any(same_bits(statistics(model), saved) for saved in recorder.saved)


class Broken(Recorder):
    def on_prediction_step(self, args, state, control, **kwargs):
        raise OSError("the disk is full")


def test_after_an_exception_in_an_evaluation_leave_puts_the_buffers_back(tmp_path):
    callback, recorder = ServingStatisticsCallback(keep=2), Broken()
    model = Network()
    with pytest.raises(OSError, match="disk is full"):
        trainer(model, tmp_path, [callback, recorder]).train()
    assert not same_bits(statistics(model), recorder.steps[-1])
    callback.leave()
    assert same_bits(statistics(model), recorder.steps[-1])
