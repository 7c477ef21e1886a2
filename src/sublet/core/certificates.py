"""Our own CA and the server certificate it signs: TLS with nothing to set up.

AWS SDKs refuse bearer keys over plain http, so TLS cannot be something to add later. The CA
is made once and kept; the server's certificate is made again when it is about to end or
the host's names have changed.
"""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sublet.core.files import write_whole

_CA_LIFE: Final = timedelta(days=3650)
_SERVER_LIFE: Final = timedelta(days=397)  # the most that clients accept
_RENEW_BEFORE: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificates:
    """Paths of PEM files: what clients trust, and what the server shows and keeps."""

    ca: Path
    server: Path
    server_key: Path


def ensure(folder: Path, *, hosts: Sequence[str], now: datetime) -> Certificates:
    """Make what is missing in `folder`, or about to end, and return the paths."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ca_path, ca_key_path = folder / "ca.pem", folder / "ca.key"
    paths = Certificates(ca=ca_path, server=folder / "server.pem", server_key=folder / "server.key")
    if not (ca_path.exists() and ca_key_path.exists()):
        _make_ca(ca_path, ca_key_path, now=now)
        paths.server.unlink(missing_ok=True)  # another CA signed it
    names = sorted({"localhost", "127.0.0.1", "::1", socket.gethostname(), *hosts} - {""})
    if not _serves(paths, names, now=now):
        _make_server(paths, ca_key_path, names, now=now)
    return paths


def _serves(paths: Certificates, names: Sequence[str], *, now: datetime) -> bool:
    if not (paths.server.exists() and paths.server_key.exists()):
        return False
    found = x509.load_pem_x509_certificate(paths.server.read_bytes())
    named = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return (
        found.not_valid_after_utc - _RENEW_BEFORE > now
        and x509.SubjectAlternativeName(_general_names(names)) == named
    )


def _make_ca(path: Path, key_path: Path, *, now: datetime) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sublet local CA")])
    certificate = (
        _builder(name, name, key.public_key(), now=now, life=_CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_whole(key_path, _pem(key), mode=0o600)
    write_whole(path, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _make_server(
    paths: Certificates, ca_key_path: Path, names: Sequence[str], *, now: datetime
) -> None:
    ca = x509.load_pem_x509_certificate(paths.ca.read_bytes())
    ca_key = serialization.load_pem_private_key(ca_key_path.read_bytes(), password=None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Sublet gateway")])
    certificate = (
        _builder(subject, ca.subject, key.public_key(), now=now, life=_SERVER_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_general_names(names)), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()),
            critical=False,
        )
        .sign(ca_key, hashes.SHA256())
    )
    write_whole(paths.server_key, _pem(key), mode=0o600)
    write_whole(paths.server, certificate.public_bytes(serialization.Encoding.PEM), mode=0o644)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    *,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clients' clocks may be behind
        .not_valid_after(now + life)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_names(names: Sequence[str]) -> list[x509.GeneralName]:
    made: list[x509.GeneralName] = []
    for name in names:
        try:
            made.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            made.append(x509.DNSName(name))
    return made


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
