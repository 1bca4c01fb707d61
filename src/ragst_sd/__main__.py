"""Predict gene expression from H&E by retrieving measured tissue that looks alike.

first steps:
  ragst-sd demo                               the whole path on drawn tissue, about a minute, no network
  ragst-sd COMMAND --help                     what a command takes, with examples
  python -c "import ragst_sd as rg; help(rg.tl.predict)"

in Python:
  import ragst_sd as rg                       rg.pp rg.tl rg.pl rg.get rg.io rg.datasets rg.settings
"""

from __future__ import annotations

import argparse
import inspect
import logging
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _parser() -> argparse.ArgumentParser:
    from ragst_sd import __version__

    parser = _described(argparse.ArgumentParser, str(__doc__), prog="ragst-sd")
    parser.add_argument("--version", action="version", version=f"ragst-sd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    def add_command(run: Callable[[argparse.Namespace], None], help: str) -> argparse.ArgumentParser:
        command = _described(commands.add_parser, str(inspect.getdoc(run)), name=run.__name__.strip("_"), help=help)
        command.set_defaults(run=run)
        return command

    demo = add_command(_demo, "run the whole path on embedded synthetic tissue, offline")
    demo.add_argument("--out", type=Path, default=Path("ragst_sd_demo"), help="folder to write into (%(default)s)")
    demo.add_argument(
        "--data",
        type=Path,
        help="folder of real sections, <section>.h5ad and <section>.jpg, instead of synthetic tissue",
    )
    demo.add_argument("--donors", type=int, default=3, help="donors of the synthetic tissue (%(default)s)")
    build = add_command(_build, "build the reference that a recipe describes")
    build.add_argument("recipe", type=Path, help="the recipe, a YAML file")
    build.add_argument(
        "--out", type=Path, required=True, help="where the reference is written, such as reference.zarr.zip"
    )
    build.add_argument("--overwrite", action="store_true", help="replace a reference of another recipe")
    build.add_argument("--drop-parts", action="store_true", help="remove the kept embeddings when all is done")
    build.add_argument("--device", help="torch device of the encoder, such as cpu or cuda")
    build.add_argument("--workers", type=int, default=0, help="threads that read pictures ahead (%(default)s)")
    inspection = add_command(_inspect, "print the data card of a reference")
    inspection.add_argument("reference", type=Path, help="a reference, as `rg.io.write_reference` writes it")
    inspection.add_argument("--out", type=Path, help="also write the card, with pictures, into this folder")
    return parser


def _described(make: Callable[..., argparse.ArgumentParser], text: str, **options: str) -> argparse.ArgumentParser:
    """A parser whose help begins with the first paragraph of a docstring and ends with the others."""
    description, _, epilog = text.partition("\n\n")
    layout = argparse.RawDescriptionHelpFormatter
    return make(description=description, epilog=epilog, formatter_class=layout, **options)


def _demo(args: argparse.Namespace) -> None:
    """Hold one donor out, predict it from the others, and write the object, metrics and pictures.

    for example:
      ragst-sd demo                               three drawn donors, the third held out
      ragst-sd demo --donors 5 --out demo5        with more donors to learn from
      ragst-sd demo --data my_sections            on your own: B1.h5ad beside B1.jpg, B2.h5ad beside B2.jpg, ...

    An h5ad holds counts, pixel coordinates in obsm["spatial"] and the donor in obs["donor"] (or
    uns["meta"]["patient"]); two donors at least.
    """
    from ragst_sd._demo import run_demo

    run_demo(args.out.resolve(), data=args.data, n_donors=args.donors, say=lambda line: print(line, flush=True))


def _build(args: argparse.Namespace) -> None:
    """Build a reference from a recipe (YAML). Stopped at any moment, it goes on when it is called again.

    for example:
      ragst-sd build bulb.yaml --out bulb.zarr.zip
      ragst-sd build bulb.yaml --out bulb.zarr.zip --device cuda --workers 4

    the least that a recipe holds:
      version: 1
      sources:
        - dataset: her2st       # a name of rg.datasets.catalog(), or
        - folder: my_sections   # a folder of <section>.h5ad beside <section>.jpg
    """
    from ragst_sd.io import build_recipe

    with _printed("ragst_sd.io._build_recipe"):
        build_recipe(
            args.recipe,
            path=args.out,
            overwrite=args.overwrite,
            keep_parts=not args.drop_parts,
            device=args.device,
            num_workers=args.workers,
        )


def _inspect(args: argparse.Namespace) -> None:
    """Print the data card of a reference as Markdown: composition, licences, citations, gaps.

    for example:
      ragst-sd inspect bulb.zarr.zip
      ragst-sd inspect bulb.zarr.zip --out bulb_card  the card with its pictures, as files
    """
    from ragst_sd.io import data_card, read_reference

    print(data_card(read_reference(args.reference), path=args.out), end="")


@contextmanager
def _printed(name: str) -> Iterator[None]:
    """Print what a logger tells, line by line."""
    logger, handler = logging.getLogger(name), logging.StreamHandler(sys.stdout)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input is told in one line, without a traceback."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
    except (OSError, ImportError, KeyError, TypeError, ValueError) as error:
        # An error of the system has a number as its first argument.
        message = error if isinstance(error, OSError) and error.errno is not None else (error.args or [error])[0]
        print(f"ragst-sd {args.command}: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"ragst-sd {args.command}: stopped.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
