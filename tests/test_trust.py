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
    monkeypatch.setattr(trust, "_of_this_process", set())
    return tmp_path / "state"


def new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "_of_this_process", set())


def test_what_a_configuration_has_named_is_trusted_by_later_processes(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trust.remember(ONE, "file:my net.py:build\nsecond line")
    new_process(monkeypatch)
    assert trust.is_trusted(ONE) and not trust.is_trusted(OTHER) and not trust.is_trusted("")
    trust.remember(ONE, "again")
    (line,) = (state / "image-classifier-pipeline" / "trusted").read_text().splitlines()
    assert line.startswith(ONE) and line.endswith("file:my net.py:build second line")


def test_what_an_option_names_is_trusted_in_this_process_only(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        trust.need({"net.py": b"x = 1"}, "abc", "source")
    assert str(refused.value).count("\n") == 0
    assert "run abc keeps Python code in its artifact source, SHA-256 " + digest in str(refused.value)
    assert str(refused.value).endswith(f"--trust {digest}")


def test_what_this_steps_configuration_names_is_trusted_with_its_neighbours(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "_named", set())
    (tmp_path / "net.py").write_text("import blocks")
    (tmp_path / "blocks.py").write_text("x = 1")
    trust.name_file(tmp_path / "net.py")
    kept = {"net.py": b"import blocks", "blocks.py": b"x = 1"}
    for strange in ({**kept, "blocks.py": b"x = 2"}, {**kept, "more.py": b""}, {"blocks.py": b"x = 1"}, {}):
        with pytest.raises(UserError, match="--trust"):
            trust.need(strange, "abc", "source")
    trust.need(kept, "abc", "source")
    new_process(monkeypatch)
    assert trust.is_trusted(sha256_over(kept))


def test_without_a_home_it_is_trusted_in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    new_process(monkeypatch)
    trust.remember(ONE, "x")
    assert trust.is_trusted(ONE)
