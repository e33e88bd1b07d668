"""What the code of a network's classes does with its dropout layers, where there is no example to run it on."""

from __future__ import annotations

import dis
import functools
import inspect
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, NamedTuple, TypeGuard

from torch import nn

_GROUPS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)  # their layers are reached by an index


class Noise(NamedTuple):
    """A call that draws random numbers: module path, operator or function, and where it is called."""

    path: str
    name: str
    place: str


def uses_in_code(model: nn.Module) -> tuple[dict[nn.Module, str], list[Noise]]:
    """Returns each nn.Dropout whose `p` a method reads, with that method, and the calls of torch's dropout functions.

    Read from the code of the model's classes, and of the functions of the user's that their methods name; torch's own
    are left out. `self.attention.drop.p` is found, and `drop.p` where `self.drop` is in the same method; what is read
    in other ways an example shows.
    """
    read: dict[nn.Module, str] = {}
    noise: list[Noise] = []
    loads = functools.cache(lambda code: tuple(_chains(code)))  # many modules are of one class
    for path, module in model.named_modules():
        for method in _methods(type(module)):
            chains, place = [*loads(method.__code__)], f"by {method.__qualname__}"
            own = method.__code__.co_varnames[:1]  # what the method calls `self`
            helpers = [method.__globals__.get(chain[0]) for chain, _ in chains if len(chain) == 1]
            given = {chain[-1] for chain, called in chains if not called}
            chains += [one for helper in filter(_is_users, helpers) for one in loads(inspect.unwrap(helper).__code__)]
            for chain, _ in chains:
                if chain[-1] == "p" and len(chain) > 1:
                    read |= dict.fromkeys(_layers(module, chain[:-1], own, given), place)
                elif "dropout" in chain[-1] and _is_noise(functools.reduce(_attribute, chain, method.__globals__)):
                    noise.append(Noise(path, chain[-1], place))
    return read, list(dict.fromkeys(noise))


def _methods(cls: type) -> Iterator[FunctionType]:
    """The functions of a class that are not torch's, without decorators and what is overridden and not called."""
    overridden: set[str] = set()
    for base in cls.__mro__:
        own = {name: inspect.unwrap(value) for name, value in vars(base).items() if isinstance(value, FunctionType)}
        new = {name: value for name, value in own.items() if name not in overridden}
        yield from filter(_is_users, new.values())
        overridden |= {name for name, value in new.items() if "__class__" not in value.__code__.co_freevars}  # super()


def _is_users(function: Any) -> TypeGuard[FunctionType]:
    return isinstance(function, FunctionType) and str(function.__module__).split(".")[0] not in (
        "torch",
        "jumpout_export",
    )


def _is_noise(function: Any) -> bool:
    return callable(function) and str(getattr(function, "__module__", None)).split(".")[0] in ("torch", "None")


def _chains(code: CodeType) -> Iterator[tuple[tuple[str, ...], bool]]:
    """What a function loads, such as ("self", "drop", "p") and what that begins with, and whether to call it.

    A variable stands for what was assigned to it; "" is what has no name.
    """
    chain: tuple[str, ...] = ("",)
    variables: dict[str, tuple[str, ...]] = {}
    for instruction in dis.get_instructions(code):
        name = instruction.argval
        if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain = (*chain, name)
            # Up to Python 3.11 a call has an operation of its own, then a flag of the same one.
            yield (
                chain,
                instruction.opname == "LOAD_METHOD" or (sys.version_info >= (3, 12) and bool(instruction.arg & 1)),
            )
        elif instruction.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_GLOBAL")):
            name = name[-1] if isinstance(name, tuple) else name
            chain = variables.get(name, (name,))
            yield chain, False
        elif instruction.opname.startswith("STORE_FAST"):
            first, *then = name if isinstance(name, tuple) else (name,)  # Python 3.13 puts two into one
            variables[first], chain = chain, tuple(then) if instruction.opname.endswith("LOAD_FAST") else ("",)
        else:
            chain = ("",)
            if name == "p" and "getattr" in code.co_names:  # getattr(drop, "p")
                yield (*chain, "p"), False
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _chains(inner)


def _attribute(of: Any, name: str) -> Any:
    return of.get(name) if isinstance(of, dict) else getattr(of, name, None)


def _layers(module: nn.Module, chain: tuple[str, ...], own: tuple[str, ...], given: set[str]) -> Iterator[nn.Module]:
    """The nn.Dropout that a chain of attributes may mean; of what is not known, each that the method gives away."""
    root, *rest = chain
    layers: list[Any]
    if root in own:
        layers = [functools.reduce(_attribute, rest, module)]
    elif rest:
        layers = [layer for path, layer in module.named_modules() if f".{path}".endswith(f".{'.'.join(rest)}")]
    else:
        layers = [layer for name, layer in module.named_children() if name in given]
        layers += [layer for group in layers if isinstance(group, _GROUPS) for layer in group.children()]
    yield from (layer for layer in layers if type(layer) is nn.Dropout)
