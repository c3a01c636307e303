"""lm-evaluation-harness with this project's methods: the model `resa`, and two tasks that need no network.

`python -m resa_bench.integrations.lm_eval run --model resa --model_args pretrained=PATH,method=resa --tasks resa_sums`
is `lm_eval` with both made known.
"""

from pathlib import Path

TASKS = Path(__file__).parent / "tasks"
"""The folder of the tasks, for `--include_path`."""
