"""Leave-one-donor-out accuracy on real sections.

For every set, encoder and method each donor is predicted from a reference of all other donors. The genes scored are
the 250 most variable ones of the training donors; nothing is chosen on the donor that is predicted.

    python benchmarks/real_sections.py --data "$RAGST_SD_TEST_DATA" --write docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd

import ragst_sd as rg
from ragst_sd._demo import read_folder, variable_genes

SETS = ("mob", "mob2k", "her2st")
METHODS = ("mean", "ridge", "knn")
CONTEXT = (1, 2.5, 6)
N_GENES = 250
BEGIN, END = "<!-- real_sections: begin -->", "<!-- real_sections: end -->"


def encoders(weights: Path) -> dict[str, dict]:
    """Arguments of `rg.pp.embed_tiles` for each encoder."""
    mobilenet = {
        "model": "mobilenetv2_100",
        "model_kwargs": {"pad_type": "same", "checkpoint_path": str(weights / "mobilenetv2_100_tf.safetensors")},
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "context": CONTEXT,
        # Full precision, so that the table does not depend on what the machine's processor gains from.
        "amp": False,
    }
    return {"texture": {"model": "texture", "context": CONTEXT}, "mobilenetv2_100": mobilenet}


def leave_one_donor_out(sections: dict, use_rep: str, methods: tuple[str, ...]) -> pd.DataFrame:
    """One line per held-out section and method: Pearson, variance kept, and `effective_n`."""
    donor_of = {name: str(sdata.tables["table"].obs["donor"].iloc[0]) for name, sdata in sections.items()}
    lines = []
    for donor in sorted(set(donor_of.values())):
        training = {name: sdata for name, sdata in sections.items() if donor_of[name] != donor}
        reference = rg.tl.build_reference(training, use_rep=use_rep, thumbnails=False)
        genes = variable_genes(reference, N_GENES)
        for method in methods:
            rg.tl.fit(reference, method=method)
            for name in (name for name in sections if donor_of[name] == donor):
                measured = set(sections[name].tables["table"].var_names)
                table = rg.tl.predict(sections[name], reference, genes=genes, inplace=False)
                scores = rg.tl.evaluate(
                    table,
                    truth=sections[name].tables["table"],
                    genes=[gene for gene in genes if gene in measured],
                    metrics=["pearson", "variance_kept"],
                )
                of_genes = scores.groupby("metric")["value"]
                summary = of_genes.mean().to_dict()
                # A ratio: one gene that hardly varies in the truth would outweigh all others in a mean.
                summary["variance_kept"] = of_genes.median()["variance_kept"]
                lines.append({"method": method, "donor": donor, "section": name, **summary})
    return pd.DataFrame(lines)


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Sections are averaged within donors, then donors with equal weight."""
    numbers = ["pearson", "effective_n", "variance_kept"]
    by_donor = scores.groupby(["set", "encoder", "method", "donor"], sort=False)[numbers].mean().reset_index()
    keys = ["set", "encoder", "method"]
    summary = by_donor.groupby(keys, sort=False)[numbers].mean().reset_index()
    each = by_donor.groupby(keys, sort=False).apply(
        lambda part: ", ".join(f"{d} {p:.3f}" for d, p in zip(part["donor"], part["pearson"], strict=True)),
        include_groups=False,
    )
    summary["pearson by donor"] = each.to_numpy()
    return summary


def markdown(summary: pd.DataFrame) -> str:
    """The summary as a Markdown table."""
    head = "| set | encoder | method | Pearson | effective n | variance kept | Pearson by donor |"
    rows = [head, "|---|---|---|---|---|---|---|"]
    for line in summary.itertuples(index=False):
        effective = "none" if np.isnan(line.effective_n) else f"{line.effective_n:.1f}"
        values = [line.set, line.encoder, line.method, f"{line.pearson:.3f}", effective, f"{line.variance_kept:.3f}"]
        rows.append("| " + " | ".join([*values, line[-1]]) + " |")
    return "\n".join(rows)


def write_between_markers(path: Path, text: str) -> None:
    """Replace what stands between the markers of a page."""
    page = path.read_text()
    if BEGIN not in page or END not in page:
        msg = f"{path} lacks the lines {BEGIN!r} and {END!r} between which the table is written."
        raise SystemExit(msg)
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("RAGST_SD_TEST_DATA"), help="folder with histology/, weights/")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--encoders", nargs="+", default=["texture", "mobilenetv2_100"])
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--write", type=Path, help="page whose marked table is replaced")
    parser.add_argument("--csv", type=Path, help="file for the scores of each section")
    args = parser.parse_args()
    if not args.data:
        parser.error("name the folder of real sections with --data or RAGST_SD_TEST_DATA")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    data = Path(args.data)
    known = encoders(data / "weights")
    parts = []
    for name in args.sets:
        sections = read_folder(data / "histology" / name)
        for encoder in args.encoders:
            for sdata in sections.values():
                rg.pp.embed_tiles(sdata, key_added=f"X_{encoder}", **known[encoder])
            scores = leave_one_donor_out(sections, f"X_{encoder}", tuple(args.methods))
            parts.append(scores.assign(set=name, encoder=encoder))
            print(markdown(summarise(parts[-1])), flush=True)
    scores = pd.concat(parts, ignore_index=True)
    if args.csv:
        scores.to_csv(args.csv, index=False)
    table = markdown(summarise(scores))
    print("\n" + table)
    if args.write:
        write_between_markers(args.write, table)


if __name__ == "__main__":
    main()
