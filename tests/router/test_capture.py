"""Captured payloads: readable with the keys, and never again once a subject is shredded."""

from __future__ import annotations

from pathlib import Path

import pytest

from router.ledger.capture import CaptureError, Sealed, Vault

KEK = bytes(range(32))
JUNE, JULY = 1_780_300_000.0, 1_783_000_000.0
SECRET = b"the patient has a condition"


@pytest.fixture
def vault(tmp_path) -> Vault:
    return Vault(tmp_path, KEK)


def test_a_payload_comes_back_and_nothing_on_disk_shows_it_or_its_subject(vault, tmp_path):
    sealed = vault.seal("t", "patient-17", "req-1", "request", SECRET, JUNE)
    assert vault.open(sealed, "req-1", "request") == SECRET
    assert vault.is_committed(sealed, "req-1", "request")
    path = next(path for path in (tmp_path / "payloads").rglob("*") if path.is_file())
    path.rename(path.with_name("0" * 64))
    assert not vault.is_committed(Sealed(sealed.key_id, "0" * 64, sealed.size), "req-1", "request")
    for file in tmp_path.rglob("*"):
        assert "patient" not in str(file)
        assert not file.is_file() or (SECRET not in file.read_bytes() and file.stat().st_mode & 0o077 == 0)


def test_subjects_tenants_and_months_have_keys_of_their_own(vault):
    ids = {
        vault.seal(tenant, subject, "r", "request", b"x", when).key_id
        for tenant in "ab"
        for subject in "cd"
        for when in (JUNE, JULY)
    }
    assert len(ids) == 8


def test_the_same_payload_has_another_commitment_for_another_subject(vault):
    first, second = (vault.seal("t", subject, "r", "request", SECRET, JUNE) for subject in ("a", "b"))
    assert first.commitment != second.commitment


def test_a_shredded_subject_cannot_be_read_even_from_a_backup_of_its_payloads(vault, tmp_path):
    kept = vault.seal("t", "other", "req-9", "request", SECRET, JUNE)
    sealed = [vault.seal("t", "me", f"req-{n}", "request", SECRET, when) for n, when in enumerate((JUNE, JULY))]
    backup = {path: path.read_bytes() for path in (tmp_path / "payloads").rglob("*") if path.is_file()}
    assert set(vault.shred("t", "me")) == {item.key_id for item in sealed}
    for path, data in backup.items():
        path.write_bytes(data)
    for number, item in enumerate(sealed):
        with pytest.raises(CaptureError, match="shredded"):
            vault.open(item, f"req-{number}", "request")
    assert vault.open(kept, "req-9", "request") == SECRET
    assert vault.shred("t", "me") == ()


def test_a_request_id_used_twice_replaces_nothing(vault):
    first, second = (vault.seal("t", "me", "req-1", "request", payload, JUNE) for payload in (SECRET, b"another"))
    assert vault.open(first, "req-1", "request") == SECRET
    assert vault.open(second, "req-1", "request") == b"another"


def test_a_changed_moved_or_foreign_payload_is_refused(vault, tmp_path):
    sealed = vault.seal("t", "me", "req-1", "request", SECRET, JUNE)
    first = next(path for path in (tmp_path / "payloads").rglob("*") if path.is_file())
    vault.seal("t", "me", "req-2", "request", b"other", JUNE)
    second = next(path for path in (tmp_path / "payloads").rglob("*") if path.is_file() and path != first)
    original = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(CaptureError, match="another request"):
        vault.open(sealed, "req-1", "request")
    first.write_bytes(original[:-1] + bytes([original[-1] ^ 1]))
    with pytest.raises(CaptureError, match="was changed"):
        vault.open(sealed, "req-1", "request")
    with pytest.raises(CaptureError, match="another"):
        Vault(tmp_path, bytes(32)).open(sealed, "req-1", "request")
    with pytest.raises(CaptureError, match="no id"):
        vault.open(Sealed("../../etc.passwd", "0" * 64, 1), "req-1", "request")
    with pytest.raises(CaptureError, match="no id"):
        vault.open(Sealed(sealed.key_id, "../../keys", 1), "req-1", "request")


def test_a_directory_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CaptureError, match=r"cannot be (kept|read)"):
        Vault(tmp_path / "file", KEK).seal("t", "s", "r", "request", b"x", JUNE)
    with pytest.raises(CaptureError, match="32 bytes"):
        Vault(Path(), b"short")
