"""Which batches are accepted, and that every pass sees the same."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from jumpout_export.batchnorm.feed import Feed


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
    feed = Feed(nn.Identity(), torch.zeros(10, 4, 2).unbind(), images=9)
    seen = feed.replay("test", lambda step: len(step.run()))
    assert (seen.images, seen.batches) == (12, 3)


def test_progress_counts_images_and_ends_at_the_total():
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
    assert feed.replay("test", lambda step: len(step.run())).images == 10


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
    with pytest.raises(ValueError, match="the same images on every pass, got 4 images and then 0"):
        feed.replay("test", lambda step: len(step.run()))


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="images must be at least 1, got 0"):
        Feed(nn.Identity(), [torch.zeros(2, 2)], images=0)


def test_batches_go_to_the_device_asked_for():
    feed = Feed(nn.Identity(), [torch.zeros(2, 2)], device="meta")
    devices = []
    feed.replay("test", lambda step: devices.append(step.run().device.type) or 2)
    assert devices == ["meta"]
