"""Where settings come from: the environment, the settings file, files of secrets, and the key that is kept."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from notifier.errors import SettingsError
from notifier.settings import Settings, secret_key
from tests.test_settings import GATEWAY, KEY, POSTGRES, TOKEN, errors_of


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("DATABASE_URI", "DATABASE_URL"),
        ("DATABASE_STATEMENTS_CACHE", "DATABASE_STATEMENT_CACHE"),
        ("GATEWAY_TIMEOUTS", "GATEWAY_TIMEOUT"),
        ("GATEWAY_CONCURENCY", "GATEWAY_CONCURRENCY"),
        ("GATEWAY_TOKEN_FIEL", "GATEWAY_TOKEN_FILE"),
    ],
)
def test_a_misspelt_name_is_not_a_silent_default(typo: str, meant: str) -> None:
    (error,) = errors_of({typo: "1"})
    assert error == f"{typo}: there is no such setting; did you mean {meant}?"


def test_other_programs_variables_are_left_alone() -> None:
    Settings.load({"DATABASE_HOST": "x", "DATABASE_USER": "x", "GATEWAY_INTERFACE": "CGI/1.1"}, None)


def test_a_misspelt_name_in_the_env_file_is_an_error_without_a_prefix_too(tmp_path: Path) -> None:
    others = "POSTGRES_PASSWORD=x\nPOSTGRES_DB=x\nCOMPOSE_PROFILES=x\nTZ=UTC\n"
    (tmp_path / ".env").write_text(others + "PROT=99\n")
    (error,) = errors_of({}, tmp_path / ".env")
    assert error == "PROT: there is no such setting; did you mean PORT?"
    (tmp_path / ".env").write_text(others)
    assert Settings.load({"PROT": "99"}, tmp_path / ".env").port == 8080


def test_the_environment_beats_the_env_file(tmp_path: Path) -> None:
    env_file = tmp_path / ".env"
    env_file.write_text('PORT=1\nHOST="::"\nSECRET_KEY=${not_a_variable}0123456789012345\nROLE=\n')
    settings = Settings.load({"PORT": "2"}, env_file)
    assert (settings.port, settings.host, settings.role) == (2, "::", "all")
    assert settings.secret_key == "${not_a_variable}0123456789012345"
    sources = {name: source for name, _, source in settings.describe()}
    assert (sources["PORT"], sources["HOST"], sources["ROLE"]) == ("environment", ".env", "default")


def test_an_env_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"PORT=\xff")
    for name in (".env", "none", "."):
        (error,) = errors_of({}, tmp_path / name)
        assert "cannot be read" in error


def test_a_line_of_the_env_file_that_says_nothing_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("# fine\nGATEWAY_TOKEN jwt\n\nexport PORT=1\n")
    (error,) = errors_of({}, tmp_path / ".env")
    assert error.endswith("line 2 is not NAME=value")


def test_a_name_without_a_value_in_the_env_file_is_an_error(tmp_path: Path) -> None:
    """Else a service that should send nothing after a restore would send."""
    (tmp_path / ".env").write_text("# fine\n\n\nPAUSE_ALL\nexport SECRET_KEY\nGATEWAY_TOKEN jwt\n")
    errors = errors_of({"GATEWAY_URL": GATEWAY["GATEWAY_URL"], "DATABASE_URL": POSTGRES}, tmp_path / ".env")
    assert [line.removeprefix(f"{tmp_path}/.env: ") for line in errors] == [
        f"line {number} is not NAME=value" for number in (4, 5, 6)
    ]


def test_a_name_that_stands_twice_in_the_env_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PAUSE_ALL=1\nPORT=1\n\nPAUSE_ALL=\nOTHER='a\nb'\nOTHER=c\n")
    errors = errors_of({"PAUSE_ALL": "1"}, tmp_path / ".env")
    assert ["PAUSE_ALL is given in lines 1 and 4" in line for line in errors] == [True, False]
    assert "OTHER is given in lines 5 and 7" in errors[1]


def test_a_secret_may_lie_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    settings = Settings.load({"BOOTSTRAP_TOKEN_FILE": str(tmp_path / "token")}, None)
    assert settings.bootstrap_token == TOKEN
    assert ("BOOTSTRAP_TOKEN", "***", "file") in settings.describe()


@pytest.mark.parametrize("around", ["{}\n", "{}\r\n", " {} ", "\n{}"])
def test_blanks_and_line_ends_around_a_secret_are_taken_off_wherever_it_stands(tmp_path: Path, around: str) -> None:
    """Else replicas that got one key by two ways have two keys."""
    (tmp_path / "key").write_bytes(around.format(KEY).encode())
    by_file = Settings.load({"SECRET_KEY_FILE": str(tmp_path / "key")}, None)
    by_environment = Settings.load({"SECRET_KEY": around.format(KEY)}, None)
    assert by_file.secret_key == by_environment.secret_key == KEY
    token = Settings.load(GATEWAY | {"GATEWAY_TOKEN": around.format("jwt"), "BOOTSTRAP_TOKEN": "\r\n"}, None)
    assert (token.gateway_token, token.bootstrap_token) == ("jwt", None)


def test_an_env_file_that_cannot_be_read_leaves_nothing_to_be_called_missing(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load({"DATABASE_URL": POSTGRES}, tmp_path)
    assert len(caught.value.errors) == 1
    assert [line.split(":")[0] for line in caught.value.warnings] == ["DATABASE_URL"]


def test_a_secret_file_that_cannot_serve_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff")
    for path in ("empty", "binary", "none", "."):
        (error,) = errors_of({"SECRET_KEY_FILE": str(tmp_path / path)})
        assert error.startswith("SECRET_KEY: SECRET_KEY_FILE names ")


def test_a_secret_given_twice_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    (error,) = errors_of({"SECRET_KEY": KEY, "SECRET_KEY_FILE": str(tmp_path / "key")})
    assert "given twice" in error


def test_the_key_is_made_once_and_kept_to_its_owner(tmp_path: Path) -> None:
    settings = Settings.load({"DATA_DIR": str(tmp_path / "new" / "data")}, None)
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(secret_key, [settings] * 8))
    assert len(keys) == 1
    assert len(keys.pop()) >= 32
    (kept,) = settings.data_dir.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_the_given_key_wins(tmp_path: Path) -> None:
    settings = Settings.load({"DATA_DIR": str(tmp_path), "SECRET_KEY": KEY}, None)
    assert secret_key(settings) == KEY
    assert not list(tmp_path.iterdir())


def test_a_spoilt_key_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "secret_key").write_text("short")
    with pytest.raises(SettingsError, match="secret_key has 5 characters"):
        secret_key(Settings.load({"DATA_DIR": str(tmp_path)}, None))


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/foo"])
def test_a_data_folder_that_is_none_is_blamed_itself(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        SettingsError, match=f"^DATA_DIR: .*{name}.*name a folder in which this user can read and write"
    ):
        secret_key(Settings.load({"DATA_DIR": str(tmp_path / name)}, None))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder of root's and leave it")
def test_roots_data_folder_is_blamed_when_it_is_used_by_another(tmp_path: Path) -> None:
    place = Path(tempfile.mkdtemp())  # not below tmp_path, where only root can enter
    try:
        place.chmod(0o755)
        for step in ("empty", "with a key", "closed"):
            if step == "with a key":
                (place / "secret_key").touch(mode=0o600)
            if step == "closed":
                place.chmod(0o700)
            os.seteuid(65534)
            try:
                with pytest.raises(SettingsError, match=r"^DATA_DIR: .*Permission denied"):
                    secret_key(Settings.load({"DATA_DIR": str(place)}, None))
            finally:
                os.seteuid(0)
    finally:
        shutil.rmtree(place)
