"""`tidegate audit payload` and `tidegate audit shred`: reading what was captured, and making it unreadable for good."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from router.config import Config, ConfigError, load_file
from router.ledger import records
from router.ledger.capture import CaptureError, Sealed, Vault
from router.ledger.capturing import RESPONSE, read_kek
from router.ledger.checkpoint import CheckpointError, load_signer
from router.ledger.reader import LogReader, find_logs
from router.ledger.retention import HoldError, standing_holds
from router.ledger.slots import SIGNING_KEY, open_slot
from router.ledger.store import LogBusy
from router.ledger.tiles import TileError
from tidegate.audit import console, fail
from tidegate.home import DEFAULT_CONFIG, find_home

ConfigOption = Annotated[Path | None, typer.Option("--config", help="The configuration with the `capture` block.")]


class _Captured:
    """The vault of an installation and the audit log beside it; ends the command when either cannot be used."""

    def __init__(self, path: Path | None) -> None:
        self._root = find_home().root
        try:
            self._config: Config = load_file(path or self._root / DEFAULT_CONFIG)
            if self._config.capture is None:
                fail("the configuration has no `capture` block: --config names another")
            self.vault = Vault(self._root / self._config.capture.dir, read_kek(self._config.capture.kek, self._root, make=False))
        except (ConfigError, CaptureError) as error:
            fail(str(error))
        self.logs = self._root / self._config.audit.dir

    def record(self, event: str, subject: str, data: dict[str, Any]) -> None:
        """Put what an operator is about to do into the log; what cannot be recorded is not done."""
        seed = self._config.audit.signing_key
        try:
            log = open_slot(self.logs, load_signer(self._root / seed if seed else self.logs / SIGNING_KEY), "cli")
            log.append([records.encode(log.size, time.time(), time.monotonic(), event, subject, data)])
            log.close()
        except (OSError, CheckpointError, LogBusy) as error:
            fail(f"this could not be recorded, so it was not done: {error}")


def payload(
    request_id: Annotated[str, typer.Argument(help="The request; its id is in the answer's `x-request-id`.")],
    part: Annotated[str, typer.Option(help="`request` or `response`.")] = RESPONSE,
    config: ConfigOption = None,
) -> None:
    """Write a captured payload to standard output, checked against the log. That it was read is recorded."""
    captured = _Captured(config)
    try:
        found = _find(captured.logs, request_id, part)
        if found is None:
            fail(f"no captured {part} of `{request_id}` is in the log", 1)
        if not captured.vault.is_committed(found, request_id, part):
            fail("the payload is not the one that the log speaks of", 1)
        captured.record(records.READ, request_id, {"part": part, "key_id": found.key_id})
        typer.echo(captured.vault.open(found, request_id, part), nl=False)
    except (TileError, records.RecordError) as error:
        fail(f"{error}; `tidegate audit verify` says more", 1)
    except CaptureError as error:
        fail(str(error), 1)


def shred(
    subject: Annotated[str, typer.Option(help="Whose payloads: as the client named it, or key:ID where it named nobody.")],
    tenant: Annotated[str, typer.Option(help="The tenant the subject belongs to.")] = "default",
    config: ConfigOption = None,
) -> None:
    """Destroy the data keys of a subject: no copy of its payloads can be read any more. The log still verifies."""
    captured = _Captured(config)
    try:
        keys = captured.vault.key_ids(tenant, subject)
        if not keys:
            fail("nothing is kept of this subject of this tenant here", 1)
        times = [moment for key_id in keys for moment in captured.vault.times(key_id)]
        for hold in standing_holds(captured.logs):
            if any(hold.since <= moment < hold.until for moment in times):
                since = datetime.fromtimestamp(min(times), UTC).date()
                fail(
                    f"the legal hold `{hold.id}` covers payloads of this subject (the oldest is of {since}): release it first", 1
                )
        captured.record(records.SHRED, "", {"tenant": tenant, "key_ids": list(keys), "payloads": len(times)})
        destroyed = captured.vault.shred(tenant, subject)
    except (CaptureError, HoldError) as error:
        fail(str(error), 1)
    console.print(f"shredded: {len(destroyed)} data keys, {len(times)} payloads")


def _find(directory: Path, request_id: str, part: str) -> Sealed | None:
    """What the logs say of a captured payload."""
    for path in find_logs(directory):
        for record in LogReader(path).records():
            if record.e != records.SEAL or record.id != request_id:
                continue
            for item in records.read_data(record)["parts"]:
                if item["part"] == part:
                    return Sealed(item["key_id"], item["commitment"], item["size"])
    return None
