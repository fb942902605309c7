from __future__ import annotations

import stat

import pytest
from tidegate import keys
from tidegate.home import Home


def test_a_key_has_256_random_bits_and_a_checksum_that_notices_any_changed_digit() -> None:
    key = keys.generate_key()
    assert keys.is_well_formed(key)
    assert len(key) == 3 + 64 + 1 + 8
    assert key != keys.generate_key()
    for position in (3, 40, len(key) - 1):
        other = "0" if key[position] != "0" else "1"
        assert not keys.is_well_formed(key[:position] + other + key[position + 1 :])
    assert not keys.is_well_formed(key[:-1])


def test_create_writes_only_the_digest_and_refuses_to_overwrite(home: Home) -> None:
    made = keys.create_key(home, "clinic")
    text = made.digest_file.read_text()
    assert text.split()[0] == keys.digest_of(made.plain) == made.sha256
    assert all(made.plain not in path.read_text() for path in home.keys.iterdir())
    assert stat.S_IMODE(made.digest_file.stat().st_mode) == 0o600
    with pytest.raises(keys.KeyFileError, match="exists already"):
        keys.create_key(home, "clinic")
    assert made.digest_file.read_text() == text


@pytest.mark.parametrize("name", ["", "../evil", "a b", "-x", "x" * 65])
def test_create_refuses_names_that_are_not_names(home: Home, name: str) -> None:
    with pytest.raises(keys.KeyFileError):
        keys.create_key(home, name)
    assert not home.keys.exists()


def test_the_quickstart_key_is_private_stays_the_same_and_repairs_its_digest(home: Home) -> None:
    path = keys.ensure_quickstart_key(home)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(home.keys.stat().st_mode) == 0o700
    key = keys.read_key(path)
    digest_file = home.keys / "quickstart.sha256"
    digest_file.write_text("0" * 64)
    assert keys.read_key(keys.ensure_quickstart_key(home)) == key
    assert digest_file.read_text().split()[0] == keys.digest_of(key)


def test_a_cut_off_key_file_is_refused_with_what_to_do(home: Home) -> None:
    path = keys.ensure_quickstart_key(home)
    path.write_text(path.read_text()[:30])
    with pytest.raises(keys.KeyFileError, match="Remove it"):
        keys.ensure_quickstart_key(home)
