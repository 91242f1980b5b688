"""Do 20 steps still give the bits they gave? Prints a digest of each setting's losses, and compares it with a file's.

python -m bench.bits KEPT.json   writes the file where there is none, else fails where a digest differs.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SETTINGS = {
    "digits": "configs/digits.py:arch=mot,size=smoke",
    "transfusion": "configs/transfusion.py:arch=mot,size=smoke",
    "moe_fine": "configs/digits.py:arch=moe_fine,size=smoke",
}
NUMBERS = ("loss", "causal_loss", "grad_norm", "bits_per_byte", "experts", "tokens", "flops", "fill")  # not times


def digest(setting: str) -> str:
    """Of all numbers that 20 steps and their evaluations write, but for times."""
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, "-m", "mot", "train", f"--config={setting}", f"--config.run.root={root}"]
        command += ["--config.run.steps=20", "--config.run.eval_every=10", "--config.optim.warmup=5"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (metrics,) = Path(root).rglob("metrics.jsonl")
        rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
        rows = [row for row in rows if row.get("event") != "saved"]  # these come when a save ends
    kept = [{k: v for k, v in sorted(row.items()) if k.startswith(NUMBERS) and k != "tokens_per_s"} for row in rows]
    return hashlib.sha256(json.dumps(kept).encode()).hexdigest()


def main() -> int:
    found = {name: digest(setting) for name, setting in SETTINGS.items()}
    print(json.dumps(found, indent=1))
    file = Path(sys.argv[1])
    if not file.exists():
        file.write_text(json.dumps(found), encoding="utf-8")
        return 0
    wrong = [name for name, kept in json.loads(file.read_text(encoding="utf-8")).items() if found[name] != kept]
    print(f"other bits: {', '.join(wrong)}" if wrong else "the same bits")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
