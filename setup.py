"""The folders at the top are packages of one import name, found here so that a new folder needs no list.

(`kernels` alone is a name that other libraries probe for; `profiling` is the standard library's from Python 3.15 on.)
A built package holds the commit that it was built from.
"""

import sys
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
TOP = ("kernels", "baselines", "profiling", "suites", "plots", "integrations")


class Stamped(build_py):
    """Writes beside profiling/source.py what it gives about these sources."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        sys.path.insert(0, str(ROOT / "profiling"))
        import source

        target = Path(self.build_lib) / "resa_bench" / "profiling" / source.BUILT
        target.write_text(source.built_stamp())


setup(
    cmdclass={"build_py": Stamped},
    packages=[
        f"resa_bench.{name}" for top in TOP for name in (top, *(f"{top}.{inner}" for inner in find_packages(top)))
    ],
    package_dir={f"resa_bench.{top}": top for top in TOP},
)
