"""Where a call comes from while a model runs: the innermost module, and the line of the user's source."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

_TORCH = str(Path(torch.__file__).parent)
_PACKAGE = Path(__file__).parents[1]

_INNER = (_TORCH, f"{_PACKAGE}/", "<")


@dataclass(frozen=True)
class Call:
    """A call that a running model made."""

    operator: str  # for example `aten.bernoulli_.float`
    module: str = ""  # path of the innermost module that was running; empty for the root or where it is unknown
    file: str = ""  # the user's source file, empty where it is unknown
    line: int = 0  # line in that file, 0 where it is unknown

    def __str__(self) -> str:
        where = f" in module `{self.module}`" if self.module else " in the model's own forward"
        source = f" at {self.file}:{self.line}" if self.file else ""
        return f"{self.operator}{where}{source}"


@contextlib.contextmanager
def module_stack(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keeps the path of the running module on top of `stack`, by hooks that are removed on the way out."""

    def leave(path: str) -> None:  # a hook that returns something replaces the module's output
        if stack and stack[-1] == path:  # not if another hook raised before the module was entered
            stack.pop()

    with contextlib.ExitStack() as hooks:
        for path, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue  # takes no hooks; what it calls counts for the module around it
            hooks.enter_context(module.register_forward_pre_hook(lambda *_, path=path: stack.append(path)))
            hooks.enter_context(module.register_forward_hook(lambda *_, path=path: leave(path), always_call=True))
        yield


def user_frame() -> tuple[str, int]:
    """Returns file and line of the innermost frame that belongs neither to torch nor to this package."""
    for frame in reversed(traceback.extract_stack()):
        if is_users_file(frame.filename):
            return frame.filename, frame.lineno or 0
    return "", 0


def is_users_file(name: str) -> bool:
    """Whether a source file belongs neither to torch nor to this package."""
    return not name.startswith(_INNER)
