"""A process that measures or judges ends with the command that started it, even where that is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_kills import has_ended

STARTER = """
import multiprocessing as mp, time
from resa_bench.suites import lifetime

def child(pipe):
    pipe.send(mp.current_process().pid)
    BODY
    while True:
        pass

if __name__ == "__main__":
    context = mp.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=child, args=(there,)).start()
    print(here.recv(), flush=True)
    time.sleep(600)
"""


def survives(folder: Path, program: str) -> bool:
    """Whether a process that computes, whose id a program prints, outlives that program, which is killed."""
    script = folder / "starter.py"
    script.write_text(program)
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None
        pid = int(started.stdout.readline())
        started.kill()
    return not has_ended(pid)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("lifetime.end_with_starter()", id="by-the-kernel"),
        pytest.param("lifetime.end_with_parent = int; lifetime.end_with_starter()", id="by-the-pipe"),
        pytest.param("time.sleep(1); lifetime.end_with_parent = int; lifetime.end_with_starter()", id="gone-already"),
    ],
)
def test_a_started_process_ends_with_its_parent(body: str, tmp_path: Path) -> None:
    assert not survives(tmp_path, STARTER.replace("BODY", body))


MEASURING = """
import os, time
from types import SimpleNamespace
from resa_bench.suites.core import worker

def measure(case, specs, bench, on_step):
    print(os.getpid(), flush=True)
    while True:
        pass

def serve(pipe, settings):
    worker.make_bench = lambda settings: SimpleNamespace(ceilings=None, environment=SimpleNamespace(device="cpu"))
    worker.get_suite = lambda name: SimpleNamespace(run=measure)
    worker.serve(pipe, settings)

if __name__ == "__main__":
    worker.Worker(worker.Settings("cpu", "test"), serve).run(SimpleNamespace(suite="micro"), (), print)
"""


IMPORTING = """
import os
from resa_bench.suites.core import worker

def importing():
    print(os.getpid(), flush=True)
    while True:
        pass

class Heavy:
    def __reduce__(self):
        return importing, ()

if __name__ == "__main__":
    worker.Worker(worker.Settings("cpu", "test", Heavy())).start()
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [MEASURING, IMPORTING], ids=["measures", "imports"])
def test_a_measuring_process_ends_with_the_command(program: str, tmp_path: Path) -> None:
    assert not survives(tmp_path, program)
