"""Predict gene expression from H&E by retrieving measured tissue that looks alike.

first steps:
  ragst-sd demo                               the whole path on drawn tissue, about a minute, no network
  ragst-sd doctor                             what is installed, what can run here, what is missing
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

from ragst_sd._validate import message_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def _parser() -> argparse.ArgumentParser:
    from ragst_sd import __version__

    parser = _described(argparse.ArgumentParser, str(__doc__), prog="ragst-sd")
    parser.add_argument("--version", action="version", version=f"ragst-sd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")

    def add_command(run: Callable[[argparse.Namespace], int | None], help: str) -> argparse.ArgumentParser:
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
    build.add_argument("recipe", help="a recipe of the package, such as breast, or a YAML file of your own")
    build.add_argument("--out", type=Path, help="where the reference is written; RECIPE.zarr.zip if left out")
    build.add_argument("--overwrite", action="store_true", help="replace a reference of another recipe")
    build.add_argument("--drop-parts", action="store_true", help="remove the kept embeddings when all is done")
    build.add_argument("--device", help="torch device of the encoder, such as cpu or cuda")
    build.add_argument("--workers", type=int, default=0, help="threads that read pictures ahead (%(default)s)")
    inspection = add_command(_inspect, "print the data card of a reference")
    inspection.add_argument("reference", type=Path, help="a reference, as `rg.io.write_reference` writes it")
    inspection.add_argument("--out", type=Path, help="also write the card, with pictures, into this folder")
    embed = add_command(_embed, "embed slides and stores, each into a store of its own")
    _add_batch(embed, "embedded")
    embed.add_argument("--model", default="texture", help="encoder: a name, or the path of an ONNX file (%(default)s)")
    embed.add_argument("--mean", type=float, nargs=3, help="mean of the encoder's input, for red, green and blue")
    embed.add_argument("--std", type=float, nargs=3, help="spread of the encoder's input")
    embed.add_argument("--tile-px", type=int, default=224, help="edge of a tile in pixels (%(default)s)")
    embed.add_argument("--mpp", type=float, default=0.5, help="microns per pixel of a tile (%(default)s)")
    embed.add_argument(
        "--context", type=float, nargs="+", help="fields of view, in tiles; the encoder's own if left out"
    )
    predict = add_command(_predict, "predict slides and stores from a reference, each into a store of its own")
    _add_batch(predict, "predicted")
    predict.add_argument("--reference", type=Path, required=True, help="a fitted reference")
    predict.add_argument(
        "--model", help="where the encoder of the reference is, if its name does not tell: an ONNX file"
    )
    predict.add_argument("--donor", help="donor of all inputs, whose own rows are left out; a new one if left out")
    predict.add_argument("--genes", nargs="+", help="genes to predict; all if left out")
    predict.add_argument("--n-neighbors", type=int, help="rows cited per spot; what was fitted if left out")
    predict.add_argument("--intervals", type=float, help="coverage of intervals, such as 0.8; none if left out")
    check = add_command(_doctor, "say what is installed, which encoders can run here, and what is missing")
    check.add_argument("--model", help="load this encoder and embed one tile, downloading its weights if need be")
    return parser


def _add_batch(command: argparse.ArgumentParser, out: str) -> None:
    """Add the arguments that `embed` and `predict` share."""
    command.add_argument("inputs", type=Path, nargs="+", help="slides, SpatialData stores, and folders of them")
    command.add_argument("--out", type=Path, default=Path(out), help="folder of the new stores (%(default)s)")
    command.add_argument("--image-mpp", type=float, help="microns per pixel of the images, if they do not state it")
    command.add_argument("--image-key", help="image of stores that have several")
    command.add_argument("--table-key", help="table of stores that have several")
    command.add_argument("--keep-pixels", action="store_true", help="copy a slide's pixels, instead of an overview")
    command.add_argument(
        "--model-kwargs",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="arguments of the encoder, such as checkpoint_path=FILE, or output=NAME of an ONNX file",
    )
    command.add_argument("--device", help="torch device, such as cpu or cuda")
    command.add_argument("--workers", type=int, default=1, help="threads that read pictures ahead (%(default)s)")


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
      ragst-sd build breast                       a recipe of the package: rg.datasets.references() lists them
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
            path=args.out or f"{Path(args.recipe).stem}.zarr.zip",
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


def _embed(args: argparse.Namespace) -> int:
    """Embed slides and stores, each into a store of its own. What is done and unchanged is skipped.

    for example:
      ragst-sd embed slides
      ragst-sd embed a.svs b.zarr --out embedded --model uni2 --device cuda
      ragst-sd embed slides --out embedded --model own.onnx --model-kwargs output=features

    A slide gets tiles over its tissue; the spots of a store are embedded as they are. An input is one line:
    what was done, or why it failed. The others go on, and the exit code is 1 if one failed.
    """
    from ragst_sd._shell import embed_files

    with _printed("ragst_sd._shell"):
        return embed_files(args)


def _predict(args: argparse.Namespace) -> int:
    """Predict slides and stores from a reference, each into a store of its own. What is done and unchanged is skipped.

    for example:
      ragst-sd predict slide.svs --reference breast.zarr.zip
      ragst-sd predict embedded --reference bulb.zarr.zip --out predicted --genes EPCAM KRT8 --intervals 0.8

    Tiles are laid and embedded as the reference was; stores of `ragst-sd embed` are not embedded again. The result is
    the table "predicted" of each store. The exit code is 1 if an input failed.
    """
    from ragst_sd._shell import predict_files

    with _printed("ragst_sd._shell"):
        return predict_files(args)


def _doctor(args: argparse.Namespace) -> int:
    """Say what is installed, which encoders can run here, how much of this machine may be used, and what is missing.

    for example:
      ragst-sd doctor
      ragst-sd doctor --model uni2                does this encoder run here?
    """
    from ragst_sd._doctor import doctor, try_encoder

    lines, code = (try_encoder(args.model), 0) if args.model else doctor()
    print("\n".join(lines))
    return code


class _Printer(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        """Print a line at once; unlike a stream of logging, an error if nobody reads any more."""
        print(self.format(record), flush=True)


@contextmanager
def _printed(name: str) -> Iterator[None]:
    """Print what a logger tells, line by line."""
    logger, handler = logging.getLogger(name), _Printer(logging.INFO)
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; bad input is told in one line, without a traceback."""
    args = _parser().parse_args(arguments)
    try:
        return args.run(args) or 0
    except (OSError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        print(f"ragst-sd {args.command}: {message_of(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"ragst-sd {args.command}: stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
