"""Score predictions that another tool wrote, on the folds and genes of `real_sections.py`.

First write what the tool may know. Each `<donor>.json` names the sections to train on, the sections to predict, and the
genes that are scored:

    python benchmarks/score_predictions.py --data "$RAGST_SD_TEST_DATA" --set mob2k --write-folds folds

Train once per held-out donor, on the sections named in its file only, and write one h5ad file per predicted section,
`<section>.h5ad`: X holds the prediction for every spot and every gene of the file, log1p of counts per 10,000 (or log1p
of counts, with `--unit log1p_counts`), `var_names` are genes, and `obs_names` are the names of the spots in the
section's own h5ad file (where they are other names, `obsm["spatial"]` in pixels is taken). Then:

    python benchmarks/score_predictions.py --data "$RAGST_SD_TEST_DATA" --set mob2k --predictions predictions --name TOOL

It prints one row of the same table, and writes scores with `--csv` as `rg.tl.cross_validate` returns them, so that
`rg.pl.benchmark` draws both in one picture.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from real_sections import N_GENES, SETS, markdown, summarise

import ragst_sd as rg
from ragst_sd import _keys
from ragst_sd._demo import read_folder, variable_genes
from ragst_sd._metrics import METRICS
from ragst_sd._validate import listing
from ragst_sd.reference.normalize import as_csr
from ragst_sd.retrieval.training import dense
from ragst_sd.tl._fold_scores import gene_scores
from ragst_sd.tl._folds import RAW_UNIT
from ragst_sd.tl._section_metrics import SECTION_METRICS

USE_REP = "X_mean_colour"
UNITS = ("log1p_cp10k", "log1p_counts")
# Spots named otherwise are the same if they lie this close, in pixels.
NEAR_PX = 1.0


class MeanColour:
    """A reference wants an embedding; here nothing is searched, so that the quickest one does."""

    name = "mean_colour"

    def __call__(self, tiles: Any) -> Any:
        return tiles.float().mean(dim=(2, 3))


@dataclass(frozen=True)
class Fold:
    """One held-out donor, and the reference of all others."""

    donor: str
    reference: ad.AnnData
    genes: list[str]
    held: list[str]

    def plain(self) -> dict[str, Any]:
        """What a tool may know."""
        return {
            "held_out_donor": self.donor,
            "held_out_sections": self.held,
            "training_sections": sorted(self.reference.obs["sample"].astype(str).unique()),
            "genes": self.genes,
        }


def make_folds(sections: dict, n_genes: int = N_GENES) -> list[Fold]:
    """Donors held out in turn, as `real_sections.py` does it; genes are chosen on the others."""
    for sdata in sections.values():
        rg.pp.embed_tiles(sdata, model=MeanColour(), tile_px=8, mpp=None, key_added=USE_REP, progress=False)
    donor_of = {name: str(sdata.tables["table"].obs["donor"].iloc[0]) for name, sdata in sections.items()}
    folds = []
    for donor in sorted(set(donor_of.values())):
        training = {name: sdata for name, sdata in sections.items() if donor_of[name] != donor}
        reference = rg.tl.build_reference(training, use_rep=USE_REP, thumbnails=False)
        held = [name for name in sections if donor_of[name] == donor]
        folds.append(Fold(donor, reference, variable_genes(reference, n_genes), held))
    return folds


def write_folds(folds: list[Fold], folder: Path) -> None:
    """One json file per held-out donor."""
    folder.mkdir(parents=True, exist_ok=True)
    for fold in folds:
        name = re.sub(r"[^\w.-]", "_", fold.donor)
        (folder / f"{name}.json").write_text(json.dumps(fold.plain(), indent=1) + "\n")


def read_prediction(path: Path, names: list[str], xy: np.ndarray, genes: list[str]) -> np.ndarray:
    """(spots, genes) predictions for spots of these names at these pixels; refuses what is incomplete."""
    if not path.exists():
        found = sorted(file.name for file in path.parent.glob("*.h5ad"))
        msg = f"{path} does not exist; every held-out section needs one. There are {listing(found)}."
        raise SystemExit(msg)
    table = ad.read_h5ad(path)
    rows, columns = table.obs_names.get_indexer(names), table.var_names.get_indexer(genes)
    if (rows < 0).all() and "spatial" in table.obsm:
        apart = np.linalg.norm(np.asarray(table.obsm["spatial"], dtype=float)[None] - xy[:, None], axis=2)
        rows = np.where(apart.min(axis=1) <= NEAR_PX, apart.argmin(axis=1), -1)
    for what, place, wanted in (("spots", rows, names), ("genes", columns, genes)):
        if (place < 0).any():
            missing = [name for name, i in zip(wanted, place, strict=True) if i < 0]
            msg = f"{path}: {len(missing)} of {len(wanted)} {what} are not predicted: {listing(missing)}."
            raise SystemExit(msg)
    values = dense(table.X[rows][:, columns])
    if not np.isfinite(values).all():
        msg = f"{path}: {int((~np.isfinite(values)).sum())} predicted values are NaN or infinite."
        raise SystemExit(msg)
    return values


def score(sections: dict, folds: list[Fold], predictions: Path, *, name: str, unit: str) -> pd.DataFrame:
    """Lines as `rg.tl.cross_validate` returns them."""
    parts = []
    for fold in folds:
        # The spots that are scored and their normalisation come with a table like any other prediction.
        rg.tl.fit(fold.reference, method="mean", progress=False)
        for sample in fold.held:
            truth = sections[sample].tables["table"]
            measured = set(truth.var_names)
            genes = [gene for gene in fold.genes if gene in measured]
            table = rg.tl.predict(sections[sample], fold.reference, genes=genes, inplace=False)
            table = table[np.isfinite(table.X).all(axis=1)].copy()
            xy = np.asarray(table.obsm["spatial"], dtype=float)
            table.X = read_prediction(predictions / f"{sample}.h5ad", list(table.obs_names), xy, genes)
            lines = _raw_scores(table, truth) if unit == "log1p_counts" else _scores(table, truth, genes)
            parts.append(lines.assign(fold=fold.donor, sample=sample))
    scores = pd.concat(parts, ignore_index=True)
    scores["method"] = np.where(scores["metric"] == "noise_ceiling", "", name)
    scores["unit"] = RAW_UNIT if unit == "log1p_counts" else _keys.UNIT
    return scores[["method", "fold", "sample", "gene", "unit", "metric", "value"]]


def _scores(table: ad.AnnData, truth: ad.AnnData, genes: list[str]) -> pd.DataFrame:
    without = {"gene_sets"} if "label" in truth.obs else {"gene_sets", "labels"}
    whole = [name for name, (_, needs) in SECTION_METRICS.items() if needs not in without]
    lines = rg.tl.evaluate(table, truth=truth, genes=genes, metrics=[*METRICS, "noise_ceiling", *whole])
    return lines[(lines["gene"] != "") | lines["metric"].isin(whole)]


def _raw_scores(table: ad.AnnData, truth: ad.AnnData) -> pd.DataFrame:
    """Without normalisation of library size; spots without counts were not measured."""
    counts = as_csr(truth.X)[truth.obs_names.get_indexer(table.obs_names)]
    measured = np.asarray(counts.sum(axis=1)).ravel() > 0
    expected = counts[measured][:, truth.var_names.get_indexer(table.var_names)].log1p()
    return gene_scores(np.asarray(table.X)[measured], expected, list(table.var_names), list(METRICS))


def as_lines(scores: pd.DataFrame, set_name: str, encoder: str) -> pd.DataFrame:
    """One line per section, as `real_sections.py` makes them."""
    own = scores[(scores["gene"] != "") & (scores["method"] != "")]
    sections = own.groupby(["method", "fold", "sample", "metric"], sort=False)["value"]
    lines = sections.mean().unstack("metric")
    # A ratio: one gene that hardly varies in the truth would outweigh all others in a mean.
    lines["variance_kept"] = sections.median().unstack("metric")["variance_kept"]
    lines = lines.reset_index().rename(columns={"fold": "donor", "sample": "section"})
    return lines.assign(set=set_name, encoder=encoder, effective_n=np.nan)


def main() -> None:
    """Write folds, or score predictions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("RAGST_SD_TEST_DATA"), help="folder with histology/")
    parser.add_argument("--set", required=True, help=f"folder in histology/, for instance {', '.join(SETS)}")
    parser.add_argument("--write-folds", type=Path, help="folder for what may be trained on, one json file per donor")
    parser.add_argument("--predictions", type=Path, help="folder with <section>.h5ad")
    parser.add_argument("--name", default="external", help="name of the tool in the table")
    parser.add_argument("--encoder", default="its own", help="its image encoder, for the table")
    parser.add_argument("--unit", choices=UNITS, default=UNITS[0], help="unit of the predictions")
    parser.add_argument("--csv", type=Path, help="file for the scores of each gene and section")
    args = parser.parse_args()
    if not args.data:
        parser.error("name the folder of real sections with --data or RAGST_SD_TEST_DATA")
    if args.write_folds is None and args.predictions is None:
        parser.error("give --write-folds, --predictions, or both")
    # The embedding is a stand-in: what is said about it would mislead.
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    sections = read_folder(Path(args.data) / "histology" / args.set)
    folds = make_folds(sections)
    if args.write_folds:
        write_folds(folds, args.write_folds)
        print(f"Wrote {len(folds)} folds to {args.write_folds}.")
    if args.predictions:
        scores = score(sections, folds, args.predictions, name=args.name, unit=args.unit)
        if args.csv:
            scores.to_csv(args.csv, index=False)
        print(markdown(summarise(as_lines(scores, args.set, args.encoder))))


if __name__ == "__main__":
    main()
