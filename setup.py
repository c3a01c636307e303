"""What pyproject.toml cannot say: the packages, the version by git's tags, the long description, and the build's stamp.

The folders at the top are packages of one import name. (`kernels` alone is a name that other libraries probe for;
`profiling` is the standard library's from Python 3.15 on.) A wheel and an sdist hold the commit they were built from.
"""

import re
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent
SPEC = spec_from_file_location("source", ROOT / "profiling" / "source.py")
SPEC.loader.exec_module(source := module_from_spec(SPEC))
URL = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]


def stamp(folder: Path) -> None:
    """Write into a folder of profiling/ what its source.py says about these sources."""
    (folder / source.BUILT).write_text(source.built_stamp(), encoding="utf-8")


class StampedWheel(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            stamp(Path(self.build_lib) / "resa_bench" / "profiling")


class StampedSdist(sdist):
    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        stamp(Path(base_dir) / "profiling")


def long_description() -> str:
    """The README with absolute links: a package index has none of the files beside it."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    kinds = ((r"(!\[[^\]]*\]\()", "raw"), (r"((?<!!)\[[^\]]*\]\()", "blob"))
    for link, kind in kinds:
        text = re.sub(link + r"(?!https?://|#|mailto:)", rf"\g<1>{URL}/{kind}/main/", text)
    return re.sub(r"(\]\()(?=#)", rf"\g<1>{URL}", text)


TOP = source.PACKAGES
DATA = ["py.typed", "*.cu", "*.cuh", "*.css", "*.html", "*.j2", "*.js", "*.json", "assets/*", "tasks/*", "LICENSE*"]
PACKAGES = [f"resa_bench.{name}" for top in TOP for name in (top, *(f"{top}.{inner}" for inner in find_packages(top)))]
setup(
    version=source.package_version(),
    long_description=long_description(),
    long_description_content_type="text/markdown",
    cmdclass={"build_py": StampedWheel, "sdist": StampedSdist},
    packages=PACKAGES,
    package_dir={f"resa_bench.{top}": top for top in TOP},
    package_data=dict.fromkeys(PACKAGES, DATA),
)
