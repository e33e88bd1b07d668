"""The signature around a statement: a DSSE envelope, one line of JSON (https://github.com/secure-systems-lab/dsse)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from jumpout_export.disk import open_plain
from jumpout_export.errors import LoadError
from jumpout_export.report import Check
from jumpout_export.text import first_line, parse_json

if TYPE_CHECKING:
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner, SSlibKey

PAYLOAD_TYPE = "application/vnd.in-toto+json"
_MOST_BYTES = 1 << 26  # the names of a million checks


def sign(payload: bytes, signer: CryptoSigner) -> str:
    """Returns the envelope of a payload as one line of JSON, with the line's end."""
    from securesystemslib.dsse import Envelope

    envelope = Envelope(payload, PAYLOAD_TYPE, {})
    envelope.sign(signer)
    return json.dumps(envelope.to_dict(), sort_keys=True, separators=(",", ":")) + "\n"


def read_envelope(path: Path) -> Envelope:
    """Returns the envelope in a file; nothing of it is to be believed before `signature_check`.

    Raises:
        LoadError: if it cannot be read, or holds something else than one envelope.
    """
    from securesystemslib.dsse import Envelope

    try:
        with open_plain(path) as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(data) > _MOST_BYTES:
        raise LoadError(f"{path} is too large for a signed statement, over {_MOST_BYTES >> 20} MiB")
    try:
        content = parse_json(data)
    except json.JSONDecodeError as error:
        several = "several lines; give one with one statement" if data.count(b"\n") > 1 else "no JSON"
        raise LoadError(f"{path} is no signed statement: {several}") from error
    except ValueError as error:
        raise LoadError(f"{path} is no signed statement: {first_line(error)}") from error
    except RecursionError as error:
        raise LoadError(f"{path} is no signed statement: it is nested too deeply") from error
    try:
        return Envelope.from_dict(content)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise LoadError(f"{path} is no signed statement: it has not the fields of a DSSE envelope") from error


def signature_check(envelope: Envelope, key: SSlibKey) -> Check:
    """Returns whether the key made the signature, and the signature is of this payload."""
    from securesystemslib.exceptions import VerificationError

    name = "signature"
    if envelope.payload_type != PAYLOAD_TYPE:
        note = f"the envelope holds {envelope.payload_type}, needed is {PAYLOAD_TYPE}"
        return Check(name=name, verdict="fail", note=note)
    try:
        envelope.verify([key], 1)
    except VerificationError:
        signers = ", ".join(envelope.signatures) or "nobody"
        note = f"it is signed with another key: {signers}; given is {key.keyid}"
        if key.keyid in envelope.signatures:
            note = f"the statement or its signature was changed: key {short(key.keyid)} did not sign this"
        return Check(name=name, verdict="fail", note=note)
    return Check(name=name, verdict="pass", note=f"{key.scheme}, key {short(key.keyid)}")


def short(keyid: str) -> str:
    """Returns enough of a key's id to tell keys apart."""
    return keyid[:16]
