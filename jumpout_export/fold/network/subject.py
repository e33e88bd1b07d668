"""What is exported, verified or folded: a module, or an exported program with what it says of itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from jumpout_export.errors import ConversionError, NotFoldableError
from jumpout_export.fold.network.sharded import gathered
from jumpout_export.model.axes import Axes
from jumpout_export.model.guard import Found, untouched
from jumpout_export.model.norms import channels, named_norms
from jumpout_export.model.wrappers import COMPILED, DISTRIBUTED, plain_names, unwrap
from jumpout_export.program.network import ProgramFacts, ProgramNetwork, as_module, program_batchnorms, program_facts
from jumpout_export.report import FoldedLayer

_GATHERED = "the weights, spread over processes, were gathered in the precision in which they are stored"


class Subject:
    """A user's module; `subject_of` makes it once, and no step asks again what it was given."""

    layers: tuple[FoldedLayer, ...] = ()  # noise that was switched off before anything was folded
    notes: tuple[str, ...] = ()  # sentences on what else was done to it then
    can_allow = True  # whether it has modules in which noise could be allowed

    def __init__(self, module: nn.Module, notes: tuple[str, ...] = ()) -> None:
        self.module = module  # the network itself, in the user's mode
        self.notes = notes
        self._found: Found | None = None

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """Puts the module back to how it was found, on the way out of each such block.

        What it was is taken down once, in the outermost of them.

        Raises:
            NotFoldableError: of check `copy`, if there was something to put back.
        """
        outermost, found = self._found is None, self._found or Found(self.module)
        self._found = found
        try:
            with untouched(found):
                yield
        finally:
            if outermost:
                self._found = None

    def norms(self) -> list[tuple[str, Any]]:
        """Returns what serves with running statistics, by path: each has `running_mean`, `running_var` and `eps`."""
        return list(named_norms(self.module))

    def channels(self) -> dict[str, int] | None:
        """Returns each norm's channels by its path without wrappers; None where paths are not those of the module."""
        plain = plain_names(self.module)
        return {plain[path]: channels(norm) for path, norm in self.norms()}

    def refuse_noise(self) -> None:
        """Raises if the network holds noise that cannot be switched off.

        Raises:
            NotFoldableError: naming it.
        """

    def fixed_batch(self) -> str:
        """Returns why the batch size cannot be left open; empty if it can."""
        return ""

    def conditions(self, _axes: Axes) -> list[str]:
        """Returns sentences on what the network takes for granted about open axes.

        Raises:
            ConversionError: if it takes for granted that one of them is not open.
        """
        return []


class ProgramSubject(Subject):
    """An exported program: a graph, whose noise was switched off or cannot be, made for some sizes."""

    can_allow = False

    def __init__(self, module: ProgramNetwork, facts: ProgramFacts) -> None:
        super().__init__(module)
        self._network, self._facts = module, facts
        self.layers, self.notes = tuple(facts.layers), tuple(facts.notes)

    def norms(self) -> list[tuple[str, Any]]:
        """Returns the graph's batch normalisations, by the path of the layer that they were."""
        return [*super().norms(), *program_batchnorms(self._network)]

    def channels(self) -> dict[str, int] | None:
        """Returns None if there is a norm: torch.export names layers differently."""
        return None if self.norms() else {}

    def refuse_noise(self) -> None:
        """Raises for every call that draws and does not follow the mode of a layer."""
        refused = self._facts.refused
        if refused:
            raise NotFoldableError(
                "the exported program draws random numbers, so no deterministic graph equals it: "
                + "; ".join(map(str, refused))
                + "; export the model in eval mode, with noise only under `if self.training:`",
                tuple(dict.fromkeys(call.module for call in refused)),
            )

    def fixed_batch(self) -> str:
        """Returns what the program takes for granted about its first axis."""
        return self._facts.sizes.fixed_batch()

    def conditions(self, axes: Axes) -> list[str]:
        """Reads them from the program's guards: a second trace of it, as the converter makes, does not see them."""
        limit, condition = self._facts.sizes.restricted(axes.further)
        if problem := (self.fixed_batch() if axes.size is None else "") or limit:
            raise ConversionError(problem)
        return [condition] if condition and any(axes.opened()) else []


def subject_of(model: Any) -> Subject:
    """Returns what the model is: a program in its eval network (`as_module`), a module without wrappers around it.

    A wrapper of torch.compile would compile anew for every copy, one for several processes would talk to them. Weights
    that are spread over processes are gathered (`gathered`), for which all of them have to call this. A Subject stays
    what it is.

    Raises:
        TypeError: for a TorchScript module, and for what is neither a module nor a program.
        ValueError: for a module on the meta device.
    """
    if isinstance(model, Subject):
        return model
    network = as_module(model)
    inner = unwrap(network, (COMPILED, DISTRIBUTED))
    notes: tuple[str, ...] = ()
    if isinstance(inner, nn.Module):
        whole = gathered(inner)
        notes = (_GATHERED,) if whole is not inner else ()
        inner = unwrap(whole)
    if isinstance(inner, torch.jit.ScriptModule):
        raise TypeError(
            f"the model ({type(inner).__name__}) is a TorchScript module, which torch.export cannot trace; give the "
            "nn.Module that it was made of"
        )
    if not isinstance(inner, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module or torch.export.ExportedProgram, got {type(model).__name__}")
    empty = next((name for name, value in [*inner.named_parameters(), *inner.named_buffers()] if value.is_meta), None)
    if empty is not None:
        raise ValueError(
            f"the model's `{empty}` has no values: they are on the meta device; load the weights first "
            '(model.to_empty(device="cpu"), then load_state_dict)'
        )
    facts = program_facts(inner)
    return (
        ProgramSubject(inner, facts)
        if isinstance(inner, ProgramNetwork) and facts is not None
        else Subject(inner, notes)
    )
