"""Draw the figures of the README and the documentation from real sections.

python docs/make_figures.py --data "$RAGST_SD_TEST_DATA"
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

import ragst_sd as rg
from ragst_sd._demo import read_folder, variable_genes

HELD_OUT = "rep01"
GENES = ["Cck", "Penk", "Doc2g"]
COMPARED = ["rag", "knn", "knn_supervised", "bleep", "mlp", "ridge"]


def main() -> None:
    """Predict one olfactory bulb section from other donors and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("RAGST_SD_TEST_DATA"), help="folder with histology/")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "_static")
    args = parser.parse_args()
    if not args.data:
        parser.error("name the folder of real sections with --data or RAGST_SD_TEST_DATA")
    sections = read_folder(Path(args.data) / "histology" / "mob")
    for sdata in sections.values():
        rg.pp.embed_tiles(sdata)
    query = sections[HELD_OUT]
    donor = query.tables["table"].obs["donor"].iloc[0]
    training = {name: s for name, s in sections.items() if s.tables["table"].obs["donor"].iloc[0] != donor}
    reference = rg.tl.build_reference(training, use_rep="X_texture")
    rg.tl.fit(reference, progress=False)
    rg.tl.predict(query, reference, genes=[*dict.fromkeys([*GENES, *variable_genes(reference, 250)])])

    args.out.mkdir(exist_ok=True)
    gene = GENES[1]
    rg.pl.prediction(query, gene=GENES[:2], truth_key="table", save=args.out / "prediction.png", show=False)
    table = query.tables["predicted"]
    spot = table.obs_names[int(np.argmax(np.asarray(table[:, gene].X).ravel()))]
    few = rg.tl.predict(query, reference, genes=[gene], n_neighbors=12, inplace=False)
    query.tables["predicted"] = few
    rg.pl.retrieval(query, reference, obs_name=spot, gene=gene, save=args.out / "retrieval.png", show=False)
    draw_benchmark(Path(args.data) / "histology" / "mob2k", args.out / "benchmark.png")


def draw_benchmark(folder: Path, path: Path) -> None:
    """Accuracy of all methods on each donor of a set, predicted from the others."""
    sections = read_folder(folder)
    for sdata in sections.values():
        rg.pp.embed_tiles(sdata)
    reference = rg.tl.build_reference(sections, use_rep="X_texture", thumbnails=False)
    scores = rg.tl.cross_validate(reference, methods=COMPARED, cited=(), inplace=False)
    rg.pl.benchmark(scores, baseline="ridge", save=path, show=False)


if __name__ == "__main__":
    main()
