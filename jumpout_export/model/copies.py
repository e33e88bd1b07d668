"""A copy of a user's model that shares nothing with it, however its classes copy themselves, and is equal to it."""

from __future__ import annotations

import copy
import copyreg
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from jumpout_export.errors import NotFoldableError
from jumpout_export.model.held import GROUPS, changes, comparable, held_modules, held_tensors, snapshot
from jumpout_export.model.randomness import same_bits
from jumpout_export.model.wrappers import call_networks
from jumpout_export.text import first_line, joined

# What `copy.deepcopy` asks a class for. Those of torch, and of this package, copy everything.
_PROTOCOL = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__", "__getnewargs_ex__")
_TRUSTED = ("torch", "jumpout_export")
# What was hidden behind a part that is shared shows once that part is copied.
_ROUNDS = 8


def eval_copy(model: nn.Module) -> nn.Module:
    """Returns a copy in eval mode that shares no module, parameter or buffer with the model and has the same values.

    `copy.deepcopy` asks a class how it copies itself, and some share what is large or frozen. What is shared is copied
    attribute by attribute instead, and so is all of the copy when it is copied again. A tensor that is held with its
    gradient graph, such as the features of the last call, is copied without it.

    Raises:
        TypeError: if the model cannot be copied.
        NotFoldableError: of check `copy`, if the copy is another network: the proof would be about that one.
    """
    try:
        with torch.no_grad():  # what `__getstate__` computes would hold a gradient graph, and could not be copied
            copied = _apart(model)
        return call_networks(copied.eval())
    except NotFoldableError:
        raise
    except Exception as error:  # a user's class may raise anything
        raise TypeError(
            f"the model cannot be copied, and the export never changes yours: copy.deepcopy raised "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error


def unlike_attributes(model: nn.Module, copied: nn.Module) -> list[str]:
    """Returns the names of plain attributes and hooks that differ between a model and its `eval_copy`.

    They need not matter: a class may leave a cache or a logger out of its copies.
    """
    if not any(True for _ in _copying_themselves(model)):
        return []
    before, after = snapshot(model), snapshot(copied)
    ours = ("training", "__deepcopy__")
    return [name for name in changes(before, after) if name.strip("`").rpartition(".")[2] not in ours]


def _apart(model: nn.Module) -> nn.Module:
    """A copy whose tree has nothing of the model's; what a function refers to stays the model's, as ever."""
    plainly: dict[int, Any] = {}
    # Without one of these nothing of a copy can be another.
    careful = bool(_kinds(model))
    for _ in range(_ROUNDS):
        memo: dict[int, Any] = {
            id(tensor): tensor.detach().clone() for _, tensor in held_tensors(held_modules(model)) if not tensor.is_leaf
        }
        _copy_plainly(plainly.values(), memo)
        copied: nn.Module = copy.deepcopy(model, memo)
        shared = _shared(model, copied)
        if careful and not shared:
            _require_equal(model, copied)
            shared = _shared(copied, _copy_again(copied))  # nor may two copies share what the model does not hold
        blamed = {id(one): one for path in shared for one in _responsible(model, path)}
        if not blamed.keys() - plainly.keys():
            break
        plainly |= blamed
    if inside := [f"`{path}`" for path in shared if path in dict(copied.named_modules())]:
        raise TypeError(f"{joined(inside)} of the copy is the model's own")
    return copied


def _copy_again(copied: nn.Module) -> nn.Module:
    """A copy of a copy, from now on made attribute by attribute: a class may make what it was before it was changed."""
    asked = list(_copying_themselves(copied))
    for module in asked:
        module.__dict__["__deepcopy__"] = _Plainly(module)
    try:
        return copy.deepcopy(copied)
    except Exception:  # it holds something that cannot be copied, which the class leaves out
        for module in asked:
            del module.__dict__["__deepcopy__"]
        return copy.deepcopy(copied)


def _shared(model: nn.Module, copied: nn.Module) -> list[str]:
    """The modules of a copy that are, or hold, what is the model's own, by their paths."""
    own = {key for module in held_modules(model).values() for key in _identities(module)}
    return [path for path, module in held_modules(copied).items() if own.intersection(_identities(module))]


def _identities(module: nn.Module) -> Iterator[tuple[str, int]]:
    """What a module is and holds directly, by where it lies in memory."""
    yield "object", id(module)
    for name in ("", *GROUPS):
        container = vars(module).get(name) if name else vars(module)
        if isinstance(container, dict):
            yield "object", id(container)
    for tensor in _own_tensors(module):
        if tensor.numel() and comparable(tensor):
            yield "storage", tensor.untyped_storage().data_ptr()


def _own_tensors(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


def _responsible(model: nn.Module, path: str) -> Iterator[Any]:
    """What made this module of a copy share: the class around it that copies itself, those in it, its tensors."""
    modules = held_modules(model)
    tree = dict(model.named_modules())
    while path not in modules:  # a copy that is made in another way
        path = path.rpartition(".")[0]
    yield from _copying_themselves(modules[path])
    yield from (tensor for tensor in _own_tensors(modules[path]) if _copies_itself(tensor))
    outer = path
    while outer and path in tree:
        outer = outer.rpartition(".")[0]
        if _copies_itself(tree[outer]):
            yield tree[outer]


def _copying_themselves(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of a model whose classes say how they are copied."""
    return (module for module in held_modules(model).values() if _copies_itself(module))


def _kinds(model: nn.Module) -> list[str]:
    """The names of the classes in a model, of tensors too, that say how they are copied."""
    things = (*held_modules(model).values(), *model.parameters(), *model.buffers())
    return list(dict.fromkeys(type(thing).__name__ for thing in things if _copies_itself(thing)))


def _copies_itself(thing: Any) -> bool:
    if type(thing) in copyreg.dispatch_table:
        return True
    places = [str(getattr(getattr(thing, name, None), "__module__", None) or "torch") for name in _PROTOCOL]
    return any(place.split(".")[0] not in _TRUSTED for place in places)


def _copy_plainly(things: Iterable[Any], memo: dict[int, Any]) -> None:
    """Puts copies of modules and tensors into a memo, made attribute by attribute, whatever their classes say."""
    pairs = [(thing, _blank(thing)) for thing in things]
    memo |= {id(thing): new for thing, new in pairs}
    for thing, new in pairs:
        for name, value in vars(thing).items():
            if name != "__deepcopy__":
                new.__dict__[name] = copy.deepcopy(value, memo)
        new.__dict__["__deepcopy__"] = _Plainly(new)


def _blank(thing: Any) -> Any:
    if isinstance(thing, Tensor):
        return torch.Tensor._make_subclass(type(thing), thing.detach().clone(), thing.requires_grad)
    return object.__new__(type(thing))


class _Plainly:
    """Stands for the `__deepcopy__` of one module or tensor, so that its copies are copied as it was."""

    def __init__(self, thing: Any) -> None:
        self._thing = thing

    def __call__(self, memo: dict[int, Any]) -> Any:
        _copy_plainly([self._thing], memo)
        return memo[id(self._thing)]


def _require_equal(model: nn.Module, copied: nn.Module) -> None:
    problems = list(_differences(model, copied))
    if not problems:
        return
    raise NotFoldableError(
        f"a copy of the model is another network than the model, and it is what would be exported: {joined(problems)}; "
        f"see to it that a copy keeps everything (__deepcopy__, __getstate__ and the like of {joined(_kinds(model))})",
        check="copy",
    )


def _differences(model: nn.Module, copied: nn.Module) -> Iterator[str]:
    """What a copy has that the model has not, and the other way round, in words."""
    one, two = (dict(each.named_modules(remove_duplicate=False)) for each in (model, copied))
    yield from (f"it has no `{path}`" for path in one if path not in two)
    yield from (f"it has `{path}`, which yours has not" for path in two if path not in one)
    for path in one:
        mine, other = (type(each.get(path)) for each in (one, two))
        # By name: every fx.GraphModule has a class of its own.
        if path in two and (mine.__module__, mine.__qualname__) != (other.__module__, other.__qualname__):
            yield f"{f'`{path}`' if path else 'the model itself'} is a {other.__name__}, in yours a {mine.__name__}"
    before, after = _state(model), _state(copied)
    yield from (f"it has no `{name}`" for name in before if name not in after)
    yield from (f"it has `{name}`, which yours has not" for name in after if name not in before)
    for name in before:
        if name in after and (problem := _difference(before[name], after[name])):
            yield f"`{name}` {problem}"


def _difference(one: Tensor, two: Tensor) -> str:
    if not (comparable(one) and comparable(two)):
        return ""
    if one.dtype != two.dtype or one.shape != two.shape:
        kinds = [f"{str(each.dtype).removeprefix('torch.')}{list(each.shape)}" for each in (two, one)]
        return f"is {kinds[0]}, in yours {kinds[1]}"
    return "" if same_bits(one, two.to(one.device)) else "has other values"


def _state(model: nn.Module) -> dict[str, Tensor]:
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}


def as_safetensors(model: nn.Module) -> bytes:
    """Returns the state dict in the format of safetensors, which holds tensors and nothing else."""
    from safetensors.torch import save

    # Copies, because safetensors refuses tensors that share memory, as tied weights do.
    return save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()})
