"""The house checks itself: what is written twice must agree."""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import notifier
from notifier.settings import SETTINGS, Settings
from tests.delivery.test_holes import HOLES

ROOT = Path(__file__).parent.parent
VENDOR = ROOT / "static" / "vendor"
# Where packages come from is each machine's own business, and so is where the checkout lies.
OF_ONE_MACHINE = re.compile(r"index-url|find-links|--registry|(?:^|[\s'\"`=(:])/(?:work|root|home|Users)/\w", re.M)


def text_of(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def requirements() -> list[Requirement]:
    """Everything that setup.cfg names, with the extras."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    wanted = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    return [Requirement(line) for line in "\n".join(wanted).splitlines() if line and not line.startswith("#")]


REQUIREMENTS = requirements()
LOCKED = "\n".join(path.read_text() for path in sorted((ROOT / "requirements").glob("*.txt")))


def test_the_readme_has_a_row_for_every_setting() -> None:
    rows = [line.split("|")[1] for line in text_of("README.md").splitlines() if line.startswith("|")]
    documented = set(re.findall(r"`([A-Z_]+)`", " ".join(rows)))
    assert {setting.name for setting in SETTINGS} <= documented


def test_the_env_example_lists_every_setting_with_its_default(tmp_path: Path) -> None:
    lines = re.findall(r"^#([A-Z_]+=.*)$", text_of(".env.example"), re.M)
    assert [line.split("=")[0] for line in lines] == [setting.name for setting in SETTINGS]
    (tmp_path / ".env").write_text("\n".join(lines))
    assert Settings.load({}, tmp_path / ".env") == Settings.load({}, None)


def test_the_changelog_tells_of_this_version() -> None:
    assert f"## [{notifier.__version__}]" in text_of("CHANGELOG.md")


def test_every_requirement_is_pinned_within_its_range() -> None:
    pins = dict(re.findall(r"^(\S+)==(\S+)", LOCKED, re.M))
    for requirement in REQUIREMENTS:
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_every_pin_has_hashes() -> None:
    """pip is told to ask for them; a line without would stop an installation, but only one of that layer."""
    for pin in re.findall(r"^\w.*(?:\n .*)*", LOCKED, re.M):
        first, *hashes = re.split(r" \\\n +", pin)
        assert re.fullmatch(r"[\w.-]+==\S+( ; .*)?", first), first
        assert hashes, first
        assert all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", each) for each in hashes), first


def test_what_is_installed_is_what_is_required() -> None:
    for requirement in REQUIREMENTS:
        if requirement.extras or (requirement.marker and not requirement.marker.evaluate()):
            continue
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:  # of an extra that tests need not have
            continue
        assert requirement.specifier.contains(installed), requirement


@pytest.mark.parametrize(
    ("name", "vulnerable"),
    [
        ("aiohttp", "3.14.3"),
        ("jinja2", "3.1.5"),  # CVE-2025-27516
        ("marshmallow", "4.1.1"),  # CVE-2025-68480
        ("orjson", "3.11.5"),  # CVE-2025-67221
        ("tornado", "6.6.0"),  # percent-encoded paths; GHSA-mpf4-983q-p7j4 before 6.5.8
    ],
)
def test_no_version_is_allowed_that_an_advisory_names(name: str, vulnerable: str) -> None:
    (requirement,) = [each for each in REQUIREMENTS if each.name == name]
    assert not requirement.specifier.contains(vulnerable)


@pytest.mark.parametrize("folder", sorted(path.name for path in VENDOR.iterdir()))
def test_what_is_vendored_says_whose_and_which_it_is(folder: str) -> None:
    assert (VENDOR / folder / "LICENSE").read_text(encoding="utf-8").strip()
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", (VENDOR / folder / "VERSION").read_text())


def test_nothing_names_a_machine_or_where_packages_come_from() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: what belongs to the project cannot be told apart")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    found = []
    for path in map(Path, filter(None, listed.stdout.split("\0"))):
        if path.is_relative_to("static/vendor") or path == Path("tests/test_house.py"):
            continue
        if (ROOT / path).is_file():
            text = (ROOT / path).read_bytes().decode("utf-8", "ignore")
            found += [f"{path}: {match[0].strip()}" for match in OF_ONE_MACHINE.finditer(text)]
    assert not found


@pytest.mark.parametrize("name", [".venv", ".venv312"])
def test_an_environment_in_the_checkout_is_nobodys_code(tmp_path: Path, name: str) -> None:
    for path in (".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / path, tmp_path)
    (tmp_path / "ours.py").write_text("")
    (tmp_path / name / "lib").mkdir(parents=True)
    (tmp_path / name / "lib" / "theirs.py").write_text("import nothing,of,this,name")
    for command in (["ruff", "check", "."], ["ruff", "format", "--check", "."]):
        ruff = subprocess.run(
            [sys.executable, "-m", *command], cwd=tmp_path, capture_output=True, check=False, text=True
        )
        assert ruff.returncode == 0, ruff.stdout
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    listed = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard"], cwd=tmp_path, capture_output=True, check=True, text=True
    )
    assert listed.stdout.split() == [".gitignore", "ours.py", "pyproject.toml"]


def test_the_table_of_decisions_lists_every_decision_once_with_its_title() -> None:
    """A decision that is missing, or whose title differs, is not found by whoever reads only the table."""
    folder = ROOT / "docs" / "decisions"
    rows = re.findall(
        r"^\| \[(\d{4})\]\(([^)]+)\) \| (.+?) \| \d{4}-\d\d-\d\d \|", text_of("docs/decisions/README.md"), re.M
    )
    files = sorted(folder.glob("[0-9]*.md"))
    titles = [path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for path in files]
    assert rows == [(path.name[:4], path.name, title) for path, title in zip(files, titles, strict=True)]


def anchors_of(path: Path) -> set[str]:
    """The names by which GitHub links to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_between_documents_leads_to_a_heading_or_a_file() -> None:
    broken = []
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
            if "://" in link:
                continue
            name, _, anchor = link.partition("#")
            target = path.parent / name if name else path
            if not target.exists() or (anchor and anchor not in anchors_of(target)):
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert broken == []


def test_the_diagram_of_the_tables_has_every_table_and_no_other() -> None:
    drawn = set(re.findall(r"^    (\w+) \{", text_of("docs/architecture.md"), re.M))
    made, dropped = set(), set()
    for path in (ROOT / "migrations").glob("*.sql"):
        if ".rollback" not in path.name:
            text = path.read_text(encoding="utf-8")
            made |= set(re.findall(r"^CREATE TABLE (\w+)", text, re.M))
            dropped |= set(re.findall(r"^DROP TABLE (\w+)", text, re.M))
    assert drawn == made - dropped


def test_every_page_of_the_documentation_is_in_its_index() -> None:
    index = text_of("docs/README.md")
    pages = [path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md"]
    assert [name for name in pages if f"]({name})" not in index] == []


def test_the_documentation_names_every_hole_and_every_test_that_shows_one() -> None:
    text = text_of("docs/invariants.md")
    assert [rule for rule, hole in HOLES.items() if f"| {rule} | `{hole.test.__name__}` |" not in text] == []
    named = set(re.findall(r"`(test_\w+)`", text))
    there = {
        name for path in (ROOT / "tests").rglob("*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named - there == set()
