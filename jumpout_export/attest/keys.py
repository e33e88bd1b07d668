"""The keys that statements are signed and checked with: PEM files, ed25519 or ECDSA on P-256, P-384 or P-521."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jumpout_export.disk import open_plain
from jumpout_export.errors import LoadError
from jumpout_export.extras import require

if TYPE_CHECKING:
    from securesystemslib.signer import CryptoSigner, SSlibKey

# The environment variable that holds the password of an encrypted key: an option would be in the list of processes.
PASSWORD = "JUMPOUT_KEY_PASSWORD"
_MOST_BYTES = 1 << 16  # many times the largest key
_KINDS = "ed25519, or ECDSA on P-256, P-384 or P-521"
_MAKE = (
    "make a pair with openssl genpkey -algorithm ed25519 -out key.pem; openssl pkey -in key.pem -pubout -out public.pem"
)


def require_attest() -> None:
    """Imports the packages of the `attest` extra, so that a missing one is reported before any work.

    Raises:
        ImportError: naming it and the command that installs it.
    """
    for module in ("cryptography", "securesystemslib.dsse", "in_toto_attestation.v1.statement"):
        require(module, "attest", f"{module.split('.')[0]} cannot be imported ({{error}}); install it with ")


def load_signer(path: Path) -> CryptoSigner:
    """Returns what signs with a private key; nothing of the key is ever written or printed.

    Args:
        path: a PEM file, as PKCS #8 or SEC 1; one that is encrypted is opened with the password in `PASSWORD`.

    Raises:
        LoadError: if it cannot be read, or is of another kind.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from securesystemslib.signer import CryptoSigner

    data = _read(path, "--key")
    password = os.environ.get(PASSWORD)
    encrypted = b"ENCRYPTED" in data
    if encrypted and password is None:
        raise LoadError(f"--key {path} is encrypted: put its password into the environment variable {PASSWORD}")
    try:
        key = load_pem_private_key(data, password.encode() if encrypted and password is not None else None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Without the cause, whose text is about what is in the file.
        reason = f", or the password in {PASSWORD} is another" if encrypted else ""
        raise LoadError(f"--key {path} holds no private key in PEM format{reason}; {_MAKE}") from None
    return CryptoSigner(key, _checked(key.public_key(), path, "--key"))


def load_public_key(path: Path) -> SSlibKey:
    """Returns the key that a signature is checked with.

    Args:
        path: a PEM file, as SubjectPublicKeyInfo.

    Raises:
        LoadError: if it cannot be read, or is of another kind.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = _read(path, "--public-key")
    if b"PRIVATE KEY" in data:
        raise LoadError(
            f"--public-key {path} holds a private key, which only who signs needs; "
            f"openssl pkey -in {path} -pubout -out public.pem makes the public one"
        )
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise LoadError(f"--public-key {path} holds no public key in PEM format; {_MAKE}") from None
    return _checked(key, path, "--public-key")


def _read(path: Path, option: str) -> bytes:
    try:
        with open_plain(path) as file:
            return file.read(_MOST_BYTES)
    except OSError as error:
        raise LoadError(f"{option} {path} cannot be read: {error.strerror or error}") from error


def _checked(key: Any, path: Path, option: str) -> SSlibKey:
    """The public key, if it is of a kind that is allowed: of those, each has one scheme and needs no choice."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from securesystemslib.signer import SSlibKey

    try:
        if isinstance(key, Ed25519PublicKey | EllipticCurvePublicKey):
            return SSlibKey.from_crypto(key)
    except ValueError:  # another curve
        pass
    raise LoadError(f"{option} {path} must be {_KINDS}; it is of another kind: {type(key).__name__}")
