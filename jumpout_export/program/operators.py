"""Which operators a program from a file may name: those that compute tensors from tensors and numbers, and no others.

Everything that is registered in the process can be looked up below `torch.ops`: `aten::from_file` maps a file,
`aten::save` writes one, and so may what any imported package has registered. So an operator is taken by what it is, not
for want of a known danger: by its namespace, and by a schema whose arguments cannot lead out of the program.
"""

from __future__ import annotations

import re
from functools import cache

import torch

NAMESPACES = ("aten", "prims", "jumpout")
_OPERATOR = re.compile(r"torch\.ops\.(?P<namespace>\w+)\.(?P<name>\w+)(?:\.(?P<overload>\w+))?")
# What torch.export makes of control flow, checkpoints, autocast and operators that change their arguments. Not here:
# those that call a compiled library, a kernel given as text, a script object, or that print.
_HIGHER_ORDER = re.compile(
    r"_export_tracepoint|associative_scan|auto_functionalized|auto_functionalized_v2|cond|flex_attention|foreach_map"
    r"|hints_wrapper|invoke_subgraph|map_impl|out_dtype|scan|strict_mode|tag_activation_checkpoint|while_loop"
    r"|while_loop_stack_output|with_effects|wrap|wrap_activation_checkpoint|wrap_with_autocast"
    r"|wrap_with_set_grad_enabled"
)
# Arithmetic on sizes, as torch.export writes it.
_ON_SIZES = re.compile(
    r"_operator\.(?:eq|ne|le|ge|lt|gt|neg|pos|mul|add|sub|floordiv|mod|pow|truediv|and_|or_|lshift|rshift)"
    r"|math\.(?:trunc|ceil|floor)|torch\.sym_(?:not|int|float|ite|max|min|sum|sqrt)"
)
# Types of arguments, with what stands around them (`Optional[List[int]]`) taken off.
_VALUES = frozenset({"Tensor", "int", "float", "bool", "number", "complex", "Device", "Generator"})
_AROUND = re.compile(r"(?:Optional|List)\[(.*)\]")
# Arguments that are text and choose between ways to compute; any other text might name a file.
_CHOICES = re.compile(
    r"UPLO|activation|approximate|assert_msg|driver|equation|indexing|interpolation|mode|norm|normalize|ord|p|pad_mode"
    r"|padding|padding_side|reduce|rounding_mode|side|truncation"
)


@cache
def is_allowed(target: str) -> bool:
    """Returns whether a program may call what `target` names, for example `torch.ops.aten.add.Tensor`."""
    if _ON_SIZES.fullmatch(target):
        return True
    found = _OPERATOR.fullmatch(target)
    if not found:
        return False
    if found["namespace"] == "higher_order":
        return bool(_HIGHER_ORDER.fullmatch(found["name"])) and not found["overload"]
    return found["namespace"] in NAMESPACES and _computes(found["namespace"], found["name"], found["overload"] or "")


def _computes(namespace: str, name: str, overload: str) -> bool:
    """Whether it is one of torch's dispatched operators, all of whose arguments are values or choices.

    What is registered for TorchScript alone, such as `aten::save`, works on anything and is not dispatched.
    """
    full, overload = f"{namespace}::{name}", "" if overload == "default" else overload
    if (f"{full}.{overload}" if overload else full) not in _dispatched():
        return False
    schema = getattr(getattr(getattr(torch.ops, namespace), name), overload or "default")._schema
    return all(_is_value(str(argument.type), argument.name) for argument in schema.arguments)


def _is_value(kind: str, name: str) -> bool:
    while inner := _AROUND.fullmatch(kind):
        kind = inner[1]
    return kind in _VALUES or (kind == "str" and bool(_CHOICES.fullmatch(name)))


@cache
def _dispatched() -> frozenset[str]:
    return frozenset(torch._C._dispatch_get_all_op_names())
