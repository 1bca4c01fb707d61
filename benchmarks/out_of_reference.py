"""Which tiles are called out of reference: held-out donors, other laboratories, other organs.

Every line is a query and a reference of real sections. Donors of a set are predicted from a reference of the others; other
sets from a reference of all donors. "Matched" pairs differ neither in resolution nor in colour: both pictures
are brought to the coarser microns per pixel, and the query's haematoxylin and eosin to the reference's mean and spread.

    python benchmarks/out_of_reference.py --data "$RAGST_SD_TEST_DATA" --write docs/benchmarks.md

MobileNetV2 is slower by far, and compared on fewer pairs.

    python benchmarks/out_of_reference.py --data "$RAGST_SD_TEST_DATA" --encoder mobilenetv2_100 --sets mob mob2k
        --pairs colon:mob mob2k:mob --matched
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from PIL import Image
from real_sections import CONTEXT, encoders, write_between_markers
from skimage.color import hed2rgb, rgb2hed
from skimage.transform import resize

import ragst_sd as rg
from ragst_sd import _keys
from ragst_sd.image.texture import texture_names
from ragst_sd.io import read_st
from ragst_sd.retrieval.appearance import CLIP
from ragst_sd.retrieval.grounding import FLAGGED

SETS = ("mob", "mob2k", "her2st")
# Shown to the references that lack a donor too.
OTHER_ORGAN = {"mob": "colon"}
PAIRS = (
    *("colon:mob", "her2st:mob", "mob2k:mob"),
    *("mob:mob2k", "her2st:mob2k"),
    *("mob:her2st", "mob2k:her2st"),
    "mob:colon",
)
MATCHED = ("colon:mob", "her2st:mob", "mob2k:mob")
# A share of flagged tiles does not get more certain from more tiles of one section.
MAX_SPOTS = 600
# Optical density above which a pixel is tissue and not glass.
TISSUE = 0.15

Section = tuple[ad.AnnData, np.ndarray, float]


class Sections:
    """Sections of each set, as they are or matched to others, embedded once each."""

    def __init__(self, data: Path, cache: Path | None):
        self.data, self.cache, self.known = data, cache, encoders(data / "weights")
        self.embedded: dict[tuple, dict] = {}
        self.raw: dict[str, dict[str, Section]] = {}

    def read(self, name: str) -> dict[str, Section]:
        """Counts, picture and microns per pixel of each section."""
        if name not in self.raw:
            out = {}
            for path in sorted((self.data / "histology" / name).glob("*.h5ad")):
                counts = ad.read_h5ad(path)
                if counts.n_obs > MAX_SPOTS:
                    rows = np.random.default_rng(0).choice(counts.n_obs, MAX_SPOTS, replace=False)
                    counts = counts[np.sort(rows)].copy()
                picture = np.asarray(Image.open(path.with_suffix(".jpg")).convert("RGB"))
                out[path.stem] = (counts, picture, read_st(counts, picture).attrs[_keys.ATTRS][_keys.IMAGE_MPP]["he"])
            self.raw[name] = out
        return self.raw[name]

    def mpp(self, name: str) -> float:
        """The coarsest section of a set."""
        return max(mpp for _, _, mpp in self.read(name).values())

    def get(self, name: str, encoder: str, *, mpp: float | None = None, stain_of: str | None = None) -> dict:
        """Embedded sections by name; `mpp` makes the pictures coarser, `stain_of` a set gives them its stain."""
        mpp = None if mpp is None or mpp <= 1.01 * self.mpp(name) else mpp
        key = (name, encoder, mpp, stain_of)
        if key not in self.embedded:
            target = None if stain_of is None else moments([picture for _, picture, _ in self.read(stain_of).values()])
            out = {}
            for section, (counts, picture, own) in self.read(name).items():
                factor = 1.0 if mpp is None else own / mpp
                counts = counts.copy()
                counts.obsm[_keys.SPATIAL] = np.asarray(counts.obsm[_keys.SPATIAL]) * factor
                if mpp is not None:
                    shape = [round(edge * factor) for edge in picture.shape[:2]]
                    picture = as_bytes(resize(picture, shape, anti_aliasing=True))
                if target is not None:
                    picture = restain(picture, target)
                sdata = read_st(counts, picture, image_mpp=own / factor, sample=section)
                self.embed(sdata, encoder, "_".join(map(str, (*key, section))))
                out[section] = sdata
            self.embedded[key] = out
        return self.embedded[key]

    def embed(self, sdata, encoder: str, name: str) -> None:
        """Embed a section, or take the embedding that an earlier run kept."""
        table, path = sdata.tables["table"], None if self.cache is None else self.cache / f"{name}.h5ad"
        if path is not None and path.exists():
            kept = ad.read_h5ad(path)
            table.obsm["X"] = kept.obsm["X"]
            table.uns[_keys.ATTRS] = {**table.uns.get(_keys.ATTRS, {}), _keys.EMBEDDINGS: kept.uns[_keys.EMBEDDINGS]}
            return
        rg.pp.embed_tiles(sdata, key_added="X", progress=False, **self.known[encoder])
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            uns = {_keys.EMBEDDINGS: table.uns[_keys.ATTRS][_keys.EMBEDDINGS]}
            ad.AnnData(obs=table.obs[[]], obsm={"X": table.obsm["X"]}, uns=uns).write_h5ad(path)


def as_bytes(picture: np.ndarray) -> np.ndarray:
    return (np.clip(picture, 0, 1) * 255).round().astype(np.uint8)


def moments(pictures: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and spread of the three stain channels over the tissue of several pictures, each counting alike."""
    means, spreads = zip(
        *(tissue_moments(rgb2hed(picture[::2, ::2]), picture[::2, ::2]) for picture in pictures), strict=True
    )
    return np.mean(means, axis=0), np.mean(spreads, axis=0)


def tissue_moments(stains: np.ndarray, picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    density = -np.log10(np.maximum(picture, 1) / 255).mean(axis=2)
    tissue = stains[density > TISSUE]
    return tissue.mean(axis=0), tissue.std(axis=0)


def restain(picture: np.ndarray, target: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Shift and scale each stain channel so that its tissue has the target's moments."""
    stains = rgb2hed(picture)
    mean, spread = tissue_moments(stains, picture)
    return as_bytes(hed2rgb((stains - mean) / spread * target[1] + target[0]))


def fit(sections: dict):
    reference = rg.tl.build_reference(sections, use_rep="X", thumbnails=False)
    rg.tl.fit(reference, method="knn", progress=False)
    return reference


def score(sections: dict, reference, encoder: str) -> dict[str, float | str]:
    """Shares of the tiles of some sections, and what their distance is made of."""
    tables = [
        rg.tl.predict(sdata, reference, genes=list(reference.var_names[:2]), inplace=False)
        for sdata in sections.values()
    ]
    obs = pd.concat([table.obs for table in tables])
    raw = np.concatenate([np.asarray(sdata.tables["table"].obsm["X"], dtype=float) for sdata in sections.values()])
    inside = np.isfinite(raw).all(axis=1)
    obs, raw = obs[inside], raw[inside]
    look = reference.uns[_keys.ATTRS][_keys.FIT]["appearance"]
    line = {
        "spots": len(obs),
        "out of reference": obs[_keys.OUT_OF_REFERENCE].mean(),
        "by appearance": (obs[_keys.APPEARANCE_DISTANCE] > 1).mean(),
        "by phi": (obs[_keys.DISTANCE_PERCENTILE] > 100 * (1 - FLAGGED)).mean(),
        "appearance distance": obs[_keys.APPEARANCE_DISTANCE].median(),
        "percentile": obs[_keys.DISTANCE_PERCENTILE].median(),
    }
    if encoder == "texture":
        share = pd.Series(feature_shares(raw, np.asarray(look["means"]), look))
        line |= share.groupby([kind(name) for _ in CONTEXT for name in texture_names()]).sum().to_dict()
    return line


def feature_shares(embedding: np.ndarray, means: np.ndarray, parameters: dict[str, np.ndarray]) -> np.ndarray:
    """(d,) what each feature adds to the squared distances of some tiles to their nearest section, as shares of their sum."""
    # In the notation of :mod:`ragst_sd.retrieval.appearance`, z_f [(I + C)^-1 z]_f of feature f.
    scale, axes = np.asarray(parameters["scale"]), np.asarray(parameters["axes"])
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    scaled = [np.clip((embedding - mean) * inverse, -CLIP, CLIP) for mean in means]
    parts = np.stack([z * (z - ((z @ axes) * np.asarray(parameters["shrink"])) @ axes.T) for z in scaled])
    nearest = parts.sum(axis=2).argmin(axis=0)
    total = parts[nearest, np.arange(len(embedding))].sum(axis=0)
    return total / total.sum()


def kind(feature: str) -> str:
    """What a texture feature describes: stain, or detail down to a scale (2 px are one micron)."""
    if re.match(r"(mean|quantile|dark)", feature):
        return "amount of stain"
    fine = int(re.search(r"_(\d+)px$", feature)[1]) <= 2
    return "detail to 1 µm" if fine else "coarser detail"


def lines_of(sections: Sections, encoder: str, sets: list[str], pairs: list[str], matched: list[str]) -> list[dict]:
    """All lines of one encoder: donors of `sets`, then pairs of `<query>:<reference>`."""
    lines = []

    def add(query: str, name: str, **scores):
        lines.append({"query": query, "reference": name, **scores})
        print(lines[-1], flush=True)

    def donor(sdata) -> str:
        return str(sdata.tables["table"].obs["donor"].iloc[0])

    for name in sets:
        members = sections.get(name, encoder)
        for one in sorted({donor(sdata) for sdata in members.values()}):
            others = {key: sdata for key, sdata in members.items() if donor(sdata) != one}
            held = {key: sdata for key, sdata in members.items() if donor(sdata) == one}
            donors = sorted({donor(sdata) for sdata in others.values()})
            reference, of = fit(others), f"{name} {', '.join(donors)}"
            add(f"{name} {one}", of, **score(held, reference, encoder))
            if name in OTHER_ORGAN:
                add(OTHER_ORGAN[name], of, **score(sections.get(OTHER_ORGAN[name], encoder), reference, encoder))
    fitted = {}
    for query, name in (pair.split(":") for pair in pairs):
        if name not in fitted:
            fitted[name] = fit(sections.get(name, encoder))
        add(query, name, **score(sections.get(query, encoder), fitted[name], encoder))
    for query, name in (pair.split(":") for pair in matched):
        mpp = max(sections.mpp(query), sections.mpp(name))
        reference = fit(sections.get(name, encoder, mpp=mpp))
        add(
            f"{query}, matched", name, **score(sections.get(query, encoder, mpp=mpp, stain_of=name), reference, encoder)
        )
    return lines


def markdown(lines: pd.DataFrame) -> str:
    """The lines as a Markdown table."""
    rows = ["| " + " | ".join(lines.columns) + " |", "|---" * len(lines.columns) + "|"]
    for line in lines.to_dict("records"):
        cells = []
        for name, value in line.items():
            if isinstance(value, str) or name == "spots":
                cells.append(str(value))
            elif np.isnan(value):
                cells.append("none")
            elif name in ("appearance distance", "percentile"):
                cells.append(f"{value:.2f}" if name == "appearance distance" else f"{value:.0f}")
            else:
                cells.append(f"{100 * value:.1f} %")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("RAGST_SD_TEST_DATA"), help="folder with histology/, weights/")
    parser.add_argument("--encoder", default="texture", help="texture or mobilenetv2_100")
    parser.add_argument("--sets", nargs="*", default=SETS, help="sets of which each donor is left out")
    parser.add_argument("--pairs", nargs="*", default=PAIRS, help="<query>:<reference>, both as they are")
    parser.add_argument(
        "--matched", nargs="*", default=MATCHED, help="<query>:<reference>, resolution and stain matched"
    )
    parser.add_argument("--cache", type=Path, help="folder in which embeddings are kept for the next run")
    parser.add_argument("--write", type=Path, help="page whose marked table is replaced")
    args = parser.parse_args()
    if not args.data:
        parser.error("name the folder of real sections with --data or RAGST_SD_TEST_DATA")
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    sections = Sections(Path(args.data), args.cache)
    lines = lines_of(sections, args.encoder, args.sets, args.pairs, args.matched)
    table = markdown(pd.DataFrame(lines))
    print("\n" + table)
    if args.write:
        write_between_markers(args.write, "out_of_reference", table)


if __name__ == "__main__":
    main()
