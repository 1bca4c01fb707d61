"""What `ragst-sd embed` and `ragst-sd predict` do: slides and stores in, stores out, one after the other.

The arguments are those of the parsers in `__main__.py`.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

import ragst_sd as rg
from ragst_sd import _keys
from ragst_sd._annotation import resolve_annotation
from ragst_sd._bank import open_bank
from ragst_sd._elements import image_pyramid, resolve_image
from ragst_sd._replacing import fresh_folder, locked, recover
from ragst_sd._resolution import image_mpp_of
from ragst_sd._validate import message_of
from ragst_sd._workers import worker_device
from ragst_sd.io._readable import readable

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Mapping

    from spatialdata import SpatialData

    from ragst_sd.image.encoder import Encoder

logger = logging.getLogger(__name__)

SLIDES = (".svs", ".tif", ".tiff", ".btf", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".czi", ".dcm")
_STORE = ".zarr"
_OVERVIEW_PX = 2048


def embed_files(args: Namespace) -> int:
    """Embed slides and stores, each into a store of its own; the exit code is 1 if an input failed."""
    tiles = {name: getattr(args, name) for name in ("mean", "std", "tile_px", "mpp", "context")}
    encoder = _make_encoder(args, args.model, tiles)

    def make(path: Path, parts: Path) -> tuple[SpatialData, str]:
        sdata = _open_input(path, args)
        table = sdata.tables[_embed(sdata, encoder, tiles, parts, args)]
        return sdata, f"{table.n_obs} spots"

    return _run_all(args, ("embed", encoder.weights_hash, repr(tiles)), make)


def predict_files(args: Namespace) -> int:
    """Predict slides and stores from a reference, each into a store of its own; the exit code is 1 if an input failed.

    A store that holds the embedding of the reference is not embedded again.

    Raises
    ------
    ValueError
        If the reference is not fitted, or the encoder cannot be made or is another one than that of the reference.
    """
    # Malformed arguments are an error even if no encoder is needed.
    _parse_kwargs(args.model_kwargs)
    adata = rg.io.read_reference(args.reference)
    bank = open_bank(adata)
    made, use_rep = bank.header.encoder, bank.header.use_rep
    options = {name: getattr(args, name) for name in ("genes", "n_neighbors", "intervals")}

    @cache
    def embedding() -> tuple[Encoder, dict[str, Any]]:
        """The encoder and the tiles of the reference."""
        name = str(made.get("encoder", ""))
        if args.model is None and (not name or name.startswith("onnx:")):
            what = f"the ONNX file {name.removeprefix('onnx:')!r}" if name else "a model without a name"
            raise ValueError(f"{args.reference} was embedded by {what}. Give the file: `--model FILE.onnx`.")
        tiles: dict[str, Any] = {
            **{part: tuple(map(float, made[part])) or None for part in ("mean", "std", "context")},
            "tile_px": int(made["tile_px"]),
            "mpp": None if np.isnan(made["mpp"]) else float(made["mpp"]),
            "key_added": use_rep,
        }
        model = args.model or name.removeprefix("timm:")
        encoder = _make_encoder(args, model, tiles)
        if encoder.weights_hash != made["weights_hash"]:
            raise ValueError(
                f"{args.reference} was embedded by {name!r} with weights {made['weights_hash'][:12]}; those of "
                f"{model!r} here are {encoder.weights_hash[:12]}. Give the same ones, for instance by "
                "`--model-kwargs checkpoint_path=FILE`."
            )
        return encoder, tiles

    def make(path: Path, parts: Path) -> tuple[SpatialData, str]:
        sdata, table_key = _open_input(path, args), args.table_key
        holding = [key for key, table in sdata.tables.items() if use_rep in table.obsm]
        if not holding:
            table_key = _embed(sdata, *embedding(), parts, args)
        elif len(holding) == 1:
            table_key = holding[0]
        if args.donor is not None and table_key is not None:
            sdata.tables[table_key].obs[_keys.DONOR] = args.donor
        donor_key = None if args.donor is None else _keys.DONOR
        rg.tl.predict(sdata, adata, table_key=table_key, donor_key=donor_key, device=args.device, **options)
        table = sdata.tables["predicted"]
        return sdata, f"{table.n_obs} spots, {table.obs[_keys.OUT_OF_REFERENCE].mean():.0%} of them out of reference"

    if not all(map(_is_store, find_inputs(args).values())):
        # If the encoder cannot be made, this is said once, before the first slide is opened.
        embedding()
    return _run_all(args, ("predict", bank.header.content_hash, bank.fit.fit_hash, repr((args.donor, options))), make)


def find_inputs(args: Namespace) -> dict[str, Path]:
    """Slides and stores by the name of their result; of folders all that they hold, not what their folders hold.

    Raises
    ------
    FileNotFoundError
        If a path does not exist, or a folder holds neither.
    ValueError
        If two have the same name, or results would lie among the inputs.
    """
    inputs: dict[str, Path] = {}
    for path in args.inputs:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist. Give slide files, SpatialData stores, or folders of them.")
        inside = [path]
        if path.is_dir() and not _is_store(path):
            # Hidden ones are what a stopped run, or another system, has left.
            seen = (item for item in path.iterdir() if not item.name.startswith("."))
            inside = sorted(item for item in seen if _is_store(item) or item.suffix.lower() in SLIDES)
            if not inside:
                raise FileNotFoundError(
                    f"{path} holds no store (*{_STORE}) and no slide ({', '.join(f'*{end}' for end in SLIDES)})."
                )
        for item in inside:
            name = item.stem
            if item.parent.resolve() == args.out.resolve():
                raise ValueError(f"{item} lies in the folder of the results. Choose another `--out`.")
            if inputs.setdefault(name, item) != item:
                raise ValueError(
                    f"{inputs[name]} and {item} would both be written to {args.out / name}{_STORE}. Rename one of them."
                )
    return inputs


def _run_all(args: Namespace, made_of: tuple[str, ...], make: Callable[[Path, Path], tuple[SpatialData, str]]) -> int:
    """Write a store for every input, as `make` gives it with a line on what was done; the exit code is 1 if one failed.

    An input is skipped if its store was made of the same files and arguments, `made_of` among them. One that fails does
    not stop the others.
    """
    decisive = (args.image_key, args.table_key, args.image_mpp, args.keep_pixels)
    counts = {"done": 0, "unchanged": 0, "failed": 0}
    inputs = find_inputs(args)
    for name, path in inputs.items():
        started, place = time.perf_counter(), args.out / f"{name}{_STORE}"
        try:
            # Libraries below warn about each other.
            with warnings.catch_warnings(), locked(place):
                warnings.simplefilter("ignore")
                recover(place)
                key = hashlib.sha256(repr((*made_of, *decisive, *_file_stats(path))).encode()).hexdigest()
                if _stored_key(place) == key:
                    counts["unchanged"] += 1
                    logger.info("%s: unchanged, %s", name, place)
                    continue
                parts = place.with_name(f".{name}.parts")
                sdata, what = make(path, parts)
                if not _is_store(path) and not args.keep_pixels:
                    _replace_by_overview(sdata)
                owned = {**sdata.attrs.get(_keys.ATTRS, {}), _keys.MADE_OF: key}
                sdata.attrs = {**sdata.attrs, _keys.ATTRS: owned}
                with fresh_folder(place) as fresh:
                    sdata.write(fresh)
                shutil.rmtree(parts, ignore_errors=True)
        except Exception as error:
            logger.debug("%s failed.", path, exc_info=True)
            counts["failed"] += 1
            logger.info("%s: failed. %s", name, message_of(error))
        else:
            counts["done"] += 1
            logger.info("%s: %s, %.1f s, %s", name, what, time.perf_counter() - started, place)
    logger.info(", ".join(f"{number} {what}" for what, number in counts.items()))
    return int(counts["failed"] > 0)


def _stored_key(place: Path) -> str | None:
    """Hash of what a store was made of, as it is kept in the store; `None` where there is none.

    Raises
    ------
    FileExistsError
        If something else lies there.
    """
    import zarr

    if not place.exists():
        return None
    whole = (place / "zarr.json").is_file()
    attrs: dict[str, Any] = zarr.open_group(place, mode="r").attrs.asdict() if whole else {}
    owned = attrs.get(_keys.ATTRS, {})
    if _keys.MADE_OF not in owned:
        raise FileExistsError(
            f"{place} exists and was not made by this command; it is not replaced. Choose another `--out`."
        )
    return str(owned[_keys.MADE_OF])


def _file_stats(path: Path) -> list[str]:
    """Names, sizes and times of change of all files of an input."""
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    stats = ((file.relative_to(path.parent), file.stat()) for file in files)
    return [f"{name.as_posix()} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]


def _is_store(path: Path) -> bool:
    """Whether a path is a SpatialData store; a folder with its suffix is taken for one even if it is damaged."""
    return path.is_dir() and (
        path.suffix == _STORE or any((path / name).is_file() for name in ("zarr.json", ".zgroup"))
    )


def _open_input(path: Path, args: Namespace) -> SpatialData:
    if not _is_store(path):
        return rg.io.read_slide(path, mpp=args.image_mpp)
    from spatialdata import SpatialData

    with readable(path, "a SpatialData store"):
        return SpatialData.read(path)


def _make_encoder(args: Namespace, model: str, tiles: Mapping[str, Any]) -> Encoder:
    from ragst_sd.image.resolve_encoder import resolve_encoder

    device = worker_device() if args.device is None else args.device
    kwargs = _parse_kwargs(args.model_kwargs)
    return resolve_encoder(model, model_kwargs=kwargs, mean=tiles["mean"], std=tiles["std"], device=device)


def _parse_kwargs(pairs: list[str]) -> dict[str, Any]:
    """Arguments by name, from texts `NAME=VALUE` whose values are read as YAML: numbers, true and false, texts."""
    wrong = [pair for pair in pairs if not pair.partition("=")[0] or "=" not in pair]
    if wrong:
        raise ValueError(f"`--model-kwargs` are written NAME=VALUE; found {', '.join(map(repr, wrong))}.")
    return {name: yaml.safe_load(value) for name, _, value in (pair.partition("=") for pair in pairs)}


def _embed(sdata: SpatialData, encoder: Encoder, tiles: Mapping[str, Any], parts: Path, args: Namespace) -> str:
    """Embed the spots of an object, or a grid of tiles if it has none; returns the key of the table."""
    image: dict[str, Any] = {"image_key": resolve_image(sdata, args.image_key), "image_mpp": args.image_mpp}
    if tiles["mpp"] is not None and image_mpp_of(sdata, **image) is None:
        raise ValueError(
            f"The microns per pixel of image {image['image_key']!r} are not known. Give them: `--image-mpp 0.25`."
        )
    if not any((sdata.shapes, sdata.points, sdata.tables)):
        rg.pp.tile_grid(sdata, **image, tile_px=tiles["tile_px"], mpp=tiles["mpp"])
    table_key, shapes_key = resolve_annotation(sdata, args.table_key, None)
    image |= {name: value for name, value in tiles.items() if name not in ("mean", "std")}
    image |= {"table_key": table_key, "shapes_key": shapes_key}
    rg.pp.embed_tiles(sdata, **image, model=encoder, num_workers=args.workers, cache=parts)
    return table_key


def _replace_by_overview(sdata: SpatialData) -> None:
    """Replace the image by an overview of at most 2,048 px in the same place; the slide stays in its file."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import Scale

    image_key = resolve_image(sdata, None)
    pyramid = image_pyramid(sdata, image_key)
    pixels = pyramid.overview(_OVERVIEW_PX)
    scale = [size / small for size, small in zip(pyramid.shapes[0], pixels.shape[1:], strict=True)]
    moved = {"global": Scale(scale, axes=("y", "x"))}
    sdata.images[image_key] = Image2DModel.parse(
        pixels, dims=("c", "y", "x"), c_coords=["r", "g", "b"], transformations=moved
    )
