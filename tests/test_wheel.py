"""The sdist made of a clean copy, the wheel made of that sdist, and the service run from the wheel alone.

The wheel is installed into an environment of its own, which takes the libraries from that of the tests, and run in an
empty folder: nothing can come from the checkout.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from notifier import __version__, install
from tests.conftest import poll_until
from tests.processes import TOKEN, get, started

ROOT = Path(__file__).parent.parent
ASSETS = ("migrations", "static", "templates")
BUILD = "import sys, setuptools.build_meta as build; getattr(build, f'build_{sys.argv[1]}')(sys.argv[2])"
GENERATED = ("PKG-INFO", "setup.cfg", "notifier_server.egg-info/")
"""What an sdist holds beyond the project; setuptools writes setup.cfg anew."""


class Built(NamedTuple):
    copy: Path
    files: list[str]
    sdist: Path
    wheel: Path


def files_of_the_project() -> list[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the project cannot be told apart")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    return [path for path in listed if path and (ROOT / path).is_file()]


def build(kind: str, source: Path, out: Path) -> Path:
    subprocess.run([sys.executable, "-c", BUILD, kind, str(out)], cwd=source, capture_output=True, check=True)
    (made,) = out.glob("*.tar.gz" if kind == "sdist" else "*.whl")
    return made


def call(place: Path, *command: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command with these settings and no others."""
    environment = {"PATH": os.environ["PATH"], **settings}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, check=False, text=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    place = tmp_path_factory.mktemp("built")
    files = files_of_the_project()
    for path in files:
        (place / "copy" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, place / "copy" / path)
    # What a checkout may hold besides, and nobody else should get.
    for stray in (".env", "dump.sql", ".data/secret_key", "tests/__pycache__/x.pyc"):
        (place / "copy" / stray).parent.mkdir(parents=True, exist_ok=True)
        (place / "copy" / stray).write_text("PORT=8123  # private")
    sdist = build("sdist", place / "copy", place)
    with tarfile.open(sdist) as archive:
        archive.extractall(place, filter="data")
    return Built(place / "copy", files, sdist, build("wheel", place / sdist.name.removesuffix(".tar.gz"), place))


@pytest.fixture(scope="module")
def program(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The console script of an environment with the wheel in it."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False, symlinks=True)
    python = place / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--quiet"]
    subprocess.run([*command, str(built.wheel)], check=True)
    # A .pth line adds the folder, and leaves its own .pth files unread: the editable install stays out.
    (packages,) = place.glob("lib/python3*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    where = subprocess.check_output([python, "-c", "import notifier; print(notifier.__file__)"], cwd=place, text=True)
    assert where.strip() == str(packages / "notifier" / "__init__.py")
    return place / "bin" / "notifier"


def test_the_sdist_holds_the_whole_project_and_nothing_else(built: Built) -> None:
    assert built.sdist.name == f"{install.DISTRIBUTION.replace('-', '_')}-{__version__}.tar.gz"
    with tarfile.open(built.sdist) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    assert sorted(name for name in names - set(built.files) if not name.startswith(GENERATED)) == []
    assert sorted(set(built.files) - names) == []


def test_the_wheel_holds_the_package_with_its_folders_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {path for path in built.files if path.startswith("notifier/")}
    assets = {f"notifier/_assets/{path}" for path in built.files if path.split("/")[0] in ASSETS}
    assert names == package | assets


async def test_it_serves_from_the_wheel_alone(program: Path, place: Path) -> None:
    migrated = call(place, program, "migrate", DATA_DIR=str(place))
    assert migrated.stdout.endswith(", all applied\n"), migrated.stderr
    python = program.with_name("python")
    with started(place, "serve", str(program), "serve", python=python, BOOTSTRAP_TOKEN=TOKEN) as running:
        url = await running.up()
        assert b'name="token"' in get(f"{url}/admin/login")
        assert b"swagger" in get(f"{url}/docs/").lower()
        assert b":root" in get(f"{url}/static/vendor/pico/pico.min.css")
        client = json.loads(get(f"{url}/api/v1/clients", b'{"phone": "79161234567"}'))
        assert json.loads(get(f"{url}/api/v1/clients"))["items"] == [client]
        running.process.terminate()
        await poll_until(lambda: running.process.poll() is not None)
        assert running.process.returncode == 0


def test_it_is_called_what_the_user_has_typed(program: Path, tmp_path: Path) -> None:
    for command, name in (([program], "notifier"), ([sys.executable, ROOT / "server.py"], "server.py")):
        ended = call(tmp_path, *command, "serve", PORT="eighty", NOTIFIER_ENV_FILE=os.devnull)
        assert ended.returncode == 2
        assert ended.stderr.endswith(f"nothing was started; see: {name} config check\n")


def test_a_settings_file_lies_beside_the_program_or_in_the_current_folder(
    built: Built, program: Path, tmp_path: Path
) -> None:
    """A wheel has no folder of the program's own: what lies beside its packages is not ours."""

    def read(*command: str | Path) -> tuple[str, bool]:
        ended = call(tmp_path, *command, "config", "check")
        assert ended.returncode == 0, ended.stderr
        first, *table = ended.stdout.splitlines()
        return first, any("8123" in line and "PORT" in line for line in table)

    server: list[str | Path] = [sys.executable, built.copy / "server.py"]
    assert read(*server) == (f"settings file: {built.copy / '.env'}", True)
    assert read(program) == ("settings file: none", False)
    (tmp_path / ".env").write_text("PORT=8124\n")
    for command in (server, [program]):
        assert read(*command) == (f"settings file: {tmp_path / '.env'}", False)
