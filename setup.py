"""The folders at the top are packages of one import name, found here so that a new folder needs no list.

(`kernels` alone is a name that other libraries probe for; `profiling` belongs to the standard library from Python 3.15.)
"""

from setuptools import find_packages, setup

TOP = ("kernels", "baselines", "profiling", "suites", "plots")

setup(
    packages=[
        f"resa_bench.{name}" for top in TOP for name in (top, *(f"{top}.{inner}" for inner in find_packages(top)))
    ],
    package_dir={f"resa_bench.{top}": top for top in TOP},
)
