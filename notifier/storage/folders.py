"""Folders that may belong to another account, used by root without being led elsewhere.

Who owns a folder can put a link in it at any moment, also between a check and the call it is for. So a folder is opened
once, what lies in it is reached by its descriptor and a plain name, no symlink is followed, and a file is judged after
it is open.
"""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Self

from notifier.errors import NotifierError

TAIL = 8192
"""Bytes at the end of a file that are read to show its last lines: its owner may have made it huge."""


class Folder:
    """An open folder. Its methods raise NotifierError for what should not lie in it, and OSError as the system does."""

    def __init__(self, path: Path, *, within: Folder | None = None) -> None:
        """Open the folder ``path``; with ``within``, by the descriptor of the folder it lies in.

        Raises NotifierError where ``path`` itself is a symlink; those above it are followed.
        """
        self.path = path
        self._fd = _open(path, os.O_RDONLY | os.O_DIRECTORY, within)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    @property
    def owner(self) -> os.stat_result:
        """The status of the folder at this moment; its user and group own what is made in it."""
        return os.fstat(self._fd)

    def names(self) -> list[str]:
        """The names of what lies in it."""
        return os.listdir(self._fd)

    def has(self, name: str) -> bool:
        """Whether there is anything of this name, a symlink that leads nowhere too."""
        try:
            os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def folder(self, name: str) -> Folder:
        """Open the folder ``name``, which must have the same owner."""
        folder = Folder(self.path / name, within=self)
        if folder.owner.st_uid != self.owner.st_uid:
            with folder:
                raise _of_another(folder.path, folder.owner, self.owner.st_uid)
        return folder

    def open(self, name: str) -> BinaryIO:
        """Open the file ``name`` to be read and written, made if need be, for root and for the owner alike.

        Raises NotifierError where it is no plain file, belongs to another account, or cannot be made.
        """
        path = self.path / name
        flags = os.O_RDWR
        if os.geteuid() == 0:
            # Made as its owner: what root made and gave away could be a file of root's by then, by way of a hard link.
            if not self.has(name):
                try:
                    self.run(["touch", "--", path])
                except subprocess.CalledProcessError as error:
                    why = error.output.decode(errors="replace").strip()
                    raise NotifierError(f"{path} could not be made: {why}") from None
        else:
            flags |= os.O_CREAT
        file = _open(path, flags, self)
        try:
            _judge(path, file, self.owner.st_uid)
        except NotifierError:
            os.close(file)
            raise
        return os.fdopen(file, "r+b")

    def tail(self, name: str, lines: int = 10) -> str:
        """The last lines of the file ``name``."""
        with self.open(name) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL))
            return "\n".join(file.read(TAIL).decode(errors="replace").splitlines()[-lines:])

    def unlink(self, name: str) -> None:
        """Unlink ``name``, if there is one; of a symlink the link itself."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def rename(self, old: str, new: str) -> None:
        """Rename ``old`` to ``new``."""
        os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def remove_tree(self, name: str) -> None:
        """Remove the folder ``name`` with all that is in it, as far as it can be removed."""
        shutil.rmtree(name, ignore_errors=True, dir_fd=self._fd)

    def run(
        self,
        command: Sequence[str | Path],
        log: BinaryIO | int = subprocess.PIPE,
        *,
        stdin: bytes = b"",
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        """Run a program as the owner of the folder, its output to ``log``. Raises CalledProcessError if it fails."""
        root, owner = os.geteuid() == 0, self.owner
        subprocess.run(
            command,
            check=True,
            input=stdin,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
            start_new_session=True,  # Ctrl-C is for us, who stop the server after its last user
            cwd="/",  # the server's user may not be able to enter ours
            env={"PATH": os.defpath, "LC_ALL": "C"},  # no secret of ours, no locale that is not installed
            umask=0o077,
            user=owner.st_uid if root else None,
            group=owner.st_gid if root else None,
            extra_groups=[] if root else None,
        )

    def own(self, account: pwd.struct_passwd) -> None:
        """Give the folder itself, without what is in it, to ``account``."""
        os.fchown(self._fd, account.pw_uid, account.pw_gid)

    def give(self, account: pwd.struct_passwd) -> None:
        """Give all files and folders in it, and then itself, to ``account``: one cut short can be done again.

        Raises NotifierError where one belongs to a third account; that one is not given away.
        """
        owners = (self.owner.st_uid, account.pw_uid)
        with os.scandir(self._fd) as entries:
            found = sorted(entries, key=lambda entry: entry.is_dir(follow_symlinks=False), reverse=True)
        for entry in found:
            path = self.path / entry.name
            if entry.is_dir(follow_symlinks=False):
                with Folder(path, within=self) as folder:
                    if folder.owner.st_uid not in owners:
                        raise _of_another(path, folder.owner, account.pw_uid)
                    folder.give(account)
            elif entry.is_file(follow_symlinks=False):
                file = _open(path, os.O_RDONLY, self)
                try:
                    _judge(path, file, *owners)
                    os.fchown(file, account.pw_uid, account.pw_gid)
                finally:
                    os.close(file)
        self.own(account)


def user_name(uid: int) -> str:
    """Return the name of the user ``uid``, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _open(path: Path, flags: int, within: Folder | None) -> int:
    """Return a descriptor of ``path``, which no link replaces and no pipe or lease makes wait."""
    name, at = (path, None) if within is None else (path.name, within._fd)
    try:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600, dir_fd=at)
    except OSError as error:
        link = error.errno == errno.ELOOP
        with suppress(OSError):  # of a folder Linux says only that it is none
            link = link or stat.S_ISLNK(os.stat(name, dir_fd=at, follow_symlinks=False).st_mode)
        if not link:
            raise
        raise NotifierError(
            f"{path} is a symlink, and none is followed there, since it could lead root anywhere:"
            " put what it points to in its place, or unlink it"
        ) from None


def _judge(path: Path, file: int, *owners: int) -> None:
    """Raise NotifierError unless an open file is a plain one and, for root, belongs to one of ``owners``."""
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise NotifierError(f"{path} is not a plain file: unlink it")
    # This tells a hard link to a file of another account, too; the number of links can change at any moment.
    if os.geteuid() == 0 and status.st_uid not in owners:
        raise _of_another(path, status, owners[0])


def _of_another(path: Path, found: os.stat_result, owner: int) -> NotifierError:
    return NotifierError(
        f"{path} belongs to the user {user_name(found.st_uid)} and should belong to {user_name(owner)}:"
        " look what it is (a link or a file moved in may be a trap), then unlink or chown it"
    )
