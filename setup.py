"""Puts the folders beside the package into the wheel; everything else is in setup.cfg."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithAssets(build_py):
    """Copies them to ``notifier/_assets``, where `notifier.install` finds them; an editable install has them."""

    def run(self) -> None:
        """Copy the package, then the folders."""
        super().run()
        if not self.editable_mode:
            for folder in ("migrations", "static", "templates"):
                self.copy_tree(folder, str(Path(self.build_lib) / "notifier" / "_assets" / folder))


setup(cmdclass={"build_py": BuildWithAssets})
