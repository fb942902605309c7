"""TLS towards targets: one context per distinct set of files, made when the router starts and used by every connection.

Certificates are renewed in their files, every few months or every day, so these are looked at again and again.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Iterable
from pathlib import Path
from time import monotonic

from router.config import Config, ConfigError
from router.fixed_targets import tls_files_of
from router.placement.targets import TlsFiles

_log = logging.getLogger("tidegate.tls")

_OWN_STORE = TlsFiles()
_LOOK_S = 1.0
_Stamp = tuple[tuple[int, int, int] | None, ...]


def make_context(files: TlsFiles, base: Path, where: str) -> ssl.SSLContext:
    """A client context: TLS 1.2 or newer, the peer's certificate and name always verified.

    Args:
        files: a private CA in place of the system's, and the router's own certificate for mutual TLS; both may be absent.
        base: directory that relative paths start from.
        where: the configuration's key, for messages.

    Raises:
        ConfigError: a file is missing, is not PEM, or the key is not the certificate's.
    """
    try:
        context = ssl.create_default_context(cafile=str(base / files.ca_file) if files.ca_file else None)
    except OSError as error:
        raise ConfigError(f"{where}.ca_file: {base / files.ca_file} cannot be used: {_why(error)}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if files.cert_file:
        try:
            _load_certificate(context, files, base)
        except OSError as error:
            raise ConfigError(
                f"{where}: the certificate {base / files.cert_file} with the key {base / files.key_file} cannot be used: "
                f"{_why(error)}"
            ) from None
    return context


def _load_certificate(context: ssl.SSLContext, files: TlsFiles, base: Path) -> None:
    # An encrypted key would make OpenSSL ask on the terminal.
    context.load_cert_chain(base / files.cert_file, base / files.key_file, password="")


class _Made:
    """A context, and what its files looked like when it was made or last changed."""

    __slots__ = ("context", "looked_at", "stamp")

    def __init__(self, context: ssl.SSLContext, stamp: _Stamp) -> None:
        self.context, self.stamp = context, stamp
        self.looked_at = monotonic()


class TlsContexts:
    """The contexts of one router by what they are made of; without any files, the system's trust store.

    Args:
        base: directory that relative paths start from.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._made: dict[TlsFiles, _Made] = {}

    def of(self, files: TlsFiles | None, where: str = "tls") -> ssl.SSLContext:
        """The context for these files; made on first use.

        It stays the same one: a certificate that was renewed is in it for the next connection, whoever holds it. An authority
        that was added is trusted; one that was taken out still is, until the next start.

        Raises:
            ConfigError: as `make_context`.
        """
        files = files or _OWN_STORE
        key = TlsFiles(files.ca_file, files.cert_file, files.key_file)
        made = self._made.get(key)
        if made is None:
            stamp = self._stamp_of(key)  # first: what changes while it is read is read again
            made = self._made[key] = _Made(make_context(key, self._base, where), stamp)
        elif key != _OWN_STORE and monotonic() - made.looked_at >= _LOOK_S:
            made.looked_at = monotonic()
            self._renew(key, made, where)
        return made.context

    def _renew(self, files: TlsFiles, made: _Made, where: str) -> None:
        """Take over what has changed in the files, if it is whole: a certificate may be there before its key."""
        stamp = self._stamp_of(files)
        if stamp == made.stamp:
            return
        made.stamp = stamp
        try:
            make_context(files, self._base, where)  # half of a pair must not get into the one that is in use
            if files.cert_file:
                _load_certificate(made.context, files, self._base)
            if files.ca_file:
                made.context.load_verify_locations(self._base / files.ca_file)
        except (ConfigError, OSError) as error:
            _log.error("%s; new connections go on with what was there before", error)

    def _stamp_of(self, files: TlsFiles) -> _Stamp:
        named = (files.ca_file, files.cert_file, files.key_file)
        return tuple(_stamp(self._base / name) for name in named if name)

    def prepare(self, config: Config) -> None:
        """Make every context the router will need, so that a bad file is an error now and not at the first request.

        Raises:
            ConfigError: as `make_context`.
        """
        for where, files in _mentioned(config):
            self.of(files, where)


def _mentioned(config: Config) -> Iterable[tuple[str, TlsFiles | None]]:
    for i, target in enumerate(config.targets):
        if target.kind == "server" and target.tls is not None:
            yield f"targets[{i}].tls", tls_files_of(target.tls)
        if target.prefill is not None and target.prefill.tls is not None:
            yield f"targets[{i}].prefill.tls", tls_files_of(target.prefill.tls)
    if config.egress.tls is not None:
        yield "egress.tls", tls_files_of(config.egress.tls)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM").replace("_", " ").lower()
    return error.strerror or type(error).__name__
