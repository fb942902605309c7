"""TLS towards targets: one context per distinct set of files, made when the router starts and used by every connection."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from pathlib import Path

from router.config import Config, ConfigError
from router.fixed_targets import tls_files_of
from router.placement.targets import TlsFiles

_OWN_STORE = TlsFiles()


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
            # An encrypted key would make OpenSSL ask on the terminal.
            context.load_cert_chain(base / files.cert_file, base / files.key_file, password="")
        except OSError as error:
            raise ConfigError(
                f"{where}: the certificate {base / files.cert_file} with the key {base / files.key_file} cannot be used: "
                f"{_why(error)}"
            ) from None
    return context


class TlsContexts:
    """The contexts of one router by what they are made of; without any files, the system's trust store.

    Args:
        base: directory that relative paths start from.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._made: dict[TlsFiles, ssl.SSLContext] = {}

    def of(self, files: TlsFiles | None, where: str = "tls") -> ssl.SSLContext:
        """The context for these files; made on first use.

        Raises:
            ConfigError: as `make_context`.
        """
        files = files or _OWN_STORE
        key = TlsFiles(files.ca_file, files.cert_file, files.key_file)
        context = self._made.get(key)
        if context is None:
            context = self._made[key] = make_context(key, self._base, where)
        return context

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


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not PEM").replace("_", " ").lower()
    return error.strerror or type(error).__name__
