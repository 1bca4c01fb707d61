"""The command line: `ragst-sd demo`, also `python -m ragst_sd demo`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def _parser() -> argparse.ArgumentParser:
    from ragst_sd import __version__

    parser = argparse.ArgumentParser(
        prog="ragst-sd",
        description="Predict gene expression from H&E by retrieving measured tissue that looks alike.",
        epilog="In Python: import ragst_sd as rg",
    )
    parser.add_argument("--version", action="version", version=f"ragst-sd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="run the whole path on embedded synthetic tissue, offline",
        description="Hold one donor out, predict it from the others, and write the object, metrics and pictures.",
    )
    demo.add_argument("--out", type=Path, default=Path("ragst_sd_demo"), help="folder to write into (%(default)s)")
    demo.add_argument(
        "--data",
        type=Path,
        help="folder of real sections, <section>.h5ad and <section>.jpg, instead of synthetic tissue",
    )
    demo.add_argument("--donors", type=int, default=3, help="donors of the synthetic tissue (%(default)s)")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input is told in one line, without a traceback."""
    args = _parser().parse_args(arguments)
    from ragst_sd._demo import run_demo

    try:
        run_demo(args.out.resolve(), data=args.data, n_donors=args.donors, say=lambda line: print(line, flush=True))
    except (FileNotFoundError, FileExistsError, KeyError, ValueError) as error:
        print(f"ragst-sd demo: {error.args[0] if error.args else error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
