"""Coverage of intervals on donors that nothing was learned from, and the error of the spots that are kept.

Synthetic tissue of ten donors, each left out in turn, for 20 seeds:

    python benchmarks/intervals.py --synthetic --write docs/benchmarks.md

Real sections, each donor left out in turn:

    python benchmarks/intervals.py --data "$RAGST_SD_TEST_DATA" --write docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from real_sections import embed, write_between_markers

import ragst_sd as rg
from ragst_sd import _keys
from ragst_sd._demo import read_folder, variable_genes

SETS = ("mob2k", "mob", "her2st")
LEVELS = (0.5, 0.8, 0.9)
ORDERS = ("disagreement", "interval_width", "distance_percentile", "effective_n", "evidence_share")
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
SHOWN = (1.0, 0.8, 0.5, 0.2)
N_GENES = 250
PASTED = 0.4
SMALL = {"n_genes": 260, "image_px": 500, "mpp": 1.0}
SEEN = {"model": "texture", "tile_px": 64, "mpp": 1.0, "context": (1,), "key_added": "X_texture", "progress": False}


def embed_small(sdata) -> None:
    """Embed a small synthetic section."""
    rg.pp.embed_tiles(sdata, overwrite=True, **SEEN)


def coverage(sdata, reference, genes: list[str] | None = None) -> list[dict]:
    """Coverage and width at each level on a held-out section, means over genes; widths in standard deviations of the gene."""
    measured = sdata.tables["table"]
    lines = []
    for level in LEVELS:
        table = rg.tl.predict(sdata, reference, intervals=level, genes=genes, inplace=False)
        long = rg.tl.evaluate(table, truth=measured, metrics=["coverage", "interval_width"])
        means = long[long["gene"] != ""].groupby("metric")["value"].mean()
        unit = table.uns[_keys.RETRIEVAL][_keys.INTERVAL_UNIT]
        outside = float(table.obs[_keys.OUT_OF_REFERENCE].mean())
        lines.append({"level": level, "unit": unit, **means.to_dict(), "out of reference": outside})
    return lines


def paste_noise(sdata, rng: np.random.Generator) -> np.ndarray:
    """Overwrite a corner of the image with noise; returns which spots lie in it."""
    from spatialdata.models import Image2DModel
    from spatialdata.transformations import get_transformation

    image = sdata.images["he"]
    frames = get_transformation(image, get_all=True)
    values = np.asarray(image["scale0"]["image"].data).copy()
    side = int(values.shape[-1] * PASTED)
    values[:, :side, :side] = rng.integers(0, 256, (values.shape[0], side, side))
    sdata.images["he"] = Image2DModel.parse(values, dims=("c", "y", "x"), transformations=frames)
    embed_small(sdata)
    xy = np.asarray(sdata.tables["table"].obsm[_keys.SPATIAL])
    return (xy < side).all(axis=1)


def synthetic(seeds: int, left_out: int, methods: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Coverage on every left-out donor, and widths with noise pasted into the image of one donor per seed."""
    covered, widths = [], []
    for seed in range(seeds):
        sections = rg.datasets.synthetic(n_donors=10, rng=seed, **SMALL)
        for sdata in sections.values():
            embed_small(sdata)
        for i, held in enumerate(list(sections)[:left_out]):
            training = {name: one for name, one in sections.items() if name != held}
            reference = rg.tl.build_reference(training, use_rep="X_texture", thumbnails=False)
            for method in methods:
                rg.tl.fit(reference, method=method, n_neighbors=20, progress=False)
                rg.tl.calibrate(reference, levels=LEVELS, progress=False)
                own = {"seed": seed, "donor": held, "method": method}
                covered += [{**own, **line} for line in coverage(sections[held], reference)]
                if i < left_out - 1:
                    continue
                # Last of its seed: the image is changed for good.
                clean = rg.tl.predict(sections[held], reference, intervals=0.9, inplace=False)
                pasted = paste_noise(sections[held], np.random.default_rng(seed))
                table = rg.tl.predict(sections[held], reference, intervals=0.9, inplace=False)
                wide, before = ((one.layers[_keys.UPPER] - one.layers[_keys.LOWER]) for one in (table, clean))
                flagged = table.obs[_keys.OUT_OF_REFERENCE].to_numpy(bool)
                for name, spots in (("noise", pasted), ("tissue", ~pasted)):
                    ratio = np.nanmean(wide[spots] / before[spots])
                    widths.append({**own, "spots": name, "ratio": ratio, "out of reference": flagged[spots].mean()})
                embed_small(sections[held])
        print(
            seed, pd.DataFrame(covered).groupby(["method", "level"])["coverage"].mean().round(4).to_dict(), flush=True
        )
    return pd.DataFrame(covered), pd.DataFrame(widths)


def real(sections: dict, methods: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Coverage and risk of every section, predicted from the other donors."""
    donor_of = {name: str(sdata.tables["table"].obs["donor"].iloc[0]) for name, sdata in sections.items()}
    covered, risks = [], []
    for donor in sorted(set(donor_of.values())):
        training = {name: sdata for name, sdata in sections.items() if donor_of[name] != donor}
        reference = rg.tl.build_reference(training, use_rep="X_texture", thumbnails=False)
        genes = variable_genes(reference, N_GENES)
        for method in methods:
            rg.tl.fit(reference, method=method, progress=False)
            rg.tl.calibrate(reference, levels=LEVELS, progress=False)
            for name in (name for name in sections if donor_of[name] == donor):
                present = set(sections[name].tables["table"].var_names)
                shared = [gene for gene in genes if gene in present]
                own = {"method": method, "donor": donor, "section": name}
                covered += [{**own, **line} for line in coverage(sections[name], reference, shared)]
                table = rg.tl.predict(sections[name], reference, intervals=0.5, genes=shared, inplace=False)
                truth = sections[name].tables["table"]
                risk = rg.get.risk_coverage(table, truth=truth, by=ORDERS, shares=SHARES)
                risks.append(risk.assign(**own))
    return pd.DataFrame(covered), pd.concat(risks, ignore_index=True)


def over_donors(frame: pd.DataFrame, keys: list[str], columns: list[str]) -> pd.DataFrame:
    """Sections are averaged within donors, then donors with equal weight."""
    within = frame.groupby([*keys, "donor"], sort=False)[columns].mean()
    return within.groupby(keys, sort=False).mean().reset_index()


def markdown(frame: pd.DataFrame) -> str:
    """A frame as a Markdown table, numbers with three decimals."""
    head = ["| " + " | ".join(map(str, frame.columns)) + " |", "|---" * len(frame.columns) + "|"]
    cells = [[f"{v:.3f}" if isinstance(v, float) else str(v) for v in line] for line in frame.itertuples(index=False)]
    return "\n".join([*head, *("| " + " | ".join(line) + " |" for line in cells)])


def synthetic_tables(covered: pd.DataFrame, widths: pd.DataFrame) -> str:
    """Means over donors and seeds, with the standard error over seeds."""
    by_seed = covered.groupby(["method", "level", "unit", "seed"], sort=False)[["coverage", "interval_width"]].mean()
    by_donor = covered.groupby(["method", "level", "unit"], sort=False)["coverage"]
    keys = ["method", "level", "unit"]
    mean, error = by_seed.groupby(keys, sort=False).mean(), by_seed.groupby(keys, sort=False).sem()
    table = pd.DataFrame(
        {
            "coverage": mean["coverage"],
            "standard error": [f"{one:.4f}" for one in error["coverage"]],
            "lowest tenth of donors": by_donor.quantile(0.1),
            "mean width": mean["interval_width"],
        }
    )
    pasted = widths.groupby(["method", "spots"], sort=False)[["ratio", "out of reference"]].mean()
    pasted.columns = ["width over that without noise", "called out of reference"]
    return markdown(table.reset_index()) + "\n\n" + markdown(pasted.reset_index())


def coverage_table(covered: pd.DataFrame) -> str:
    """One line per set, method, donor and level."""
    frame = covered.groupby(["set", "method", "donor", "level", "unit"], sort=False)[
        ["coverage", "interval_width"]
    ].mean()
    wide = frame.reset_index()
    wide["cell"] = [f"{c:.3f} ({u})" for c, u in zip(wide["coverage"], wide["unit"], strict=True)]
    keys = ["set", "method", "donor"]
    cells = wide.pivot_table(index=keys, columns="level", values="cell", aggfunc="first", sort=False)
    cells.columns = [f"at {level:g}" for level in cells.columns]
    return markdown(cells.reset_index())


def risk_table(risks: pd.DataFrame, metric: str) -> str:
    """One line per set, method and order; columns are shares of the spots kept."""
    own = risks[(risks["metric"] == metric) & risks["share"].isin(SHOWN)]
    means = over_donors(own, ["set", "method", "by", "share"], ["value"])
    wide = means.pivot_table(index=["set", "method", "by"], columns="share", values="value", sort=False)
    wide.columns = [f"{share:.0%} kept" for share in wide.columns]
    return markdown(wide.reset_index())


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthetic", action="store_true", help="ten made-up donors in place of real sections")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--left-out", type=int, default=10, help="donors left out for each seed")
    parser.add_argument("--data", default=os.environ.get("RAGST_SD_TEST_DATA"), help="folder with histology/, weights/")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--methods", nargs="+", default=["knn"])
    parser.add_argument("--cache", type=Path, help="folder in which embeddings are kept")
    parser.add_argument("--write", type=Path, help="page whose marked tables are replaced")
    parser.add_argument("--csv", type=Path, help="prefix of files for the scores of each section")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    warnings.filterwarnings("ignore", category=FutureWarning)
    if args.synthetic:
        covered, widths = synthetic(args.seeds, args.left_out, args.methods)
        tables = {"intervals_synthetic": synthetic_tables(covered, widths)}
        frames = {"coverage": covered, "widths": widths}
    else:
        if not args.data:
            parser.error("name the folder of real sections with --data or RAGST_SD_TEST_DATA")
        data, parts = Path(args.data), []
        for name in args.sets:
            sections = read_folder(data / "histology" / name)
            embed(sections, "texture", data / "weights", args.cache and args.cache / name)
            parts.append([frame.assign(set=name) for frame in real(sections, args.methods)])
            print(coverage_table(parts[-1][0]), risk_table(parts[-1][1], "nrmse"), sep="\n\n", flush=True)
        covered, risks = (pd.concat(frames, ignore_index=True) for frames in zip(*parts, strict=True))
        tables = {"intervals_real": coverage_table(covered)}
        tables |= {f"risk_{metric}": risk_table(risks, metric) for metric in ("nrmse", "spread", "pearson")}
        frames = {"coverage": covered, "risk": risks}
    for marker, text in tables.items():
        print(f"\n{marker}\n\n{text}")
        if args.write:
            write_between_markers(args.write, marker, text)
    for name, frame in frames.items():
        if args.csv:
            frame.to_csv(f"{args.csv}_{name}.csv", index=False)


if __name__ == "__main__":
    main()
