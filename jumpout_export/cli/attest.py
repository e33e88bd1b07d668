"""The commands attest and verify-attestation: a signed statement of a verification, and whether it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jumpout_export.cli import options


def attest(
    file: options.OnnxFile,
    report: Annotated[
        Path, typer.Option(metavar="FILE", help="report.json of its verification or export, or the folder it lies in")
    ],
    key: Annotated[
        Path, typer.Option(metavar="KEY", help="private key as PEM: ed25519, or ECDSA on P-256, P-384 or P-521")
    ],
    golden: Annotated[
        Path | None, typer.Option(metavar="DIR", help="folder of the golden data, as export was given it")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="the file to write; FILE.onnx.intoto.jsonl by default")
    ] = None,
) -> None:
    """Sign what a verification found, for exactly the files that it is about, as an in-toto statement."""
    from jumpout_export.attest.attest import attest_onnx
    from jumpout_export.cli.results import say
    from jumpout_export.exit_codes import FAILED, PASSED
    from jumpout_export.text import count, some_of

    made = attest_onnx(file, report, key, golden=golden, out=out)
    lines = [f"{made.path}: {file.name} is attested as {made.result}, signed with {made.key}"]
    lines += [f"  {subject.sha256}  {subject.name}, {subject.role}" for subject in made.subjects]
    if not made:
        lines.append(f"its verification did not pass: {count(len(made.failed), 'check')}, {some_of(list(made.failed))}")
    say(lambda: typer.echo("\n".join(lines)))
    raise typer.Exit(PASSED if made else FAILED)


def verify_attestation(
    statement: Annotated[Path, typer.Argument(metavar="FILE.intoto.jsonl", help="what attest wrote")],
    model: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE.onnx]", help="the ONNX file; beside the statement, as it was named, by default"),
    ] = None,
    *,
    public_key: Annotated[
        Path, typer.Option(metavar="PUB", help="public key as PEM, the other half of attest's --key")
    ],
    json: options.Json = False,
) -> None:
    """Check, offline, that a statement is signed with a key and that every file is the one it is about."""
    from jumpout_export.attest.check import verify_attestation as check
    from jumpout_export.cli.results import say
    from jumpout_export.exit_codes import FAILED, PASSED
    from jumpout_export.render.blocks import state

    found = check(statement, public_key, model)
    if json:
        text = found.model_dump_json(indent=2)
    else:
        said = {True: "the statement holds", False: "the statement does not hold, or is one of a failure"}[found.passed]
        lines = [f"{state('PASS' if found else 'FAIL').text}: {statement}: {said}"]
        width = max(len(one.name) for one in found.checks)
        lines += [f"  {state(one.verdict).text:<9}  {one.name:<{width}}  {one.note}" for one in found.checks]
        text = "\n".join(lines)
    say(lambda: typer.echo(text))
    raise typer.Exit(PASSED if found else FAILED)
