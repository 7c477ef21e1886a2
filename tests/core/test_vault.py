"""Secrets at rest open by their key, in their place, and otherwise not at all."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sublet.core.errors import Misconfigured
from sublet.core.vault import Vault


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Vault:
    made = Vault(tmp_path_factory.mktemp("vault") / "a.key")
    made.prepare()
    return made


@given(st.text(st.characters(codec="utf-8")), st.text(st.characters(codec="utf-8")))
def test_what_is_sealed_opens_for_what_it_was_bound_to_and_for_nothing_else(
    vault: Vault, secret: str, name: str
) -> None:
    sealed = vault.seal(secret, bound_to=name)
    assert vault.open(sealed, bound_to=name) == secret
    assert sealed != vault.seal(secret, bound_to=name)
    with pytest.raises(Misconfigured, match="changed"):
        vault.open(sealed, bound_to=name + "x")


@given(st.integers(0, 60), st.integers(1, 255))
def test_what_was_changed_does_not_open(vault: Vault, index: int, flip: int) -> None:
    sealed = bytearray(vault.seal("secret " * 5, bound_to="id"))
    sealed[index] ^= flip
    with pytest.raises(Misconfigured):
        vault.open(bytes(sealed), bound_to="id")


@given(st.binary(max_size=40))
def test_nonsense_does_not_open(vault: Vault, sealed: bytes) -> None:
    with pytest.raises(Misconfigured):
        vault.open(sealed, bound_to="id")


def test_the_key_is_made_once_for_its_owner_s_eyes(folder: Path) -> None:
    path = folder / "vault.key"
    first, second = Vault(path), Vault(path)
    first.prepare()
    second.prepare()
    assert path.stat().st_mode & 0o777 == 0o600
    assert second.open(first.seal("s", bound_to="id"), bound_to="id") == "s"
    assert list(folder.iterdir()) == [path]


def test_another_key_none_a_damaged_one_and_one_that_others_can_read_are_told_apart(
    folder: Path,
) -> None:
    ours, theirs = Vault(folder / "ours"), Vault(folder / "theirs")
    ours.prepare()
    theirs.prepare()
    with pytest.raises(Misconfigured, match="is not the key"):
        theirs.open(ours.seal("s", bound_to="id"), bound_to="id")
    with pytest.raises(Misconfigured, match="cannot read"):
        Vault(folder / "none").seal("s", bound_to="id")
    (folder / "ours").chmod(0o640)
    with pytest.raises(Misconfigured, match="chmod 600"):
        Vault(folder / "ours").seal("s", bound_to="id")
    (folder / "theirs").write_text("short")
    with pytest.raises(Misconfigured, match=r"damaged|cannot read"):
        Vault(folder / "theirs").seal("s", bound_to="id")
