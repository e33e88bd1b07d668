"""The fix: exact, all or nothing, and said what was done."""

import copy
import signal
import warnings

import pytest
import torch
from support.recalibrated import bits, by_hand, network, norms, samples, worst_difference
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from jumpout_export.batchnorm import recalibrate, solve
from jumpout_export.batchnorm.check import check_batchnorm
from jumpout_export.batchnorm.measure.feed import Feed
from jumpout_export.batchnorm.measure.layers import batchnorm_layers
from jumpout_export.batchnorm.recalibrate import recalibrate_batchnorm
from jumpout_export.batchnorm.solve import solve_exact, solve_near
from jumpout_export.model.randomness import same_bits
from jumpout_export.nn.modules import Jumpout


@pytest.mark.parametrize("training", [True, False], ids=["train mode", "eval mode"])
def test_exact_gives_the_statistics_computed_by_hand(training):
    model = network().train(training)
    expected = by_hand(model, samples())
    assert worst_difference(expected, model) > 0.5
    recalibrate_batchnorm(model, samples().split(32))
    assert worst_difference(expected, model) < 1e-6


@pytest.mark.integration
def test_after_exact_what_serving_sees_is_what_is_stored():
    model = network()
    batches = samples().split(32)
    assert check_batchnorm(model, batches, outputs=False).verdict == "drift"
    recalibrate_batchnorm(model, batches)
    report = check_batchnorm(model, batches, outputs=False)
    assert report.verdict == "ok"
    assert max(abs(value) for layer in report.layers for value in (*layer.delta, *layer.log_ratio)) < 1e-6


def test_exact_takes_one_pass_per_layer_and_no_more_when_settled():
    model = network()
    feed = Feed(model, samples().split(32))
    solution = solve_exact(feed, batchnorm_layers(model))
    assert solution.passes == 5
    for new in solution.corrected:
        new.put()
    assert solve_exact(feed, batchnorm_layers(model)).passes == 1


def test_layers_that_need_no_correction_cost_no_pass():
    model = network()
    batches = samples().split(32)
    recalibrate_batchnorm(model, batches)
    norms(model)[3].running_mean += 1
    assert solve_exact(Feed(model, batches), batchnorm_layers(model)).passes == 2


def test_a_bounded_solution_says_how_far_it_still_is():
    model = network()
    batches = samples().split(32)
    feed = Feed(model, batches)
    near = solve_near(feed, batchnorm_layers(model), 1e-5, 2)
    assert near.passes == 3
    assert 1e-5 < near.remaining < 0.1
    assert solve_near(feed, batchnorm_layers(model), 1e-5, 5).remaining == 0


@pytest.mark.integration
def test_shuffling_and_batch_size_change_nothing():
    model = network()
    start = bits(model)
    recalibrate_batchnorm(model, samples().split(32))
    expected = copy.deepcopy(model)
    for size in (1, 7, 96):
        model.load_state_dict(start)
        loader = DataLoader(TensorDataset(samples()), size, shuffle=True)
        recalibrate_batchnorm(model, loader)
        assert worst_difference(expected, model) < 1e-6


def test_it_is_idempotent_bitwise_and_needs_one_pass_to_see_that():
    model = network()
    recalibrate_batchnorm(model, samples().split(32))
    once = bits(model)
    again = recalibrate_batchnorm(model, samples().split(32))
    assert again.passes == 1
    assert same_bits(once, bits(model))


@pytest.mark.parametrize("method", ["exact", "batch", "variance"])
def test_only_the_statistics_change_and_undo_restores_them_bitwise(method):
    model = network().train()
    model[1].eval()  # frozen
    model[5].momentum = None
    model[5].bias.requires_grad_(False)
    before = bits(model)
    flags = [(m.training, getattr(m, "momentum", 0)) for m in model.modules()]
    grads = [p.requires_grad for p in model.parameters()]
    buffers = [id(b) for b in model.buffers()]
    rng = torch.get_rng_state()
    undo = recalibrate_batchnorm(model, samples().split(32), method)
    after = bits(model)
    changed = {name for name in before if not same_bits(before[name], after[name])}
    kinds = ("running_var",) if method == "variance" else ("running_mean", "running_var")
    assert changed == {f"{index}.{kind}" for index in (5, 9, 13, 17) for kind in kinds}
    assert flags == [(m.training, getattr(m, "momentum", 0)) for m in model.modules()]
    assert grads == [p.requires_grad for p in model.parameters()]
    assert buffers == [id(b) for b in model.buffers()]
    assert torch.equal(rng, torch.get_rng_state())
    undo()
    assert same_bits(before, bits(model))


@pytest.mark.parametrize("method", ["exact", "batch", "variance"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_in_batch_three_leaves_everything_bitwise(method, error):
    class Loader:
        passes = 0

        def __iter__(self):
            self.passes += 1
            for index, batch in enumerate(samples().split(16)):
                if index == 2 and (method != "exact" or self.passes == 3):
                    raise error("stop")
                yield batch

    model = network().train()
    before, rng = bits(model), torch.get_rng_state()
    with pytest.raises(error, match="stop"):
        recalibrate_batchnorm(model, Loader(), method)
    assert same_bits(before, bits(model))
    assert torch.equal(rng, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_an_interrupt_while_writing_restores_what_was_written(monkeypatch):
    model = network()
    before = bits(model)
    written = []

    class Interrupted(solve.Corrected):
        def put(self) -> None:
            super().put()
            written.append(self.layer.name)
            if len(written) == 2:
                signal.raise_signal(signal.SIGINT)

    def solved(*arguments: object) -> solve.Solution:
        found = solve.solve_exact(*arguments)
        return solve.Solution([Interrupted(new.layer, new.mean, new.var) for new in found.corrected], found.passes)

    monkeypatch.setattr(recalibrate, "solve_exact", solved)
    with pytest.raises(KeyboardInterrupt):
        recalibrate_batchnorm(model, samples().split(32))
    assert written == ["1", "5"]
    assert same_bits(before, bits(model))


def noise_off(model: nn.Module) -> nn.Module:
    """A copy in training mode, but for its dropout and jumpout."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout | Jumpout):
            module.eval()
    return model


def batch_statistics(
    model: nn.Module, batches: list[torch.Tensor]
) -> list[list[tuple[torch.Tensor, torch.Tensor, int]]]:
    """Per layer and batch: mean and unbiased variance as BatchNorm stores them at momentum 1, and their count."""
    model = noise_off(model)
    found: list[list[tuple[torch.Tensor, torch.Tensor, int]]] = [[] for _ in norms(model)]
    counts: dict[nn.Module, int] = {}
    for norm in norms(model):
        norm.momentum = 1.0
        norm.register_forward_pre_hook(lambda m, args: counts.update({m: args[0].numel() // args[0].shape[1]}))
    with torch.no_grad():
        for batch in batches:
            model(batch)
            for norm, rows in zip(norms(model), found, strict=True):
                rows.append((norm.running_mean.double(), norm.running_var.double(), counts[norm]))
    return found


def population(rows: list[tuple[torch.Tensor, torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """fvcore's precise BatchNorm: every batch by its size, the variance of all values, biased."""
    total = sum(n for _, _, n in rows)
    mean = sum(m * n for m, _, n in rows) / total
    return mean, sum((m.square() + v * (n - 1) / n) * n for m, v, n in rows) / total - mean.square()


def test_batch_is_the_recipe_of_fvcore_but_for_the_unbiased_variance():
    model = network()
    batches = list(samples().split(32))
    rows = batch_statistics(model, batches)
    recalibrate_batchnorm(model, batches, "batch")
    for norm, of_layer in zip(norms(model), rows, strict=True):
        mean, var = population(of_layer)
        n = 96 * 36
        torch.testing.assert_close(norm.running_mean.double(), mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm.running_var.double(), var * n / (n - 1), rtol=1e-5, atol=0)
    assert worst_difference(by_hand(model, samples()), model) > 1e-3  # which is not what serving sees


def test_batch_is_the_recipe_of_aimet_but_for_the_variance_between_batches():
    model = network()
    batches = list(samples().split(32))
    rows = batch_statistics(model, batches)
    recalibrate_batchnorm(model, batches, "batch")
    for norm, of_layer in zip(norms(model), rows, strict=True):
        means, variances = (torch.stack(values) for values in list(zip(*of_layer, strict=True))[:2])
        torch.testing.assert_close(norm.running_mean.double(), means.mean(0), rtol=1e-5, atol=1e-5)
        # AIMET averages the batches' variances; the law of total variance adds that of their means.
        of_one = 32 * 36
        whole = variances.mean(0) * (of_one - 1) / of_one + means.var(0, correction=0)
        n = 3 * of_one
        torch.testing.assert_close(norm.running_var.double(), whole * n / (n - 1), rtol=1e-5, atol=0)


def test_batch_gives_what_fvcore_itself_gives():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore scripts its losses, which torch deprecates
        precise_bn = pytest.importorskip("fvcore.nn.precise_bn")
    model = network()
    batches = list(samples(100).split(32))  # the last one is smaller
    other = noise_off(model)
    precise_bn.update_bn_stats(other, batches, len(batches))
    recalibrate_batchnorm(model, batches, "batch")
    for norm, theirs in zip(norms(model), norms(other), strict=True):
        n = 100 * 36
        torch.testing.assert_close(norm.running_mean, theirs.running_mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(norm.running_var, theirs.running_var * n / (n - 1), rtol=1e-5, atol=1e-6)


def test_variance_is_the_variance_of_batch_with_the_old_mean():
    model, other = network(), network()
    recalibrate_batchnorm(model, samples().split(32), "variance")
    recalibrate_batchnorm(other, samples().split(32), "batch")
    for one, two, old in zip(norms(model), norms(other), norms(network()), strict=True):
        assert torch.equal(one.running_var, two.running_var)
        assert torch.equal(one.running_mean, old.running_mean)


def test_parallel_branches_and_unequal_batches_are_exact_too():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
            self.top = nn.BatchNorm1d(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.top(torch.cat([self.right(x.square()), self.left(x)], 1).relu())

    torch.manual_seed(0)
    model, x = Branches(), torch.randn(50, 4) + 1
    recalibrate_batchnorm(model, x.split(7))
    x = x.double()
    left = (x - x.mean(0)) / (x.var(0) + 1e-5).sqrt()
    right = (x.square() - x.square().mean(0)) / (x.square().var(0) + 1e-5).sqrt()
    top = torch.cat([right, left], 1).relu()
    torch.testing.assert_close(model.top.running_mean.double(), top.mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.top.running_var.double(), top.var(0), rtol=1e-6, atol=1e-6)


class Recurrent(nn.Module):
    """One BatchNorm that is fed its own output."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(3)
        self.gain = gain

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.bn(x + self.gain * self.bn(x))


def test_a_layer_that_feeds_on_itself_is_iterated_to_its_fixed_point():
    torch.manual_seed(0)
    model, x = Recurrent(0.2), torch.randn(64, 3) + 2
    recalibrate_batchnorm(model, [x])
    seen = torch.cat([x, x + 0.2 * model.eval().bn(x)]).double()
    torch.testing.assert_close(model.bn.running_mean.double(), seen.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.bn.running_var.double(), seen.var(0), rtol=1e-5, atol=1e-5)


def test_a_layer_that_does_not_settle_is_an_error():
    torch.manual_seed(0)
    model = Recurrent(4.0)
    before = bits(model)
    with pytest.raises(ValueError, match=r"`bn` is called several times.*still move by W = .*use method='batch'"):
        recalibrate_batchnorm(model, [torch.randn(64, 3) + 2])
    assert same_bits(before, bits(model))


def test_forward_fn_dict_batches_and_a_sample_limit():
    torch.manual_seed(0)
    x = torch.randn(60, 3)
    model = nn.Sequential(nn.BatchNorm1d(3))
    batches = [{"image": part, "label": torch.zeros(10, dtype=torch.int64)} for part in x.split(10)]
    recalibrate_batchnorm(model, batches, samples=25, forward_fn=lambda m, batch: m(2 * batch["image"]))
    torch.testing.assert_close(model[0].running_mean, 2 * x[:30].mean(0))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"method": "fast"}, "method must be one of 'exact', 'batch', 'variance', got 'fast'"),
        ({"layers": ["1", "nope"]}, "got 'nope'; allowed are '1', '5', '9', '13', '17'"),
        ({"layers": []}, "layers must name at least one BatchNorm layer, got none"),
        ({"layers": "1"}, r"got the string '1'; pass layers=\['1'\]"),
        ({"samples": 0}, "samples must be at least 1"),
    ],
    ids=["method", "unknown layer", "no layer", "string", "samples"],
)
def test_wrong_arguments_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        recalibrate_batchnorm(network(), samples().split(32), **arguments)


def test_models_with_nothing_to_recalibrate_are_refused():
    x = [torch.randn(4, 3)]
    with pytest.raises(ValueError, match="Linear has no BatchNorm layer, so there is nothing to check"):
        recalibrate_batchnorm(nn.Linear(3, 3), x)
    untracked = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ValueError, match="all are frozen or store no running statistics"):
        recalibrate_batchnorm(untracked, x)
    with pytest.raises(ValueError, match="`0` has no running statistics; pass `track_running_stats=True`"):
        recalibrate_batchnorm(untracked, x, layers=["0"])
    lazy = nn.Sequential(nn.LazyBatchNorm1d())
    with pytest.raises(ValueError, match="`0` is not initialised yet; run one forward pass of the model first"):
        recalibrate_batchnorm(lazy, x)


def test_progress_names_the_pass():
    calls = []
    recalibrate_batchnorm(network(2), samples().split(48), progress=lambda *args: calls.append(args))
    assert calls == [
        ("recalibrating BatchNorm, pass 1 of at most 3", 48, 96),
        ("recalibrating BatchNorm, pass 1 of at most 3", 96, 96),
        ("recalibrating BatchNorm, pass 2 of about 2", 48, 96),
        ("recalibrating BatchNorm, pass 2 of about 2", 96, 96),
        ("looking again", 48, 96),
        ("looking again", 96, 96),
    ]


def test_what_is_returned_says_what_was_done_and_undoes_it():
    model = network()
    before = bits(model)
    batches = [(part, torch.zeros(len(part), dtype=torch.int64)) for part in samples().split(32)]
    done = recalibrate_batchnorm(model, batches, layers=["5", "9"], outputs=True)
    assert done.layers == ["5", "9"]
    assert done.passes == 3
    assert done.outputs.samples == 96
    assert done.outputs.logit_shift > 0
    done.undo()
    assert same_bits(before, bits(model))
    assert recalibrate_batchnorm(model, batches, "variance").outputs is None


@pytest.mark.parametrize("method", ["exact", "batch", "variance"])
def test_the_effect_on_the_outputs_is_that_of_the_method(method):
    model = network()
    with torch.no_grad():
        deployed = copy.deepcopy(model).eval()(samples()).double()
    done = recalibrate_batchnorm(model, samples().split(32), method, outputs=True)
    with torch.no_grad():
        recalibrated = model.eval()(samples()).double()
    shift = (recalibrated - deployed).square().mean().sqrt() / deployed.std(correction=0)
    assert done.outputs.logit_shift == pytest.approx(float(shift), rel=1e-4)
