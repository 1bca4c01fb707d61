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
from typing import TYPE_CHECKING, Any

from ragst_sd._validate import told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ragst_sd._shell import Batch


# What a type is called in `_commands.yaml`.
_TYPES = {"path": Path, "int": int, "float": float}


def _parser() -> argparse.ArgumentParser:
    import yaml

    from ragst_sd import __version__

    parser = _described(argparse.ArgumentParser, str(__doc__), prog="ragst-sd")
    parser.add_argument("--version", action="version", version=f"ragst-sd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    described = yaml.safe_load(Path(__file__).with_name("_commands.yaml").read_text(encoding="utf-8"))
    for name, about in described["commands"].items():
        run = globals()[f"_{name}"]
        command = _described(commands.add_parser, str(inspect.getdoc(run)), name=name, help=about["help"])
        command.set_defaults(run=run)
        _add_arguments(command, about["arguments"])
    return parser


def _add_arguments(command: argparse.ArgumentParser, arguments: list[Any]) -> None:
    for first, *rest in arguments:
        if not isinstance(first, str):
            _add_arguments(command, [first, *rest])
            continue
        options = dict(rest[0])
        if "type" in options:
            options["type"] = _TYPES[options["type"]]
        command.add_argument(first, **options)


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

    tiles = {name: getattr(args, name) for name in ("mean", "std", "tile_px", "mpp", "context")}
    return embed_files(_batch(args), model=args.model, model_kwargs=_named(args.model_kwargs), tiles=tiles)


def _predict(args: argparse.Namespace) -> int:
    """Predict slides and stores from a reference, each into a store of its own. What is done and unchanged is skipped.

    for example:
      ragst-sd predict slide.svs --reference breast.zarr.zip
      ragst-sd predict embedded --reference bulb.zarr.zip --out predicted --genes EPCAM KRT8 --intervals 0.8

    Tiles are laid and embedded as the reference was; stores of `ragst-sd embed` are not embedded again. The result is
    the table "predicted" of each store. The exit code is 1 if an input failed.
    """
    from ragst_sd._shell import predict_files

    return predict_files(
        _batch(args),
        reference=args.reference,
        model=args.model,
        model_kwargs=_named(args.model_kwargs),
        donor=args.donor,
        options={name: getattr(args, name) for name in ("genes", "n_neighbors", "intervals")},
    )


def _batch(args: argparse.Namespace) -> Batch:
    from ragst_sd._shell import Batch

    names = ("out", "image_key", "table_key", "image_mpp", "keep_pixels", "device")
    own = {name: getattr(args, name) for name in names}
    return Batch(tuple(args.inputs), **own, num_workers=args.workers, say=lambda line: print(line, flush=True))


def _named(pairs: list[str]) -> dict[str, Any]:
    """`NAME=VALUE` as YAML reads values: numbers, true and false, texts."""
    import yaml

    wrong = [pair for pair in pairs if not pair.partition("=")[0] or "=" not in pair]
    if wrong:
        msg = f"`--model-kwargs` are written NAME=VALUE; found {', '.join(map(repr, wrong))}."
        raise ValueError(msg)
    return {name: yaml.safe_load(value) for name, _, value in (pair.partition("=") for pair in pairs)}


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
        return args.run(args) or 0
    except (OSError, ImportError, KeyError, RuntimeError, TypeError, ValueError) as error:
        print(f"ragst-sd {args.command}: {told(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"ragst-sd {args.command}: stopped.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
