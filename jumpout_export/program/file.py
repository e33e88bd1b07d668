"""Reads an exported program (`.pt2`) without running what the file says.

`torch.export.load` is not made for files from others. It unpickles weights and constants that the file marks as
pickled, falls back from `weights_only=True` to a full unpickling of the sample inputs, evaluates the file's shape
expressions as Python (sympify), turns its names into the source of a forward, looks up whatever a node names below
`torch` (`torch.os.system` is there), and opens compiled libraries. So the archive is read first, by torch's own reader,
and everything that could become code is refused.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader

from jumpout_export.errors import LoadError
from jumpout_export.program.operators import NAMESPACES, is_allowed
from jumpout_export.text import first_line

_ENTRIES = re.compile(
    r"archive_format|archive_version|byteorder|\.data/\w+|models/model\.json|extra/.*|data/sample_inputs/model\.pt"
    r"|data/weights/(?:weight_\d+|model_weights_config\.json)|data/constants/(?:tensor_\d+|model_constants_config\.json)"
)
_MODEL = "models/model.json"
_SAMPLE = "data/sample_inputs/model.pt"
_PAYLOADS = (
    ("data/weights/", "data/weights/model_weights_config.json"),
    ("data/constants/", "data/constants/model_constants_config.json"),
)
# Names become Python source.
_NAME = re.compile(r"[\w.\-+: ]*")
# Where a name is looked up: what a node calls, and an operator that is an argument of another.
_CALLS = ("target", "as_operator")
# What a node says about where it comes from, and text that is data: neither is looked up nor becomes source.
_FREE = frozenset({"metadata", "as_string", "as_strings", "guards_code", "torch_version"})
_SPECS = ("in_spec", "out_spec")
_CONTAINERS = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
_MOST_EXPRESSION = 2000
_SHAPE_MATH = (
    ast.Expression | ast.Call | ast.Name | ast.Constant | ast.keyword | ast.Load | ast.BinOp | ast.UnaryOp
    | ast.Add | ast.Sub | ast.Mult | ast.Div | ast.FloorDiv | ast.Mod | ast.USub | ast.Compare
    | ast.Lt | ast.LtE | ast.Gt | ast.GtE | ast.Eq | ast.NotEq
)  # fmt: skip
# What torch writes there (sympy's srepr): classes of numbers, symbols and operations on them.
_SHAPE_NAMES = re.compile(
    r"Symbol|Integer|Float|Rational|Mul|Add|Pow|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|CeilToInt|FloorToInt|ToFloat"
    r"|ModularIndexing|Max|Min|Abs|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality|LessThan|StrictLessThan|GreaterThan"
    r"|StrictGreaterThan|And|Or|Not|Where|TruncToInt|TruncToFloat|RoundToInt|IntTrueDiv|FloatTrueDiv|true|false|oo"
    r"|[suz]\d+|[su]\w*\d"
)


def load_program(path: Path) -> ExportedProgram:
    """Returns the program in a file that `torch.export.save` wrote; runs nothing that the file says.

    Raises:
        LoadError: if there is no such file, it is no such program, or torch would run code from it.
    """
    if not path.is_file():
        raise LoadError(f"MODEL {path}: {'is not a file' if path.exists() else 'there is no such file'}")
    _refuse_odd_archive(path)
    try:
        reader = PT2ArchiveReader(str(path))
        names = list(reader.get_file_names())
        _refuse_entries(path, names)
        _refuse_pickles(path, reader, names)
        model = json.loads(reader.read_bytes(_MODEL))
    except LoadError:
        raise
    except Exception as error:  # torch's reader raises RuntimeError for most, json its own
        raise LoadError(f"MODEL {path}: not a readable exported program ({first_line(error)})") from error
    _refuse_code(path, model)
    # torch logs a traceback and goes on to guess; the error below says it in one line.
    logger, warned = logging.getLogger("torch.export"), io.StringIO()
    handler = logging.StreamHandler(warned)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.load(str(path))
    except Exception as error:  # a graph that is not one raises anything
        said = warned.getvalue().strip().splitlines()
        reason = said[-1] if said else first_line(error)
        raise LoadError(
            f"MODEL {path}: torch {torch.__version__} cannot load the exported program ({reason})"
        ) from error
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


def _refuse_odd_archive(path: Path) -> None:
    """Torch writes every entry uncompressed, so nothing in the file can be larger than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise LoadError(f"MODEL {path}: not an exported program ({first_line(error)})") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise LoadError(f"MODEL {path}: not an exported program (it is compressed, torch.export.save does not do that)")
    size, most = sum(entry.file_size for entry in entries), path.stat().st_size
    if size > most:
        raise LoadError(f"MODEL {path}: not an exported program (its entries hold {size} bytes, the file has {most})")


def _refuse_entries(path: Path, names: list[str]) -> None:
    missing = [name for name in (_MODEL, _SAMPLE, *(config for _, config in _PAYLOADS)) if name not in names]
    if missing:
        raise LoadError(
            f"MODEL {path}: not an exported program (it has no {', '.join(missing)}); write it with "
            f"torch.export.save of torch {torch.__version__}"
        )
    if len(set(names)) < len(names):
        raise LoadError(f"MODEL {path}: holds two entries of one name")
    other = [name for name in names if not _ENTRIES.fullmatch(name)]
    if other:
        raise LoadError(
            f"MODEL {path}: holds {', '.join(map(repr, other[:3]))}, which is no part of one program's graph and "
            "tensors; compiled libraries and custom objects are not opened"
        )


def _refuse_pickles(path: Path, reader: PT2ArchiveReader, names: list[str]) -> None:
    """Unpickles what torch would unpickle, as tensors only: what that takes is safe for torch to take."""
    pickled = [_SAMPLE]
    for folder, config in _PAYLOADS:
        for name, payload in json.loads(reader.read_bytes(config))["config"].items():
            entry = f"{folder}{payload['path_name']}"
            if entry not in names or not _NAME.fullmatch(name):
                raise LoadError(f"MODEL {path}: tensor {name!r} is said to be in {entry!r}, which is not there")
            if payload["use_pickle"]:
                pickled.append(entry)
    for entry in pickled:
        data = reader.read_bytes(entry)
        try:
            if data:
                torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:
            # Not torch's own text, which advises to unpickle the file.
            raise LoadError(
                f"MODEL {path}: {entry} holds more than tensors, and unpickling it would run code from the file "
                f"({type(error).__name__})"
            ) from error


def _refuse_code(path: Path, model: Any) -> None:
    try:
        texts = list(_strings(model))
    except RecursionError as error:
        raise LoadError(f"MODEL {path}: not a readable exported program (it is nested too deeply)") from error
    for key, text in texts:
        if key in _CALLS:
            bad = not is_allowed(text)
        elif key == "expr_str":
            bad = not _is_shape(text)
        elif key in _SPECS:
            bad = not _is_spec(text)
        elif key == "forward_arg_names":
            bad = not text.isidentifier()
        else:
            bad = not _NAME.fullmatch(text)
        if bad and text.startswith("torch.ops."):
            raise LoadError(
                f"MODEL {path}: {key} {text[:80]!r} could run as code, or reach files: a program from a file may call "
                f"what computes tensors in {', '.join(NAMESPACES)} only; if you trust it, load it with "
                "torch.export.load and give it to export_onnx or verify_onnx"
            )
        if bad:
            raise LoadError(f"MODEL {path}: {key} {text[:80]!r} is nothing torch.export writes; it could run as code")


def _strings(value: Any, key: str = "name") -> Iterator[tuple[str, str]]:
    """All texts with the key they stand under, the names of entries among them; not those that stay text."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for entry in value:
            yield from _strings(entry, key)
    elif isinstance(value, dict):
        for name, entry in value.items():
            yield "name", name
            if name not in _FREE:
                yield from _strings(entry, name)


def _is_shape(text: str) -> bool:
    """Whether a shape expression holds numbers, symbols and arithmetic only, without powers that never end."""
    if len(text) > _MOST_EXPRESSION:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    names = [node.id for node in nodes if isinstance(node, ast.Name)]
    constants = [node.value for node in nodes if isinstance(node, ast.Constant)]
    return (
        all(isinstance(node, _SHAPE_MATH) for node in nodes)
        and all(_SHAPE_NAMES.fullmatch(name) for name in names)
        and all(isinstance(value, int | float) or _is_symbol(value) for value in constants)
        and names.count("Pow") <= 1
        and max([abs(value) for value in constants if isinstance(value, int | float)], default=0) < 2**64
    )


def _is_symbol(value: Any) -> bool:
    """`Symbol('s77')`; sympy evaluates no string elsewhere, but a Float or Integer would parse it."""
    return isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z]\w*|-?\d+(?:\.\d+)?", value))


def _is_spec(text: str) -> bool:
    """Whether it describes nested tuples, lists and dicts: other containers import modules by name."""
    try:
        protocol, spec = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return False
    return protocol == 1 and _is_container(spec)


def _is_container(spec: Any) -> bool:
    if not isinstance(spec, dict) or spec.get("type") not in _CONTAINERS:
        return False
    context = spec.get("context")
    if context is not None:
        try:
            keys = json.loads(context)
        except (ValueError, TypeError, RecursionError):
            return False
        if keys is not None and not (isinstance(keys, list) and all(_is_key(key) for key in keys)):
            return False
    children = spec.get("children_spec")
    return isinstance(children, list) and all(map(_is_container, children))


def _is_key(key: Any) -> bool:
    return isinstance(key, int) or (isinstance(key, str) and bool(_NAME.fullmatch(key)))
