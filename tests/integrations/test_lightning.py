"""The callback for Lightning, with the real Trainer: validation and checkpoints serve, training does not feel it."""

import pytest
import torch
from support.serving import statistics
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from jumpout_export.model.randomness import same_bits

lightning = pytest.importorskip("lightning.pytorch")

from jumpout_export.integrations.lightning import ServingStatisticsCallback  # noqa: E402

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore::Warning")]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.4)),
        *(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)),
    )


class Module(lightning.LightningModule):
    """Calls itself, or the network in it; records the buffers of each step and of each validation."""

    def __init__(self, *, direct: bool = False) -> None:
        super().__init__()
        self.model, self.direct, self.broken = network(), direct, False
        self.steps, self.validations, self.kept = [], [], []
        self.callback = None

    def forward(self, x):
        return self.model(x)

    def training_step(self, batch, index):
        self.steps.append(statistics(self.model))
        x, y = batch
        return F.cross_entropy(self.model(x) if self.direct else self(x), y)

    def on_train_batch_end(self, *_):
        if self.callback is not None:
            self.kept = [batch.size for batch in self.callback._following._serving._kept]

    def validation_step(self, batch, index):
        if self.broken:
            raise OSError("the disk is full")
        if not self.trainer.sanity_checking:
            self.validations.append(statistics(self.model))
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def loader(size: int = 8, *, shuffle: bool = True) -> DataLoader:
    x = torch.randn(64, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, (x.mean((1, 2, 3)) > 0).long()), batch_size=size, shuffle=shuffle)


def fit(folder, module, callbacks, size: int = 8, **options):
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, lightning.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)],
        **options,
    )
    torch.manual_seed(3)
    trainer.fit(module, loader(size), loader(64, shuffle=False))
    return module


@pytest.mark.parametrize(("direct", "name"), [(False, ""), (True, "model")])
def test_validation_and_checkpoints_serve_and_training_is_bitwise_the_same(tmp_path, direct, name):
    plain = fit(tmp_path / "plain", Module(direct=direct), [])
    callback = ServingStatisticsCallback(network=name, keep=2)
    module = fit(tmp_path / "watched", Module(direct=direct), [callback])
    assert same_bits(module.steps, plain.steps)
    assert same_bits(dict(module.named_parameters()), dict(plain.named_parameters()))
    assert len(module.validations) == len(plain.validations) == 2
    for epoch, (own, other) in enumerate(zip(module.validations, plain.validations, strict=True)):
        assert not torch.allclose(own[1], other[1], rtol=0.02)
        saved = Module()
        saved.load_state_dict(torch.load(tmp_path / "watched" / f"epoch={epoch}.ckpt", weights_only=True)["state_dict"])
        assert same_bits(statistics(saved.model), own)
    assert same_bits(statistics(module.model), module.validations[-1])  # left for good
    assert not module._forward_pre_hooks
    assert not module.model._forward_pre_hooks


def test_micro_batches_are_one_batch(tmp_path):
    module = Module()
    module.callback = ServingStatisticsCallback(keep=2)
    fit(tmp_path, module, [module.callback], size=2, accumulate_grad_batches=4)
    assert module.kept == [8, 8]


def test_autocast_is_that_of_the_trainer(tmp_path):
    plain = fit(tmp_path / "plain", Module(), [], precision="bf16-mixed")
    module = Module()
    module.callback = callback = ServingStatisticsCallback(keep=2)
    regions = []

    class Watching(lightning.Callback):
        def on_train_batch_end(self, *_):
            regions.append(callback._following._serving._autocast)

    fit(tmp_path / "watched", module, [callback, Watching()], precision="bf16-mixed")
    assert {(region.enabled, region.dtype) for region in regions} == {(True, torch.bfloat16)}
    assert same_bits(module.steps, plain.steps)


def test_buffers_are_back_after_an_exception_in_a_validation(tmp_path):
    module = Module()
    module.broken = True
    before = []

    class Watching(lightning.Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            before.append(statistics(pl_module.model))

        def on_validation_batch_start(self, trainer, pl_module, *_):
            assert not same_bits(statistics(pl_module.model), before[-1])

    with pytest.raises(OSError, match="disk is full"):
        fit(tmp_path, module, [ServingStatisticsCallback(keep=2), Watching()], num_sanity_val_steps=0)
    assert same_bits(statistics(module.model), before[-1])
    assert not module._forward_pre_hooks


def test_a_module_that_training_does_not_call_is_named(tmp_path):
    with pytest.raises(RuntimeError, match=r'training_step does not call the LightningModule itself.*network="model"'):
        fit(tmp_path, Module(direct=True), [ServingStatisticsCallback()])


def test_a_compiled_module_trains_bitwise_the_same(tmp_path):
    torch.compiler.reset()
    plain = Module()
    plain.model.compile(backend="aot_eager")
    fit(tmp_path / "plain", plain, [])
    torch.compiler.reset()
    module = Module()
    module.model.compile(backend="aot_eager")
    fit(tmp_path / "watched", module, [ServingStatisticsCallback(keep=2)])
    assert same_bits(dict(module.named_parameters()), dict(plain.named_parameters()))
    assert not torch.allclose(module.validations[0][1], plain.validations[0][1], rtol=0.02)
