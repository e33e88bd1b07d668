"""The eager shortcut around torch's dispatcher, which must not change what any tensor or mode gets to see."""

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from jumpout_export import jumpout, ops


def test_forward_mode_gives_the_same_derivative_as_backward():
    x, tangent, seed = torch.randn(129), torch.randn(129), torch.tensor(5)
    mask_and_scale = torch.func.grad(lambda x: jumpout(x, seed=seed).sum())(x)
    y, from_func = torch.func.jvp(lambda x: jumpout(x, seed=seed), (x,), (tangent,))
    assert torch.equal(y, jumpout(x, seed=seed))
    torch.testing.assert_close(from_func, tangent * mask_and_scale)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(jumpout(forward_ad.make_dual(x, tangent), seed=seed))
    torch.testing.assert_close(dual.tangent, tangent * mask_and_scale)


def test_the_shortcut_around_the_dispatcher_is_taken_by_plain_tensors_only():
    x = torch.randn(16)
    assert ops._is_plain(x)
    assert ops._is_plain(torch.nn.Parameter(x))
    with torch.inference_mode():
        made_in_inference = torch.randn(16)
    others = {
        "negated view": torch._neg_view(x),
        "zero tensor": torch._efficientzerotensor(16),
        "sparse": x.to_sparse(),
        "meta": x.to("meta"),
        "fake": FakeTensorMode().from_tensor(x),
        "subclass": TwoTensor(x, x),
        "inference": made_in_inference,
    }
    assert not [name for name, tensor in others.items() if ops._is_plain(tensor)]
    with FlopCounterMode(display=False):
        assert not ops._is_plain(x)


def test_a_mode_sees_the_ops_and_a_negated_view_keeps_its_sign():
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    seen: list[str] = []
    x, seed = torch.randn(64, requires_grad=True), torch.tensor(1)
    with Names():
        torch.autograd.grad(jumpout(x, seed=seed), x, torch.ones(64))
    assert {"jumpout.forward.default", "jumpout.backward.default"} <= set(seen)
    assert torch.equal(jumpout(torch._neg_view(x.detach()), seed=seed), jumpout(-x.detach(), seed=seed))


def test_a_zero_tensor_as_gradient_gives_zeros():
    x = torch.randn(64, requires_grad=True)
    (dx,) = torch.autograd.grad(jumpout(x), x, torch._efficientzerotensor(64))
    assert torch.equal(dx, torch.zeros(64))
