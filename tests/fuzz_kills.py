"""kill -9 at random moments of a suite, then the same command again: what is on the disk, and what it ends with.

Moments are spread over what is measured: a run that is left alone shows when its files grow. A kill waits until they
have grown k times, then for a part of the time that passed there until the next growth.

python tests/fuzz_kills.py SUITE KILLS [FIRST SEED [early]]      one suite, a line a kill

`early`: the command alone is killed, while the process that measures imports its libraries: an orphan was found there.
docs/notes/faults.md says which suites were killed, how often and from which seeds.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from resa_bench.suites.core.results import read_file
from resa_bench.suites.core.rows import identity
from resa_bench.suites.maths.records import read_records

TINY = ["--model", "MODEL"]
COMMANDS: dict[str, list[str]] = {
    "micro": ["--q-heads", "4", "--kv-heads", "2", "--head-dim", "16", "--context", "128", "256", "512", "--budget-s",
              "0.1", "--method", "resa-torch", "torch-dense", "--block-size", "16", "--no-plots", "--no-warm",
              "--no-eager"],
    "decode": [*TINY, "--quick", "--context", "256", "320", "512", "--method", "resa-torch", "torch-dense",
               "--seconds", "0.1", "--no-plots"],
    "quality": [*TINY, "--quick", "--prompt-tokens", "256", "--steps", "64", "--source", "text", "own", "--no-plots"],
    "tasks": [*TINY, "--quick", "--task", "divergence", "--context", "512", "1K", "--steps", "16", "--no-plots"],
    "lossless": [*TINY, "--quick", "--prompt-tokens", "256", "--tokens", "96"],
    "gsr": [*TINY, "--candidates", "2", "--lengths", "60", "100", "--summary-tokens", "8", "--answer", "60",
            "--prompt-tokens", "64", "--run", "full"],
    "linear": ["--quick", "--model", "qwen2.5-1.5b", "--kernel", "ours", "torch-mm"],
    "maths": [*TINY, "--sums", "16", "--max-tokens", "48", "--batch", "4", "--method", "torch-dense", "resa-torch"],
}  # fmt: skip
"""Some seconds of each suite."""
CEILINGS = Path(__file__).with_name("known_ceilings.py")  # which take longer to measure than all rows of a suite
VICTIMS = ("main", "children", "all")
ORPHAN_SECONDS = 10.0  # a process that computes may take a moment to be gone
LOOK_SECONDS = 0.02
AT_ONCE = 0.25  # of the kills come within AT_ONCE_SECONDS of a growth: while a file is written or replaced
AT_ONCE_SECONDS = 0.05
EARLY_SECONDS = 5.0  # in which a measuring process imports its libraries
LAST_WEIGHT = 0.3  # of kills after the last growth, where tables are printed


def make_checkpoint(folder: Path) -> None:
    """A model of two layers and random weights, with a tokenizer of bytes."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>"])
    torch.manual_seed(0)
    transformers.utils.logging.disable_progress_bar()
    config = transformers.LlamaConfig(
        num_hidden_layers=2, hidden_size=64, intermediate_size=64, vocab_size=288, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=4096, bos_token_id=256, eos_token_id=257,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    library.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": "{{ messages[0].content }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@dataclass
class Held:
    """What a run has left: measurements by identity, faults of the file in words."""

    measured: Counter[Any]
    failed: int
    faults: list[str]


class Killer:
    """A suite's command in a folder of its own."""

    def __init__(self, suite: str, root: Path) -> None:
        self.suite, self.root = suite, root
        root.mkdir(parents=True, exist_ok=True)
        if not (root / "model").exists():
            make_checkpoint(root / "model")
        self.words = [str(root / "model") if word == "MODEL" else word for word in COMMANDS[suite]]
        process = self.start("base")
        self.gaps = self.growths("base", process)
        self.pace = 1.0  # of the latest run: its time by that of the base
        status = process.wait()
        self.base = self.held("base")
        if status or self.base.faults or not self.base.measured:
            log = (root / "base.log").read_text()[-2000:]
            raise RuntimeError(f"{suite} does not run through: exit status {status}, {self.base}\n{log}")

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """The command, in a session of its own, with the output `name`."""
        program = [sys.executable, "-m", "resa_bench.suites", self.suite, "--device", "cpu", *self.words]
        with (self.root / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [*program, "--output", str(self.root / name)], stdout=log, stderr=log, start_new_session=True,
                cwd=self.root, env=os.environ | {"RESA_BENCH_PLUGINS": str(CEILINGS)},
            )  # fmt: skip

    def size(self, name: str) -> int:
        """Bytes of all rows and records that the output holds."""
        return sum(path.stat().st_size for path in (self.root / name).rglob("*.jsonl"))

    def growths(self, name: str, process: subprocess.Popen[bytes], most: int | None = None) -> list[float]:
        """Seconds between the run's start, each growth of its files and its end; ends after `most` growths."""
        gaps, last, size = list[float](), time.monotonic(), 0
        while process.poll() is None and (most is None or len(gaps) < most):
            time.sleep(LOOK_SECONDS)
            if (now := self.size(name)) != size:
                gaps.append(time.monotonic() - last)
                last, size = time.monotonic(), now
        return gaps if most is not None else [*gaps, time.monotonic() - last]

    def held(self, name: str) -> Held:
        """What the output holds; more than one torn line is a fault, and so is a measurement that is there twice."""
        path, faults = self.root / name / f"{self.suite}.jsonl", []
        counts: Counter[Any] = Counter()
        failed = 0
        if path.exists():
            contents = read_file(path)
            if len(contents.unreadable) > 1:
                faults.append(f"{len(contents.unreadable)} lines cannot be read")
            counts.update(identity(row) for row in contents.rows if row.status not in ("failed", "oom"))
            failed = sum(row.status in ("failed", "oom") for row in contents.rows)
        if (folder := path.with_suffix("")).is_dir():
            counts.update(record.key for record in read_records(folder))
            for records in folder.glob("*.jsonl"):
                lines = records.read_bytes().split(b"\n")[:-1]
                if len(set(lines)) < len(lines):
                    faults.append(f"{records.name} has a line twice")
        twice = [key for key, count in counts.items() if count > 1]
        if twice:
            faults.append(f"{len(twice)} measurements are there twice: {twice[0]}")
        return Held(counts, failed, faults)

    def kill(self, seed: int, early: bool = False) -> tuple[str, list[str]]:
        """Kill at a moment drawn from the seed, look, go on, look again: what happened, and what was wrong.

        Args:
            early: kill the command alone, so many seconds after its first process has started.
        """
        rng, name = random.Random(seed), f"kill-{seed}"
        weights = [*[1.0] * (len(self.gaps) - 1), LAST_WEIGHT]
        victim, (growths,) = rng.choice(VICTIMS), rng.choices(range(len(self.gaps)), weights)
        share = rng.random() if growths else rng.random() ** 0.5  # less of the imports
        at_once = growths and rng.random() < AT_ONCE
        shutil.rmtree(self.root / name, ignore_errors=True)
        process = self.start(name)
        if early:
            victim, growths = "main", 0
            while process.poll() is None and not descendants(process.pid):
                time.sleep(LOOK_SECONDS)
        if growths:
            self.pace = sum(self.growths(name, process, growths)) / sum(self.gaps[:growths])
        room = EARLY_SECONDS if early else AT_ONCE_SECONDS if at_once else self.gaps[growths] * self.pace
        after = share * room
        with suppress(subprocess.TimeoutExpired):
            process.wait(after)
        children = descendants(process.pid)
        targets = {"main": [process.pid], "children": children, "all": [process.pid, *children]}[victim]
        for target in targets:
            with suppress(ProcessLookupError):
                os.kill(target, signal.SIGKILL)
        process.wait()
        faults = [f"process {child} outlives its parent" for child in children if not has_ended(child)]
        left = self.held(name)
        status = self.start(name).wait()
        final = self.held(name)
        faults += [*(f"after the kill: {fault}" for fault in left.faults), *final.faults]
        if status or final.failed:
            failed = f"the run that goes on ends with {status}, {final.failed} rows failed"
            faults.append(f"{failed}\n{(self.root / f'{name}.log').read_text()[-1500:]}")
        if lost := set(left.measured) - set(final.measured):
            faults.append(f"{len(lost)} measurements of before the kill are lost: {next(iter(lost))}")
        if missing := set(self.base.measured) - set(final.measured):
            faults.append(f"{len(missing)} measurements are missing: {next(iter(missing))}")
        if more := set(final.measured) - set(self.base.measured):
            faults.append(f"{len(more)} measurements that the whole run has not: {next(iter(more))}")
        since = "its first process" if early else f"growth {growths} of {len(self.gaps) - 1}"
        moment = f"{after:.2f} s after {since}"
        text = f"{self.suite}, seed {seed}: {victim} killed {moment}; "
        return text + f"{len(left.measured)} of {len(self.base.measured)} there", faults


def descendants(pid: int) -> list[int]:
    """Processes that a process started, and theirs."""
    try:
        children = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [*children, *(below for child in children for below in descendants(child))]


def has_ended(pid: int, seconds: float = ORPHAN_SECONDS) -> bool:
    """Whether a process ends within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def kill_suites() -> int:
    """The exit status: 1 if anything was wrong."""
    suite, early = sys.argv[1], sys.argv[4:] == ["early"]
    kills, *first = map(int, sys.argv[2:4])
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        killer = Killer(suite, Path(folder))
        begin = first[0] if first else 0
        for seed in range(begin, begin + kills):
            text, faults = killer.kill(seed, early)
            print(text, *(f"\n  {fault}" for fault in faults), flush=True)
            wrong += bool(faults)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(kill_suites())
