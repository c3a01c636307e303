"""What the source tree holds beyond its commit."""

from __future__ import annotations

import subprocess
from hashlib import sha1
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def changes_digest() -> str:
    """A short hash of what the tree holds beyond its commit, new Python files included."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, check=False).stdout

    digest = sha1(git("diff", "HEAD"))
    for name in git("ls-files", "--others", "--exclude-standard", "-z", "*.py").split(b"\0"):
        file = ROOT / name.decode()
        if name and file.is_file():
            digest.update(name + file.read_bytes())
    return digest.hexdigest()[:6]
