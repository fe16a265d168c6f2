"""train.py or eval.py with another design of mscnn2: for the ablations of bench/accuracy.py.

    python bench/accuracy_ablated.py train.py 'num_heard=1' -- --config configs/demo-large.toml ...

Fields of mstag.models.mscnn2.Design and their values (Python literals) come before "--", the
arguments of the script after it. What it leaves is not to be loaded as an mscnn2.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accuracy_rows import Contestant, designed

import eval as eval_script
import train


def main() -> None:
    """Changes the design, then does what the script does."""
    end = sys.argv.index("--")
    script, *changes = sys.argv[1:end]
    command = {"train.py": train.main, "eval.py": eval_script.main}[script]
    with designed(Contestant(name="ablated", settings=(), design=tuple(changes))):
        command(sys.argv[end + 1 :])


if __name__ == "__main__":
    main()
