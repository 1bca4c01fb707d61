"""How many gene names of real sections are current symbols, and what `rg.pp.harmonize_genes` makes of the others.

    python benchmarks/gene_names.py --data "$RAGST_SD_TEST_DATA" --write docs/howto/units.md

It also prints how many genes the sections of mouse olfactory bulb, and their panels, share before and after.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from real_sections import write_between_markers

import ragst_sd as rg
from ragst_sd._demo import read_folder
from ragst_sd._page import table as as_markdown

SECTIONS = {
    "her2st B4, human": "her2st/B4",
    "lung Xenium, human": "lung_xenium_toy/NCBI858",
    "mob rep01, mouse": "mob/rep01",
    "mob rep04, mouse": "mob/rep04",
    "mob rep11, mouse": "mob/rep11",
    "mob2k MOB1, mouse": "mob2k/MOB1",
    "colon d0, mouse": "colon/d0",
}


def line(path: Path, species: str) -> dict[str, str]:
    """What becomes of the names of one section."""
    table = ad.read_h5ad(path)
    report = rg.pp.harmonize_genes(table, species=species, inplace=False)
    other = {"human": "mouse", "mouse": "human"}[species]
    kept = rg.pp.harmonize_genes(table, species=species, orthologues_to=other, inplace=False)["action"] != "dropped"
    actions, how = report["action"].value_counts(), report["how"].value_counts()
    counts = np.asarray(table.X.sum(axis=0)).ravel()
    lost = counts[(report["symbol"] == "").to_numpy()].sum() / counts.sum()
    return {
        "names": f"{len(report):,}",
        "current": f"{100 * report['how'].isin(['symbol', 'ensembl']).mean():.1f} %",
        "renamed": f"{actions.get('renamed', 0):,}",
        "merged": f"{actions.get('merged', 0):,}",
        "ambiguous": f"{how.get('ambiguous', 0):,}",
        "unknown": f"{how.get('unknown', 0):,}",
        "counts in unresolved names": f"{100 * lost:.2f} %",
        "with one-to-one orthologue": f"{100 * kept.mean():.1f} %",
    }


def shared(sections: dict) -> str:
    """Genes that all sections, and all panels of a reference made of them, have."""
    tables = [sdata.tables["table"] for sdata in sections.values()]
    for table in tables:
        table.obsm["X_none"] = np.random.default_rng(0).normal(size=(table.n_obs, 2))
    common = set.intersection(*(set(table.var_names) for table in tables))
    reference = rg.tl.build_reference(sections, use_rep="X_none", thumbnails=False)
    measured = np.asarray(reference.varm["measured"])
    return f"{len(common):,} in {len(tables)} sections, {measured.all(axis=1).sum():,} in {measured.shape[1]} panels"


def main() -> None:
    """Print the table and what is shared; write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("RAGST_SD_TEST_DATA"), help="folder with histology/"
    )
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    args = parser.parse_args()
    folder = Path(args.data) / "histology"
    rows = {name: line(folder / f"{place}.h5ad", name.split(", ")[1]) for name, place in SECTIONS.items()}
    table = as_markdown(pd.DataFrame(rows).T.rename_axis("section").reset_index())
    print(table)
    if args.write:
        write_between_markers(args.write, "gene_names", table)
    sections = read_folder(folder / "mob")
    print("genes shared before:", shared(sections))
    for sdata in sections.values():
        rg.pp.harmonize_genes(sdata, species="mouse")
    print("after:", shared(sections))


if __name__ == "__main__":
    main()
