"""What those who play Kubernetes share: how its documents are patched, and a certificate to answer with."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

HOST = "127.0.0.1"


def merged(document: Any, patch: Any) -> Any:
    """Return the document after a merge patch (RFC 7386): null removes a field."""
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    kept = dict(document) if isinstance(document, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            kept.pop(name, None)
        else:
            kept[name] = merged(kept.get(name), value)
    return kept


def patched(document: Any, operations: Sequence[Mapping[str, Any]]) -> Any:
    """Return the document after all operations (RFC 6902), of which there are add, replace, remove and test.

    Raises:
        ValueError: If one of them can't be done; then none is.
    """
    new = copy.deepcopy(document)
    for one in operations:
        *way, last = [step.replace("~1", "/").replace("~0", "~") for step in one["path"].split("/")[1:]]
        try:
            place: Any = new
            for step in way:
                place = place[int(step) if isinstance(place, list) else step]
            _operate(place, last, one)
        except (LookupError, ValueError, TypeError) as error:
            raise ValueError(f"{one['op']} {one['path']}: {error!r}") from error
    return new


def _operate(place: Any, last: str, one: Mapping[str, Any]) -> None:
    if isinstance(place, list) and one["op"] == "add":
        place.insert(len(place) if last == "-" else int(last), one["value"])
        return
    key: Any = int(last) if isinstance(place, list) else last
    match one["op"]:
        case "add":
            place[key] = one["value"]
        case "replace":
            place[key]  # must be there
            place[key] = one["value"]
        case "remove":
            del place[key]
        case "test":
            if place[key] != one["value"]:
                raise ValueError(f"it is {place[key]!r}")
        case other:
            raise ValueError(f"operation {other} is not known")


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Write ``ca.crt``, which vouches for this host and itself for a day, and ``ca.key``; return their paths."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "ca.crt", folder / "ca.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    paths[1].write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
    return paths
