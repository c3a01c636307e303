"""How commands end: each status means one thing, errors from outside are a line, ours are a traceback."""

from __future__ import annotations

import errno
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from resa_bench.kernels import AttentionShape, NotHere
from resa_bench.suites.cli import main, run_command
from resa_bench.suites.core import command, results
from resa_bench.suites.core.exits import (
    CLOSED,
    DONE,
    FAILED,
    FAULT,
    INTERRUPTED,
    MEANINGS,
    UNUSABLE,
    is_from_outside,
    line_of,
)
from resa_bench.suites.core.failure import CheckFailed, failure
from resa_bench.suites.core.results import append, check_place, read_rows
from resa_bench.suites.core.rows import Row
from resa_bench.suites.core.terminal import CONTROLS, PlainConsole
from rich.markup import escape
from rich.table import Table

DOCS = Path(__file__).parent.parent / "docs" / "exit-status.md"
LIST = ["micro", "--list", "--device", "cpu"]


def row(**changes: Any) -> Row:
    columns: dict[str, Any] = {
        "suite": "micro", "model": "m", "case": "m-b1-8k", "method": "torch-dense", "stage": "total", "context": 8192,
        "batch": 1, "q_heads": 4, "kv_heads": 2, "head_dim": 16, "status": "ok", "median_us": 10.0,
    }  # fmt: skip
    return Row(**(columns | changes))


# --- one meaning each -------------------------------------------------------------------------------------------------


def test_the_docs_say_what_the_program_says() -> None:
    lines = re.findall(r"^\| (\d+) \| (.*) \|$", DOCS.read_text(), re.MULTILINE)
    assert {int(status): meaning for status, meaning in lines} == MEANINGS


@pytest.mark.parametrize("words", [[], ["bench"], ["micro"], ["maths"]])
def test_help_lists_the_statuses(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--help"])
    out = capsys.readouterr().out
    assert all(f"{status:<4} {meaning}" in out for status, meaning in MEANINGS.items())


def raised_here() -> None:
    AttentionShape(1, 3, 2, 64)


def library_error() -> None:
    int("x")


def torch_error() -> None:
    torch.ones(2) @ torch.ones(3)


def no_memory() -> None:
    torch.empty(2**50, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("act", "status"),
    [
        pytest.param(raised_here, UNUSABLE, id="an-argument"),
        pytest.param(lambda: Path("/no/such/file").read_text(), UNUSABLE, id="a-file"),
        pytest.param(lambda: _raise(NotHere("the model is not here; fetch it")), UNUSABLE, id="not-here"),
        pytest.param(lambda: _raise(CheckFailed("off by 2")), FAILED, id="a-check"),
        pytest.param(no_memory, UNUSABLE, id="no-memory"),
        pytest.param(library_error, FAULT, id="a-library's-ValueError"),
        pytest.param(torch_error, FAULT, id="torch's-RuntimeError"),
        pytest.param(lambda: _raise(KeyError("x")), FAULT, id="KeyError"),
        pytest.param(lambda: _raise(KeyboardInterrupt()), INTERRUPTED, id="interrupted"),
    ],
)
def test_status(act: Any, status: int, capsys: pytest.CaptureFixture[str]) -> None:
    def run(given: Any, console: Any) -> int:
        act()
        return DONE

    assert run_command(run, {"command": "micro"}) == status
    error = capsys.readouterr().err
    assert ("Traceback" in error) == ("please report" in error) == (status == FAULT)
    if status != FAULT:
        assert error.startswith("resa-bench micro: ")
        assert len(error.splitlines()) <= 3  # folded at the console's width


def _raise(error: BaseException) -> None:
    raise error


def test_an_error_that_unpacking_raises_is_ours() -> None:
    with pytest.raises(ValueError, match="too many values") as stop:
        _, _ = [*range(3)]
    assert not is_from_outside(stop.value)


def test_places_are_told_with_what_helps() -> None:
    error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/micro.jsonl")
    assert line_of(error) == "No space left on device: runs/micro.jsonl; free some, or name another place (--output)"
    assert line_of(OSError(errno.ENOENT, os.strerror(errno.ENOENT), "x")) == "No such file or directory: x"


def test_an_interruption_while_libraries_are_imported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from resa_bench.suites import __main__ as entry

    class Slow(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "resa_bench.suites.cli", Slow("cli"))
    assert entry.main() == INTERRUPTED == entry.INTERRUPTED
    assert capsys.readouterr().err == "resa-bench: interrupted\n"


def test_a_library_that_is_not_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from resa_bench.suites import __main__ as entry

    class WithoutTorch(ModuleType):
        def __getattr__(self, name: str) -> Any:
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setitem(sys.modules, "resa_bench.suites.cli", WithoutTorch("cli"))
    assert entry.main() == UNUSABLE == entry.UNUSABLE
    assert capsys.readouterr().err == "resa-bench: torch is not here; pip install -e . brings what is needed\n"


# --- places -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a-file", "no-such-device", "a-folder-as-file"])
@pytest.mark.parametrize("suite", ["micro", "decode"])
def test_outputs_that_cannot_be_written_are_found_before_measuring(
    suite: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "run_cases", lambda *a, **k: pytest.fail("measured"))
    place = tmp_path / "place"
    if kind == "a-file":
        place.touch()
    elif kind == "no-such-device":
        place = Path("/proc/none")
    else:
        (place / f"{suite}.jsonl").mkdir(parents=True)
    model = [] if suite == "micro" else ["--model", "qwen2.5-7b", "--batch", "1"]
    assert main([suite, "--device", "cpu", "--context", "1K", *model, "--output", str(place)]) == UNUSABLE
    error = capsys.readouterr().err
    assert str(place)[:20] in error
    assert "Traceback" not in error


def test_a_place_is_left_as_it_was(tmp_path: Path) -> None:
    check_place(tmp_path / "new" / "micro.jsonl")
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "micro.jsonl").write_text("a line")
    check_place(tmp_path / "micro.jsonl")
    assert (tmp_path / "micro.jsonl").read_text() == "a line"


def test_a_disk_that_fills_up_leaves_whole_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "micro.jsonl"
    append(path, [row(case="first")])
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as stop:
        append(path, [row(case="second"), row(case="second", stage="attend")])
    assert stop.value.filename == str(path)
    assert path.read_bytes() == before
    with pytest.raises(OSError, match="No space left"):
        results.rewrite(path, [row(case="third")])
    assert path.read_bytes() == before
    with pytest.raises(OSError, match=r"No space left.*micro\.csv"):
        results.write_csv([row()], tmp_path / "micro.csv")
    assert [r.case for r in read_rows(path)] == ["first"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["micro.jsonl"]


def test_cpu_memory_that_is_out_is_oom() -> None:
    with pytest.raises(RuntimeError) as stop:
        no_memory()
    assert failure(stop.value)["status"] == "oom"
    assert failure(MemoryError())["status"] == "oom"
    assert failure(RuntimeError("mat1 and mat2 shapes"))["status"] == "failed"


# --- figures ----------------------------------------------------------------------------------------------------------


def test_rows_that_allow_no_figure_are_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`micro --context 256 --method torch-dense`: one context makes no curve. `bench` goes on to its second half."""
    ran: list[str] = []

    class Measured:
        def __init__(self, settings: Any) -> None: ...
        def stop(self) -> None: ...

        def run(self, case: Any, specs: Any, on_step: Any) -> list[Row]:
            ran.append(case.suite)
            return [
                row(suite=case.suite, case=case.slug, context=case.context, dtype=case.dtype, seed=case.seed,
                    method=spec.name, mean_us=10.0, **spec.columns())
                for spec in specs
            ]  # fmt: skip

    monkeypatch.setattr(command, "Worker", Measured)
    tiny = ["--device", "cpu", "--method", "torch-dense", "--output", str(tmp_path)]
    assert main(["micro", "--context", "256", *tiny]) == DONE
    assert main(["bench", "--context", "4K", *tiny, "--quick"]) == DONE
    assert ran == ["micro", "micro", "decode"]


# --- streams and text -------------------------------------------------------------------------------------------------


def shown(text: Any, **options: Any) -> str:
    stream = io.StringIO()
    PlainConsole(file=stream, width=200, **options).print(text, markup=False, highlight=False)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("\x1b[2Jgone", r"\x1b[2Jgone", id="escape"),
        pytest.param("\x1b]0;title\x07", r"\x1b]0;title", id="title"),
        pytest.param("a\rb", "ab", id="carriage-return"),
        pytest.param("\x9b31m", r"\x9b31m", id="c1"),
        pytest.param("\u202eabc", r"\u202eabc", id="direction"),
        pytest.param("\ud800", r"\ud800", id="surrogate"),
        pytest.param("[/red] é 漢 🚀", "[/red] é 漢 🚀", id="letters"),
    ],
)
def test_text_is_shown_as_text(text: str, expected: str) -> None:
    assert shown(text).strip() == expected
    assert not CONTROLS.search(shown(Table(escape(text)), force_terminal=False))


def run(words: list[str], stdout: Any, **more: Any) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "resa_bench.suites", *words]
    return subprocess.run(program, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, **more)


@pytest.mark.slow
def test_a_reader_that_left() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = run(LIST, writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (CLOSED, "")


@pytest.mark.slow
def test_without_stdout_and_on_one_that_takes_ascii() -> None:
    assert run(LIST, None, preexec_fn=lambda: os.close(1)).returncode == DONE
    done = run([*LIST, "--case", "漢"], subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == UNUSABLE
    assert "--case \\u6f22: no case matches" in done.stderr


def test_plots_go_where_they_can(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    append(tmp_path / "micro.jsonl", [row()])
    words = ["plots", str(tmp_path / "micro.jsonl"), "--output", str(tmp_path / "file" / "sub")]
    assert main(words) == UNUSABLE
    assert "Not a directory" in capsys.readouterr().err
