"""What another account plants in the data folder: root follows no link of it and gives nothing away."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from notifier.errors import NotifierError
from notifier.storage import embedded_place
from notifier.storage.embedded import running
from tests.conftest import poll_until
from tests.storage.embedded_scenes import add, is_up, kept, postmaster, root_only


@pytest.fixture
def victim(place: Path) -> Path:
    """A folder that only its owner can enter, with files of the names that the server's have."""
    folder = place / "victim"
    folder.mkdir(mode=0o700)
    for name in ("pg_hba.conf", "pg_ident.conf", "postmaster.pid", "file"):
        (folder / name).write_text(f"the secret of {name}\n")
    return folder


def state(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    """Owner, group, mode and text of all in ``folder``, and of itself."""
    found = {path: path.stat() for path in (folder, *folder.iterdir())}
    return {
        path.name: (each.st_uid, each.st_gid, each.st_mode, "" if path.is_dir() else path.read_text())
        for path, each in found.items()
    }


def plant_link(path: Path, target: Path) -> None:
    """Put a symlink in the place of ``path``, as the owner of its folder can do."""
    if path.is_dir():
        path.rename(path.with_name("moved"))
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    owner = path.parent.stat()
    os.lchown(path, owner.st_uid, owner.st_gid)


@pytest.mark.parametrize(
    "name", ["users.lock", "server.lock", "server.log", "data", "data/pg_hba.conf", "data/pg_ident.conf"]
)
def test_symlink_of_the_account_is_not_followed(data_dir: Path, victim: Path, name: str) -> None:
    before = state(victim)
    trap = data_dir / "postgres" / name
    plant_link(trap, victim if name == "data" else victim / "file")
    with pytest.raises(NotifierError, match=f"/postgres/{name} is a symlink.*unlink it"), running(data_dir, fast=True):
        pass
    assert state(victim) == before
    trap.unlink()
    if name == "data":
        trap.with_name("moved").rename(trap)
    with running(data_dir, fast=True) as dsn:
        assert is_up(dsn)


def test_symlink_that_leads_nowhere_makes_nothing(data_dir: Path, victim: Path) -> None:
    plant_link(data_dir / "postgres/data/pg_ident.conf", victim / "new")
    with pytest.raises(NotifierError, match="is a symlink"), running(data_dir, fast=True):
        pass
    assert not (victim / "new").exists()


@root_only
def test_symlink_in_the_place_of_the_new_cluster_is_not_followed(place: Path, victim: Path) -> None:
    # What is made there is made as the account, who cannot enter what is root's.
    before = state(victim)
    with running(place, fast=True):
        pass
    shutil.rmtree(place / "postgres/data")
    plant_link(place / "postgres/new", victim)
    with pytest.raises(NotifierError, match="could not be made"), running(place, fast=True):
        pass
    assert state(victim) == before


@root_only
@pytest.mark.parametrize("name", ["users.lock", "server.lock", "server.log", "data/pg_hba.conf", "data/pg_ident.conf"])
def test_hard_link_to_a_file_of_root_is_left_alone(data_dir: Path, victim: Path, name: str) -> None:
    # As the account can make one where fs.protected_hardlinks is off.
    before = state(victim)
    trap = data_dir / "postgres" / name
    trap.unlink(missing_ok=True)
    trap.hardlink_to(victim / "file")
    with pytest.raises(NotifierError, match=f"/postgres/{name} belongs to the user root"), running(data_dir, fast=True):
        pass
    assert state(victim) == before


@root_only
def test_file_that_holds_what_another_account_wrote_is_not_given_away(data_dir: Path) -> None:
    # As the account can move it in from another folder that it may write to.
    moved = data_dir / "postgres/server.log"
    moved.unlink()
    moved.write_text("of root")
    with pytest.raises(NotifierError, match=r"server\.log belongs to the user root"), running(data_dir, fast=True):
        pass
    assert (moved.stat().st_uid, moved.read_text()) == (0, "of root")


def test_pipe_in_the_place_of_a_file_does_not_hang_the_start(data_dir: Path) -> None:
    (data_dir / "postgres/server.log").unlink()
    os.mkfifo(data_dir / "postgres/server.log")
    with pytest.raises(NotifierError, match="not a plain file"), running(data_dir, fast=True):
        pass


async def test_log_of_a_dead_server_is_not_read_through_a_symlink(data_dir: Path, victim: Path) -> None:
    log = data_dir / "postgres/server.log"
    with running(data_dir, fast=True) as dsn, capture_logs() as said:
        plant_link(log, victim / "file")
        os.kill(postmaster(data_dir), signal.SIGKILL)
        (first, *_) = await poll_until(lambda: [each for each in said if "error" in each])
        assert f"{log} is a symlink" in first["error"]
        log.unlink()
        await poll_until(lambda: is_up(dsn))
    assert "the secret" not in str(said)


@root_only
def test_hand_over_gives_away_nothing_of_root(data_dir: Path, victim: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, nobody, daemon = data_dir / "postgres", pwd.getpwnam("nobody"), pwd.getpwnam("daemon")
    subprocess.run(["chown", "-R", f"{nobody.pw_uid}:{nobody.pw_gid}", home], check=True)
    monkeypatch.setattr(embedded_place, "ACCOUNTS", ("daemon",))
    before = state(victim)
    plant_link(home / "data/symlink", victim)
    (home / "data/linked").hardlink_to(victim / "file")
    with pytest.raises(NotifierError, match="/data/linked belongs to the user root"), running(data_dir, fast=True):
        pass
    (home / "data/linked").unlink()
    (home / "data/moved").write_text("of root")
    with pytest.raises(NotifierError, match="/data/moved belongs to the user root"), running(data_dir, fast=True):
        pass
    assert state(victim) == before
    assert home.stat().st_uid == nobody.pw_uid
    for left in ("moved", "symlink"):
        (home / "data" / left).unlink()
    with running(data_dir, fast=True) as dsn:
        assert is_up(dsn)
        assert Path(f"/proc/{postmaster(data_dir)}").stat().st_uid == daemon.pw_uid
    assert {path.lstat().st_uid for path in (home, *home.rglob("*"))} == {daemon.pw_uid}


@root_only
def test_folder_of_root_with_something_in_it_is_not_given_away(place: Path, victim: Path) -> None:
    before = state(victim)
    (place / "postgres").symlink_to(victim)
    with pytest.raises(NotifierError, match="/victim belongs to root"), running(place, fast=True):
        pass
    os.lchown(place / "postgres", pwd.getpwnam("daemon").pw_uid, -1)
    with pytest.raises(NotifierError, match="made by the user daemon"), running(place, fast=True):
        pass
    (place / "postgres").unlink()
    (place / "elsewhere").symlink_to(victim)
    (place / "postgres").symlink_to(place / "elsewhere")
    with pytest.raises(NotifierError, match="/elsewhere is a symlink"), running(place, fast=True):
        pass
    assert state(victim) == before


@root_only
def test_cluster_behind_a_link_of_root_is_used(data_dir: Path) -> None:
    # As an earlier version made it, in a folder that belongs to the account by now.
    owner = (data_dir / "postgres").stat()
    (data_dir / "roots").mkdir(mode=0o755)
    os.chown(data_dir / "roots", owner.st_uid, owner.st_gid)
    (data_dir / "postgres").rename(data_dir / "roots/postgres-1")
    (data_dir / "postgres").symlink_to(data_dir / "roots/postgres-1")
    for expected in ([1], [1, 2]):
        with running(data_dir, fast=True) as dsn:
            add(dsn, len(expected))
            assert kept(dsn) == expected


@root_only
def test_root_puts_nothing_where_another_account_can_replace_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_place, "ROOTS_PLACE", place / "roots")
    (place / "home").mkdir(mode=0o700)
    (place / "roots").mkdir(mode=0o755)
    os.chown(place / "roots", pwd.getpwnam("daemon").pw_uid, -1)
    with pytest.raises(NotifierError, match="only root can write to"), running(place / "home", fast=True):
        pass
    assert list((place / "roots").iterdir()) == []
