"""TLS contexts: certificates, SNI, and their being loaded again while the server runs."""

from __future__ import annotations

import os
import ssl
from typing import Any

from fastserve.config import Config, ConfigError

__all__ = ["Certificates"]

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# The registry's numbers (RFC 8446 section 4.1.2 and appendix D), for the ASGI extension.
VERSION_NUMBERS = {"TLSv1.2": 0x0303, "TLSv1.3": 0x0304}
VERIFY_MODES = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}
# Of so many clients the chain is remembered for when they resume a session.
CHAINS = 256
# RFC 4514 section 3: the short names of the types of attributes that have one.
SHORT_NAMES = {
    "commonName": "CN",
    "localityName": "L",
    "stateOrProvinceName": "ST",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "countryName": "C",
    "streetAddress": "STREET",
    "domainComponent": "DC",
    "userId": "UID",
}


class Identity:
    """One certificate with its key, as a context."""

    def __init__(self, config: Config, certfile: str, keyfile: str) -> None:
        self.context = _context(config, certfile, keyfile)
        self.context.identity = self
        self.pem = _leaf(certfile)
        self.names = _names(certfile)
        self.suites = {
            cipher["name"]: cipher["id"] & 0xFFFF for cipher in self.context.get_ciphers()
        }


class Context(ssl.SSLContext):
    """A session knows its context, and so whose certificate it shows, also after a reload."""

    identity: Identity


class Certificates:
    """Everything that the TLS side of the server needs to know.

    The first certificate is for clients that name no host, or an unknown one; the others are
    found by the names in them (RFC 6066 section 3). `load()` may be called again at any time:
    connections that exist keep what they have.

    Raises ConfigError for a file that cannot be used, and for options that do not fit together.
    """

    def __init__(self, config: Config) -> None:
        if config.keyfile and len(config.keyfile) != len(config.certfile):
            raise ConfigError("--keyfile: one for each --certfile expected, or none")
        if config.verify_mode != "none" and config.ca_certs is None:
            raise ConfigError("--verify-mode: --ca-certs has to say who signs the certificates")
        self._config = config
        # A ticket has a client's own certificate alone. OpenSSL's memory of sessions has the chain,
        # too, but 13 KB for each, and there is no way to bound it.
        self._chains: dict[bytes, tuple[str, ...]] = {}
        self.load()

    def load(self) -> None:
        config = self._config
        files = list(zip(config.certfile, config.keyfile or config.certfile, strict=True))
        # Kept also when it fails, so that it is not tried, and complained of, again and again.
        self._stamps = _stamps(config)
        identities = [Identity(config, *pair) for pair in files]
        by_name: dict[str, Identity] = {}
        for identity in identities:
            for name in identity.names:
                by_name.setdefault(name, identity)
        if len(identities) > 1:

            def choose(
                session: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext
            ) -> None:
                found = _find(by_name, name)
                if found is not None:
                    session.context = found.context

            identities[0].context.sni_callback = choose
        # Only now, when all of it has turned out to be good.
        self._context = identities[0].context

    def have_changed(self) -> bool:
        """Whether a file is another one than at the last `load()`."""
        stamps = _stamps(self._config)
        # A file that is missing is being replaced at this very moment, perhaps.
        return None not in stamps and stamps != self._stamps

    def wrap(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> ssl.SSLObject:
        return self._context.wrap_bio(incoming, outgoing, server_side=True)

    def describe(self, session: ssl.SSLObject) -> dict[str, Any]:
        """The ASGI `tls` extension (ASGI TLS spec 0.2)."""
        context = session.context
        assert isinstance(context, Context)
        identity = context.identity
        cipher = session.cipher()
        version = session.version()
        chain = self._client_chain(session)
        return {
            "server_cert": identity.pem,
            "client_cert_chain": chain,
            "client_cert_name": _distinguished_name(session.getpeercert()) if chain else None,
            "client_cert_error": None,  # a certificate that is not good ends the handshake
            "tls_version": VERSION_NUMBERS.get(version) if version else None,
            "cipher_suite": identity.suites.get(cipher[0]) if cipher else None,
        }

    def _client_chain(self, session: ssl.SSLObject) -> tuple[str, ...]:
        leaf = session.getpeercert(True)
        if leaf is None:
            return ()
        known = self._chains.pop(leaf, None)
        chain = known if known and session.session_reused else _chain(session, leaf)
        self._chains[leaf] = chain  # as the latest
        if len(self._chains) > CHAINS:
            del self._chains[next(iter(self._chains))]
        return chain


def _context(config: Config, certfile: str, keyfile: str) -> Context:
    context = Context(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[config.tls_min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.set_ciphers(config.ciphers)
    except ssl.SSLError:
        raise ConfigError(f"--ciphers: {config.ciphers!r} selects none") from None
    _load_certificate(context, certfile, keyfile, config.keyfile_password)
    if config.ca_certs is not None:
        try:
            context.load_verify_locations(config.ca_certs)
        except OSError as error:
            raise ConfigError(f"--ca-certs: {config.ca_certs!r}: {_reason(error)}") from None
    context.verify_mode = VERIFY_MODES[config.verify_mode]
    return context


def _load_certificate(
    context: ssl.SSLContext, certfile: str, keyfile: str, password: str | None
) -> None:
    if "CERTIFICATE-----" not in _read("--certfile", certfile):
        raise ConfigError(f"--certfile: {certfile!r} holds no certificate in PEM")
    key = _read("--keyfile", keyfile)
    if "PRIVATE KEY-----" not in key:
        if keyfile == certfile:
            raise ConfigError(f"--keyfile: needed, since {certfile!r} holds no private key")
        raise ConfigError(f"--keyfile: {keyfile!r} holds no private key in PEM")
    is_encrypted = "ENCRYPTED" in key  # PKCS #8 and the older form both say so in clear text
    if is_encrypted and password is None:
        raise ConfigError(f"--keyfile-password: needed, since {keyfile!r} is encrypted")
    try:
        # Never None: OpenSSL would ask for the password on the terminal.
        context.load_cert_chain(certfile, keyfile, password or "")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None)
        if reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
            problem = f"--keyfile: {keyfile!r} is not the key of {certfile!r}"
        elif is_encrypted:
            problem = f"--keyfile-password: does not decrypt {keyfile!r}"
        else:
            problem = f"--certfile: {certfile!r} with {keyfile!r}: {_reason(error)}"
        raise ConfigError(problem) from None


def _read(option: str, path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"{option}: {path!r}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not what is expected there").lower().replace("_", " ")
    return str(getattr(error, "strerror", None) or error).lower()


def _stamps(config: Config) -> list[tuple[int, int, int] | None]:
    paths = [*config.certfile, *config.keyfile, *filter(None, [config.ca_certs])]
    stamps: list[tuple[int, int, int] | None] = []
    for path in paths:
        try:
            found = os.stat(path)
            stamps.append((found.st_mtime_ns, found.st_size, found.st_ino))
        except OSError:
            stamps.append(None)  # being replaced at this very moment, perhaps
    return stamps


def _leaf(certfile: str) -> str:
    """The server's own certificate, without what is written around it and behind it."""
    text = _read("--certfile", certfile)
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    return f"{begin}{text.partition(begin)[2].partition(end)[0]}{end}\n"


def _names(certfile: str) -> list[str]:
    # The one function of the standard library that reads a certificate nobody has sent.
    decoded: dict[str, Any] = ssl._ssl._test_decode_cert(certfile)  # type: ignore[attr-defined]
    names = [value for kind, value in decoded.get("subjectAltName", ()) if kind == "DNS"]
    if not names:
        names = [
            value for part in decoded["subject"] for name, value in part if name == "commonName"
        ]
    return [name.lower() for name in names]


def _find(by_name: dict[str, Identity], name: str | None) -> Identity | None:
    if not name:
        return None
    name = name.lower().rstrip(".")
    # A wildcard stands for one label, the first (RFC 6125 section 6.4.3).
    return by_name.get(name) or by_name.get("*." + name.partition(".")[2])


def _chain(session: ssl.SSLObject, leaf: bytes) -> tuple[str, ...]:
    """What the client has sent, or `leaf` alone if it has resumed a session by a ticket."""
    if hasattr(session, "get_unverified_chain"):
        chain = session.get_unverified_chain()
    else:  # before Python 3.13 it has no public name
        found = session._sslobj.get_unverified_chain() or ()  # type: ignore[attr-defined]
        chain = [one.public_bytes(ssl._ssl.ENCODING_DER) for one in found]  # type: ignore[attr-defined]
    return tuple(ssl.DER_cert_to_PEM_cert(certificate) for certificate in chain or [leaf])


def _distinguished_name(certificate: dict[str, Any] | None) -> str | None:
    """The subject, as RFC 4514 writes it: the last part first."""
    if not certificate:
        return None
    return ",".join(
        "+".join(f"{SHORT_NAMES.get(name, name)}={_escaped(value)}" for name, value in part)
        for part in reversed(certificate.get("subject", ()))
    )


def _escaped(value: str) -> str:
    """RFC 4514 section 2.4."""
    escaped = "".join(f"\\{char}" if char in '"+,;<>\\' else char for char in value)
    escaped = escaped.replace("\0", "\\00")
    if escaped.startswith(("#", " ")):
        escaped = "\\" + escaped
    if escaped.endswith(" ") and len(value) > 1:
        escaped = escaped[:-1] + "\\ "
    return escaped
