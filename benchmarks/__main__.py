"""Run every benchmark that has a target and print one table: `python -m benchmarks [--only NAME ...] [--quick]`.

    python -m benchmarks --only seconds --set busy=2 --write docs/scaling.md

A script of this folder takes part if it has a function `results()` that returns lines with `name`, `value`, `target`, `unit` and
`passed`; those for a GPU only where there is one. Each runs in a process of its own, so that neither memory nor threads of one are seen by another. `--quick` takes small
sizes, which show that the scripts run; their figures say little.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from lines import reached, shown  # noqa: E402

# Smaller sizes, by script. A script that is not named here is too long for a quick run.
QUICK = {
    "tiles": {"edge": 3000, "tiles": 300, "subset": 100, "repeats": 1},
    "search": {"queries": 100, "rows": 20_000, "real_rows": 0, "repeats": 1},
    "prediction": {"spots": 32, "rows": 200, "genes": 1000, "sizes": [64, 128]},
    "encoders": {
        "texture_tiles": 16,
        "network_tiles": 4,
        "overlap_tiles": 32,
        "edge": 1024,
        "networks": ["mobilenetv2_100"],
        "repeats": 1,
    },
    "large_reference": {"rows": 2000},
    "seconds": {"scale": 0.02, "only": ["fit_small", "evaluate", "predict", "explain"]},
}
CODE = "import json, sys; sys.path.insert(0, {folder!r}); import {name} as m; print('\\n@' + json.dumps(m.results(**json.loads({given!r}))))"


def scripts() -> list[str]:
    """Names of the scripts that have results."""
    names = [path.stem for path in HERE.glob("*.py") if path != Path(__file__) and "\ndef results(" in path.read_text()]
    return sorted(name for name in names if not name.startswith("gpu_") or torch.cuda.is_available())


def run(name: str, *, quick: bool, limit: float | None, asked: dict | None = None) -> list[dict]:
    """Lines of one script; one line that says so if it fails."""
    given = (QUICK.get(name, {}) if quick else {}) | (asked or {})
    code = CODE.format(folder=str(HERE), name=name, given=json.dumps(given))
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return [failure(name, f"not done after {limit:.0f} s")]
    lines = [line for line in done.stdout.splitlines() if line.startswith("@")]
    if done.returncode or not lines:
        return [failure(name, (done.stderr.strip().splitlines() or ["no result"])[-1])]
    return [{**line, "script": name} for line in json.loads(lines[-1][1:])]


def failure(name: str, why: str) -> dict:
    return {"script": name, "name": f"failed: {why}", "value": float("nan"), "target": "", "unit": "", "passed": False}


def table(found: list[dict]) -> str:
    """The lines as Markdown; a reader sees at once what was missed."""
    out = ["| script | what | value | target | reached |", "|---|---|---|---|---|"]
    out += [f"| {r['script']} | {r['name']} | {shown(r)} | {r['target']} | {reached(r)} |" for r in found]
    return "\n".join(out)


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and say by the exit status whether every target was reached."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=scripts(), help="some of the scripts")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--limit", type=float, help="seconds after which a script is stopped")
    parser.add_argument(
        "--threads", type=int, help="threads of each script; as many as there are processors if left out"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="NAME=VALUE", help="arguments of `results` of the scripts, as JSON"
    )
    parser.add_argument(
        "--write", type=Path, help="page whose table is replaced: that of the script, if only one is named, or `all`"
    )
    args = parser.parse_args(arguments)
    asked = {name: json.loads(value) for name, value in (pair.split("=", 1) for pair in args.set)}
    os.environ["OMP_NUM_THREADS"] = str(args.threads or os.cpu_count() or 1)
    names = args.only or [name for name in scripts() if not args.quick or name in QUICK]
    lines: list[dict] = []
    for name in names:
        start = time.perf_counter()
        lines += run(name, quick=args.quick, limit=args.limit, asked=asked)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    print(table(lines))
    if args.write:
        from real_sections import write_between_markers

        write_between_markers(args.write, names[0] if len(names) == 1 else "all", table(lines))
    return int(any(line["passed"] is False for line in lines))


if __name__ == "__main__":
    sys.exit(main())
