"""Which code of runs may be executed."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from pipeline import trust
from pipeline.errors import UserError
from pipeline.files import sha256_over

ONE, OTHER = "1" * 64, "2" * 64


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any code that is trusted."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    new_process(monkeypatch)
    return tmp_path / "state"


def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_of_this_process", "_given", "_named"):
        monkeypatch.setattr(trust, name, set())


def test_what_a_configuration_has_named_is_trusted_by_later_processes(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust.remember(ONE, "file:my net.py:build\nsecond line")
    new_process(monkeypatch)
    assert trust.is_trusted(ONE) and not trust.is_trusted(OTHER) and not trust.is_trusted("")
    trust.remember(ONE, "file:my net.py:build second line")
    (line,) = (state / "image-classifier-pipeline" / "trusted").read_text().splitlines()
    assert line.startswith(ONE) and line.endswith("file:my net.py:build second line")


def test_what_an_option_names_is_trusted_in_this_process_only(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trust.trust_here(ONE.upper().replace("1", "a"))
    assert trust.is_trusted("a" * 64)
    new_process(monkeypatch)
    assert not trust.is_trusted("a" * 64)
    trust.trust_here("")
    assert not state.exists()


@pytest.mark.parametrize("given", ["yes", "1" * 63, "g" * 64, f"{ONE} {OTHER}"])
def test_what_is_no_hash_is_refused(state: Path, given: str) -> None:
    with pytest.raises(UserError, match="64 hex digits"):
        trust.trust_here(given)


def test_the_refusal_names_run_artifact_and_hash(state: Path) -> None:
    digest = sha256(b"x = 1").hexdigest()
    with pytest.raises(UserError) as refused:
        trust.need_trust({"net.py": b"x = 1"}, "run abc: its artifact source")
    assert str(refused.value).count("\n") == 0
    assert f"run abc: its artifact source is Python code, SHA-256 {digest}" in str(refused.value)
    assert str(refused.value).endswith(f"--trust {digest}")


def test_what_this_steps_configuration_names_is_trusted_as_it_is(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"net.py": b"import blocks", "blocks.py": b"x = 1"}
    for strange in (
        {**own, "blocks.py": b"x = 2"},
        {**own, "more.py": b""},
        {"blocks.py": b"x = 1"},
        {},
    ):
        with pytest.raises(UserError, match="--trust"):
            trust.need_trust(strange, "it", [own])
    trust.need_trust(own, "it", [own])
    new_process(monkeypatch)
    assert trust.is_trusted(sha256_over(own))
    # Code of this machine in a place that nobody has named may be a trap beside a copy.
    with pytest.raises(UserError, match="--trust"):
        trust.need_trust(own, "it", is_here=True)
    trust.trust_here(sha256_over(own))
    trust.need_trust(own, "it", is_here=True)


def test_a_file_that_a_configuration_has_named_is_the_users_own(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "my  nets" / "net.py"
    assert not trust.is_users_own(file)
    trust.remember(ONE, str(file))
    new_process(monkeypatch)
    assert trust.is_users_own(file) and not trust.is_users_own(file.with_name("other.py"))
    new_process(monkeypatch)
    trust.name_network(f"file:{tmp_path / 'named.py'}:build")
    assert trust.is_users_own(tmp_path / "named.py")


def test_without_a_home_it_is_trusted_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    new_process(monkeypatch)
    trust.remember(ONE, "x")
    assert trust.is_trusted(ONE)
