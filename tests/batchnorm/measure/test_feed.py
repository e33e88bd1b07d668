"""Which batches are accepted, and that every pass sees the same."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.measure import feed as feed_module
from jumpout_export.batchnorm.measure.feed import Feed, padding_notes


def inputs_seen(feed: Feed, model: nn.Module) -> list[torch.Tensor]:
    seen: list[torch.Tensor] = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    feed.replay("test", lambda step: len(step.run()))
    handle.remove()
    return seen


@pytest.mark.parametrize("own", [False, True], ids=["global generator", "own generator"])
def test_a_shuffling_loader_repeats_itself_and_its_generators_are_restored(own):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1) if own else None
    loader = DataLoader(TensorDataset(torch.arange(40.0).view(40, 1)), 8, shuffle=True, generator=generator)
    model = nn.Identity()
    feed = Feed(model, loader)
    states = torch.get_rng_state(), generator.get_state() if generator else None
    first, second = inputs_seen(feed, model), inputs_seen(feed, model)
    assert torch.equal(torch.cat(first), torch.cat(second))
    assert not torch.equal(torch.cat(first), torch.arange(40.0).view(40, 1))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert generator is None or torch.equal(generator.get_state(), states[1])


def test_a_pass_ends_with_the_batch_that_reaches_the_limit():
    feed = Feed(nn.Identity(), torch.zeros(10, 4, 2).unbind(), samples=9)
    seen = feed.replay("test", lambda step: len(step.run()))
    assert (seen.samples, seen.batches) == (12, 3)


def test_progress_counts_samples_and_ends_at_the_total():
    calls = []
    feed = Feed(nn.Identity(), torch.zeros(3, 4, 2).unbind(), progress=lambda *args: calls.append(args))
    feed.replay("looking", lambda step: len(step.run()))
    assert calls == [("looking", 4, 12), ("looking", 8, 12), ("looking", 12, 12)]


def test_a_loader_without_a_length_has_no_total():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(torch.zeros(6, 2))

    calls = []
    feed = Feed(nn.Identity(), DataLoader(Stream(), 3), progress=lambda *args: calls.append(args))
    feed.replay("looking", lambda step: len(step.run()))
    assert calls == [("looking", 3, None), ("looking", 6, None)]


def test_batches_that_only_forward_fn_understands_are_counted_by_what_the_model_saw():
    class Odd:
        x = torch.zeros(5, 2)

    feed = Feed(nn.Identity(), [Odd(), Odd()], forward_fn=lambda model, batch: model(batch.x))
    assert feed.replay("test", lambda step: len(step.run())).samples == 10


def test_labels_are_found_beside_a_forward_fn():
    labels = []
    batch = {"image": torch.zeros(3, 2), "label": torch.tensor([0, 1, 2])}
    feed = Feed(nn.Identity(), [batch], forward_fn=lambda model, batch: model(batch["image"]))
    feed.replay("test", lambda step: labels.append(step.labels) or len(step.run()))
    assert labels[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("batches", "error", "match"),
    [
        ((x for x in [torch.zeros(2, 2)]), ValueError, "got a one-shot generator; pass a list or a DataLoader"),
        (iter([torch.zeros(2, 2)]), ValueError, "got a one-shot list_iterator"),
        (torch.zeros(2, 2), TypeError, r"got one Tensor; pass \[batch\]"),
        ({"x": torch.zeros(2, 2)}, TypeError, r"got one dict; pass \[batch\]"),
        (3, TypeError, "must be a list or DataLoader of batches, got int"),
    ],
    ids=["generator", "iterator", "tensor", "dict", "int"],
)
def test_what_cannot_be_replayed_is_refused(batches, error, match):
    with pytest.raises(error, match=match):
        Feed(nn.Identity(), batches)


def test_no_batches_are_an_error():
    with pytest.raises(ValueError, match="batches is empty: there is nothing to measure on"):
        Feed(nn.Identity(), []).replay("test", lambda step: 0)


def test_batches_that_are_used_up_after_one_pass_are_an_error():
    class OnceOnly:
        source = iter([torch.zeros(4, 2)])

        def __iter__(self):
            yield from self.source

    feed = Feed(nn.Identity(), OnceOnly())
    feed.replay("test", lambda step: len(step.run()))
    with pytest.raises(ValueError, match="the same samples on every pass, got 4 samples and then 0"):
        feed.replay("test", lambda step: len(step.run()))


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="samples must be at least 1, got 0"):
        Feed(nn.Identity(), [torch.zeros(2, 2)], samples=0)


def test_batches_go_to_the_device_asked_for():
    feed = Feed(nn.Identity(), [torch.zeros(2, 2)], device="meta")
    devices = []
    feed.replay("test", lambda step: devices.append(step.run().device.type) or 2)
    assert devices == ["meta"]


class Augmented(Dataset):
    """Samples with noise from the global generator, as augmentation draws it in the workers."""

    def __len__(self):
        return 24

    def __getitem__(self, index):
        return torch.full((2,), float(index)) + torch.rand(2)


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.ones(2)


def test_workers_that_augment_repeat_themselves():
    loader = DataLoader(Augmented(), 4, shuffle=True, num_workers=2, generator=torch.Generator().manual_seed(3))
    model = nn.Identity()
    feed = Feed(model, loader)
    first, second = inputs_seen(feed, model), inputs_seen(feed, model)
    assert torch.equal(torch.cat(first), torch.cat(second))
    assert torch.cat(first).frac().unique().numel() == 48


@pytest.mark.parametrize(
    ("generator", "draw"),
    [
        (np.random.default_rng(0), lambda rng: rng.random()),
        (np.random.RandomState(0), lambda rng: rng.rand()),
        (random.Random(0), lambda rng: rng.random()),
        (torch.Generator().manual_seed(0), lambda rng: torch.rand((), generator=rng).item()),
    ],
    ids=["numpy", "numpy, legacy", "python", "torch"],
)
def test_a_data_set_with_a_generator_of_its_own_repeats_itself(generator, draw):
    class Noisy(Augmented):
        def __init__(self):
            self.rng = generator

        def __getitem__(self, index):
            return torch.full((2,), index + draw(self.rng))

    model = nn.Identity()
    feed = Feed(model, DataLoader(Noisy(), 4))
    first, second = inputs_seen(feed, model), inputs_seen(feed, model)
    assert torch.equal(torch.cat(first), torch.cat(second))
    assert torch.cat(first).frac().unique().numel() > 20


@pytest.mark.integration
def test_workers_that_live_on_and_go_on_drawing_are_an_error():
    loader = DataLoader(Augmented(), 4, num_workers=1, persistent_workers=True)
    feed = Feed(nn.Identity(), loader)
    feed.replay("test", lambda step: len(step.run()))
    with pytest.raises(ValueError, match=r"first batch is another one than before: .* \(persistent_workers=True\)"):
        feed.replay("test", lambda step: len(step.run()))


def test_a_loader_that_shuffles_with_a_generator_of_its_own_is_an_error():
    hidden = torch.Generator().manual_seed(0)

    class Shuffled:
        def __iter__(self):
            return iter(torch.arange(96.0).view(12, 4, 2)[torch.randperm(12, generator=hidden)])

    feed = Feed(nn.Identity(), Shuffled())
    feed.replay("test", lambda step: len(step.run()))
    with pytest.raises(ValueError, match="the same samples on every pass, but the first batch is another one than"):
        feed.replay("test", lambda step: len(step.run()))


def test_samples_bound_a_loader_that_never_ends():
    feed = Feed(nn.Identity(), DataLoader(Endless(), 4), samples=10)
    assert feed.replay("test", lambda step: len(step.run())).samples == 12
    assert check_batchnorm(nn.BatchNorm1d(2), DataLoader(Endless(), 4), samples=64).samples == 64


def test_a_loader_that_never_ends_without_a_bound_is_an_error_in_the_end(monkeypatch):
    monkeypatch.setattr(feed_module, "MOST_SAMPLES", 100)
    feed = Feed(nn.Identity(), DataLoader(Endless(), 8))
    with pytest.raises(
        ValueError, match="did not end after 104 samples and do not say how many there are; pass samples"
    ):
        feed.replay("test", lambda step: len(step.run()))
    long = Feed(nn.Identity(), DataLoader(TensorDataset(torch.zeros(200, 2)), 8))
    assert long.replay("test", lambda step: len(step.run())).samples == 200


class Writes(nn.Module):
    def __init__(self, when=lambda module: True):
        super().__init__()
        self.when = when

    def forward(self, x):
        return x.mul_(2) if self.when(self) else x * 2


def test_labels_are_found_beside_a_forward_fn_where_the_forward_does_not_say_what_they_are():
    class Wrapped(nn.Module):
        def forward(self, *args):
            return args[0]

    labels, found = torch.arange(4), []
    feed = Feed(Wrapped(), [(torch.ones(4, 3), labels)], forward_fn=lambda model, batch: model(batch[0]))
    feed.replay("test", lambda step: found.append(step.labels) or len(step.run()))
    assert torch.equal(found[0], labels)
    with pytest.raises(
        TypeError, match=r"the one of shape \(4,\) may be the input `args` of forward, or no input; give"
    ):
        Feed(Wrapped(), [(torch.ones(4, 3), labels)]).replay("test", lambda step: len(step.run()))


@pytest.mark.parametrize("with_forward_fn", [False, True])
def test_a_model_that_writes_into_its_input_leaves_the_batches_alone(with_forward_fn):
    batches = [torch.full((4, 2), float(number)) for number in range(3)]
    forward_fn = (lambda model, batch: model(batch)) if with_forward_fn else None
    model = Writes()
    feed = Feed(model, batches, forward_fn=forward_fn)
    for _ in range(2):
        outputs = []
        feed.replay("test", lambda step: [outputs.append(step.run()) for _ in range(3)] and 4)  # noqa: B023
        assert [float(output.mean()) for output in outputs] == [0, 0, 0, 2, 2, 2, 4, 4, 4]
    assert [float(batch.mean()) for batch in batches] == [0, 1, 2]
    assert float(model(batches[1]).mean()) == float(batches[1].mean()) == 2  # by itself it does write


def test_a_model_that_writes_in_one_state_only_is_noticed_too():
    batches = list(torch.ones(3, 4, 2))
    model = Writes(when=lambda module: module.training)
    feed = Feed(model, batches)

    def visit(step):
        model.eval()
        step.run()
        model.train()
        step.run()
        return 4

    feed.replay("test", visit)
    assert all(bool((batch == 1).all()) for batch in batches)


def test_batches_of_a_model_that_does_not_write_are_not_copied():
    seen = []
    batches = list(torch.ones(3, 4, 2))
    feed = Feed(nn.Identity(), batches)
    feed.replay("test", lambda step: seen.append(step.run()) or 4)
    assert [output is batch for output, batch in zip(seen, batches, strict=True)] == [False, True, True]


def test_lists_of_samples_are_counted_where_they_reach_the_model():
    class Stacks(nn.Module):
        def forward(self, samples):
            return torch.stack(samples)

    batch = [[torch.zeros(3, 2, 2) for _ in range(5)], torch.arange(5)]
    feed = Feed(Stacks(), [batch, batch])
    assert feed.replay("test", lambda step: len(step.run())).samples == 10


def test_a_batch_the_model_cannot_take_is_an_error_without_forward_fn():
    with pytest.raises(TypeError, match=r"a batch must be a tensor, .* got object"):
        Feed(nn.Identity(), [object()]).replay("test", lambda step: 1)


def test_samples_that_a_distributed_sampler_repeats_are_said():
    data = TensorDataset(torch.zeros(10, 2))

    def loader(**options):
        return DataLoader(data, 2, sampler=DistributedSampler(data, num_replicas=4, rank=0, **options))

    note = "The DistributedSampler repeats 2 of 10 samples to give all 4 processes as many, and they count twice; pass"
    assert padding_notes(loader())[0].startswith(note)
    assert padding_notes(loader(drop_last=True)) == []
    assert padding_notes(DataLoader(data, 2)) == padding_notes([torch.zeros(2, 2)]) == []
