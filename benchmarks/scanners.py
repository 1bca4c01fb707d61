"""What another stain, scanner, resolution or laboratory does to a prediction, and what normalisation mends.

The reference is left as it is; pictures of the held-out donor are changed before they are embedded. Then the same with the
query's picture normalised to a section of the reference (squidpy or scikit-image), with both normalised to one section, and
with embeddings that are not standardised by their section, which they are by default. Two sets of the same
tissue from two laboratories show a real change.

    python benchmarks/scanners.py --data "$RAGST_SD_TEST_DATA" --write docs/howto/scanners.md
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import squidpy as sq
from out_of_reference import TISSUE, Sections, as_bytes
from PIL import Image
from real_sections import N_GENES, write_between_markers
from skimage.color import hed2rgb, rgb2hed
from skimage.exposure import adjust_gamma
from skimage.filters import gaussian
from skimage.transform import resize
from spatialdata import SpatialData
from spatialdata.models import Image2DModel, Labels2DModel

import ragst_sd as rg
from ragst_sd import _keys
from ragst_sd._demo import variable_genes
from ragst_sd.io import read_st

SET = "mob"
PAIRS = ("mob:mob2k",)
# Stains are normalised where colours were changed.
OF_COLOUR = ("none", "darker (gamma 1.3)", "haematoxylin x 1.3, eosin x 0.7")
NORMALIZATIONS = ("reinhard", "macenko")
HEADINGS = {"laboratories": "normalised", "changes": "change of the query's picture"}
# Of a section that is predicted. Its embedding is standardised by them.
N_SPOTS = 60
# Pictures are made coarser if they are finer by more.
COARSER = 1.05
# The texture encoder takes tiles of 64 px and more, which are wider then.
COARSE = "tiles at the resolution of the coarser picture"
UNSTANDARDIZED = "none, and embeddings as they are"


def compressed(picture: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def stained(picture: np.ndarray, haematoxylin: float, eosin: float) -> np.ndarray:
    return as_bytes(hed2rgb(rgb2hed(picture) * (haematoxylin, eosin, 1.0)))


def shrunk(picture: np.ndarray, factor: float) -> np.ndarray:
    return as_bytes(resize(picture, [round(edge * factor) for edge in picture.shape[:2]], anti_aliasing=True))


CHANGES = {
    "none": lambda picture: picture,
    "darker (gamma 1.3)": lambda picture: adjust_gamma(picture, 1.3),
    "haematoxylin x 1.3, eosin x 0.7": lambda picture: stained(picture, 1.3, 0.7),
    "out of focus (sigma of 1 px)": lambda picture: as_bytes(gaussian(picture / 255, 1, channel_axis=-1)),
    "JPEG of quality 30": lambda picture: compressed(picture, 30),
    "half the resolution": lambda picture: shrunk(picture, 0.5),
}


def normalized(picture: np.ndarray, target: np.ndarray, how: str) -> np.ndarray:
    """A picture with the stains of another."""
    both = {"query": picture, "target": target}
    sdata = SpatialData(
        images={key: Image2DModel.parse(one, dims=("y", "x", "c"), rgb=True) for key, one in both.items()},
        labels={
            # squidpy's own detection takes the frame of these pictures for tissue.
            f"{key}_tissue": Labels2DModel.parse(
                (-np.log10(np.maximum(one, 1) / 255).mean(axis=2) > TISSUE).astype(np.uint8), dims=("y", "x")
            )
            for key, one in both.items()
        },
    )
    stains = sq.experimental.im.fit_stain_reference(sdata, "target", method=how)
    out = sq.experimental.im.normalize_stains(sdata, "query", stains, inplace=False)
    return out.transpose("y", "x", "c").to_numpy()


class Scans(Sections):
    """Sections whose pictures were changed, normalised, or made coarser, embedded once each."""

    def get(
        self, name: str, section: str, *, change: str = "none", how: str = "none", like: tuple[str, str] | None = None,
        mpp: float | None = None, n_spots: int | None = None, encoder: str = "texture",
    ) -> SpatialData:  # fmt: skip
        """A section; normalised as `how` says to the section `like`, at `mpp` if that is coarser, some of its spots."""
        if how == "none" and mpp is not None and mpp <= COARSER * self.read(name)[section][2]:
            mpp = None
        key = (name, section, change, how, *(like if like and how != "none" else ()), mpp, n_spots, encoder)
        if key not in self.embedded:
            counts, picture, own = self.read(name)[section]
            edge = len(picture)
            picture = self.coarser(CHANGES[change](picture), edge * own, mpp)
            if how != "none":
                _, target, target_mpp = self.read(like[0])[like[1]]
                picture = normalized(picture, self.coarser(target, len(target) * target_mpp, mpp), how)
            rows = np.arange(counts.n_obs)
            if n_spots is not None:
                rows = np.sort(np.random.default_rng(0).choice(rows, n_spots, replace=False))
            counts = counts[rows].copy()
            counts.obsm[_keys.SPATIAL] = np.asarray(counts.obsm[_keys.SPATIAL]) * len(picture) / edge
            sdata = read_st(counts, picture, image_mpp=own * edge / len(picture), sample=section)
            self.embed(sdata, encoder, "_".join(str(part).replace("/", "-") for part in key))
            self.embedded[key] = sdata
        return self.embedded[key]

    @staticmethod
    def coarser(picture: np.ndarray, edge_um: float, mpp: float | None) -> np.ndarray:
        own = edge_um / len(picture)
        return picture if mpp is None or mpp <= COARSER * own else shrunk(picture, own / mpp)

    def read(self, name: str) -> dict:
        """The first section of each donor."""
        first: dict[str, str] = {}
        for section, (counts, _, _) in super().read(name).items():
            first.setdefault(str(counts.obs["patient"].iloc[0]), section)
        return {section: self.raw[name][section] for section in first.values()}


def fit(sections: dict, method: str, *, standardize: bool = True):
    reference = rg.tl.build_reference(sections, use_rep="X", thumbnails=False, standardize=standardize)
    rg.tl.fit(reference, method=method, progress=False)
    return reference


def score(sdata: SpatialData, reference, genes: list[str]) -> dict[str, float]:
    """Mean correlation per gene, and what is flagged."""
    measured = sdata.tables["table"]
    table = rg.tl.predict(sdata, reference, genes=genes, inplace=False)
    shared = [gene for gene in genes if gene in set(measured.var_names)]
    scores = rg.tl.evaluate(table, truth=measured, genes=shared, metrics=["pearson"])
    return {
        "Pearson": scores.loc[scores["metric"] == "pearson", "value"].mean(),
        "out of reference": table.obs[_keys.OUT_OF_REFERENCE].mean(),
        "appearance distance": table.obs[_keys.APPEARANCE_DISTANCE].median(),
    }


def changed_pictures(scans: Scans, name: str, method: str, n: int) -> list[dict]:
    """One line per held-out donor, change and normalisation."""
    lines, sections = [], list(scans.read(name))
    for held in sections[:n]:
        training = [section for section in sections if section != held]
        plain = {section: scans.get(name, section) for section in training}
        reference = fit(plain, method)
        genes = variable_genes(reference, N_GENES)
        settings = [("none", reference, "none", None)]
        settings += [(f"{how}, query", reference, how, (name, training[0])) for how in NORMALIZATIONS]
        settings += [(UNSTANDARDIZED, fit(plain, method, standardize=False), "none", None)]
        for change in CHANGES:
            for label, fitted, how, like in settings:
                if how != "none" and change not in OF_COLOUR:
                    continue
                query = scans.get(name, held, change=change, how=how, like=like, n_spots=N_SPOTS)
                lines.append({"row": change, "column": label, "section": held, **score(query, fitted, genes)})
                print(lines[-1], flush=True)
    return lines


def other_laboratory(scans: Scans, query: str, name: str, method: str, n: int) -> list[dict]:
    """One line per section and normalisation: predicted from other donors of its own set, and from another set."""
    lines, sections = [], list(scans.read(query))
    mpp, first = max(scans.mpp(query), scans.mpp(name)), (name, next(iter(scans.read(name))))
    own = {section: scans.get(query, section) for section in sections}
    plain = {section: scans.get(name, section) for section in scans.read(name)}
    coarse = {section: scans.get(name, section, mpp=mpp) for section in plain}
    reference, alike = fit(plain, method), fit(coarse, method)
    unstandardized = fit(plain, method, standardize=False)
    genes = [
        gene
        for gene in variable_genes(reference, N_GENES)
        if all(gene in one["table"].var_names for one in own.values())
    ]
    scans.known[COARSE] = {"model": "texture", "tile_px": 64, "mpp": COARSER * mpp, "context": (1, 2.5)}
    tiles = fit({section: scans.get(name, section, encoder=COARSE) for section in plain}, method)
    settings = [("none", reference, "none", None), ("resolution", alike, "none", mpp)]
    settings += [(f"{how}, query", reference, how, None) for how in NORMALIZATIONS]
    settings += [(f"resolution, and {how}, query", alike, how, mpp) for how in NORMALIZATIONS]
    settings += [(UNSTANDARDIZED, unstandardized, "none", None)]
    for held in sections[:n]:
        others = fit({section: sdata for section, sdata in own.items() if section != held}, method)
        scored = [("other donors of its own set", scans.get(query, held, n_spots=N_SPOTS), others)]
        scored += [
            (label, scans.get(query, held, how=how, like=first, mpp=at, n_spots=N_SPOTS), fitted)
            for label, fitted, how, at in settings
        ]
        scored += [(COARSE, scans.get(query, held, n_spots=N_SPOTS, encoder=COARSE), tiles)]
        for label, sdata, fitted in scored:
            pair = f"{query} from {name}"
            lines.append({"row": label, "column": pair, "section": held, **score(sdata, fitted, genes)})
            print(lines[-1], flush=True)
    return lines


def markdown(lines: list[dict], first: str) -> str:
    """Means over donors: accuracy, and in brackets what is flagged."""
    means = pd.DataFrame(lines).groupby(["row", "column"], sort=False)[["Pearson", "out of reference"]].mean()
    text = means.apply(lambda line: f"{line['Pearson']:.3f} ({line['out of reference']:.0%})", axis=1)
    text = text.unstack(sort=False).fillna("")
    rows = [[first, *text.columns], ["---"] * (1 + text.shape[1]), *(map(str, row) for row in text.itertuples())]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("RAGST_SD_TEST_DATA"), help="folder with histology/")
    parser.add_argument("--sets", nargs="*", default=[SET], help="whose donors are held out, with changed pictures")
    parser.add_argument("--pairs", nargs="*", default=PAIRS, help="<query>:<reference>, sets of two laboratories")
    parser.add_argument("--method", default="knn")
    parser.add_argument("--n-sections", type=int, default=3, help="sections to predict, one of each donor")
    parser.add_argument("--cache", type=Path, help="folder in which embeddings are kept for the next run")
    parser.add_argument("--write", type=Path, help="page whose marked tables are replaced")
    args = parser.parse_args()
    if not args.data:
        parser.error("name the folder of real sections with --data or RAGST_SD_TEST_DATA")
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    scans = Scans(Path(args.data), args.cache)
    how = {"method": args.method, "n": args.n_sections}
    found = {
        "laboratories": [line for pair in args.pairs for line in other_laboratory(scans, *pair.split(":"), **how)],
        "changes": [line for name in args.sets for line in changed_pictures(scans, name, **how)],
    }
    for marker, lines in found.items():
        if lines:
            print("\n" + markdown(lines, HEADINGS[marker]))
            if args.write:
                write_between_markers(args.write, marker, markdown(lines, HEADINGS[marker]))


if __name__ == "__main__":
    main()
