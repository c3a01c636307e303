"""The tasks' data: the JSON Lines files beside this one. lm_eval imports this file by its path, outside the package."""

from pathlib import Path
from typing import Any

import datasets


def load(file: str, **unused: Any) -> dict[str, datasets.Dataset]:
    """The questions of one of the files, as lm_eval's `custom_dataset` wants them."""
    return {"test": datasets.Dataset.from_json(str(Path(__file__).parent / file))}
