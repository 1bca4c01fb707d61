r"""Leave-one-donor-out accuracy on real sections.

For every set, encoder and method each donor is predicted from a reference of all other donors. The genes scored are
the 250 most variable ones of the training donors; nothing is chosen on the donor that is predicted.

    python benchmarks/real_sections.py --data "$RAGST_SD_TEST_DATA" --methods all --seeds 3 --csv scores.csv \
        --write docs/benchmarks.md

The scores of each section are kept in `--csv`; `rag` is compared with the best baseline in it, section by section.

`--context` compares fields of view instead: the same embeddings with the tile alone, and with one and two wider fields.

    python benchmarks/real_sections.py --data "$RAGST_SD_TEST_DATA" --context --write docs/benchmarks.md
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from methods import register

import ragst_sd as rg
from ragst_sd import _keys
from ragst_sd._demo import read_folder, variable_genes
from ragst_sd.retrieval.methods import METHODS as REGISTRY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData


SETS = ("mob", "mob2k", "her2st")
METHODS = ("mean", "ridge", "knn", "rag")
IN_CONTEXT = ("ridge", "knn", "rag")
CONTEXT = (1, 2.5, 6)
CITED = (5, 10, 20)
N_GENES = 250
BASELINES = ("ridge", "kernel_ridge", "knn", "mlp", "bleep")


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


def embed(sections: dict, encoder: str, weights: Path, cache: Path | None = None) -> str:
    """Embed all sections, from a folder of finished embeddings where one is named; the key of `.obsm`."""
    for name, sdata in sections.items():
        kept = {} if cache is None else {"cache": cache / f"{encoder}_{name}"}
        rg.pp.embed_tiles(sdata, key_added=f"X_{encoder}", progress=False, **encoders(weights)[encoder], **kept)
    return f"X_{encoder}"


def folds(sections: dict, use_rep: str) -> Iterator[tuple[str, list[str], AnnData, list[str]]]:
    """Each donor, its sections, an unfitted reference of all other donors, and the genes that vary most in it."""
    donor_of = {name: str(sdata.tables["table"].obs["donor"].iloc[0]) for name, sdata in sections.items()}
    for donor in sorted(set(donor_of.values())):
        training = {name: sdata for name, sdata in sections.items() if donor_of[name] != donor}
        reference = rg.tl.build_reference(training, use_rep=use_rep, thumbnails=False)
        held = [name for name in sections if donor_of[name] == donor]
        yield donor, held, reference, variable_genes(reference, N_GENES)


def leave_one_donor_out(
    sections: dict, use_rep: str, methods: tuple[str, ...], n_seeds: int = 1, cited: int | None = None
) -> pd.DataFrame:
    """Accuracy, of evidence alone and with few citations, and `effective_n`: a line per held-out section, method and seed.

    Of `rag` alone there are several seeds.
    """
    lines = []
    for donor, held, reference, genes in folds(sections, use_rep):
        for method, seed in ((one, seed) for one in methods for seed in range(n_seeds if one == "rag" else 1)):
            start = time.perf_counter()
            rg.tl.fit(reference, method=method, n_neighbors=cited, rng=seed, progress=False)
            seconds = time.perf_counter() - start
            for name in held:
                fewer = [n for n in CITED if cited is None or n <= cited] if REGISTRY[method].cites else []
                line = score_section(sections[name], reference, genes, fewer)
                lines.append(
                    {"method": method, "seed": seed, "donor": donor, "section": name, **line, "fit_s": seconds}
                )
    return pd.DataFrame(lines)


def score_section(sdata, reference, genes: list[str], fewer: list[int]) -> dict[str, float]:
    """Scores of one held-out section; where rows are cited, of the evidence too, and of `fewer` cited rows."""
    measured = sdata.tables["table"]
    table = rg.tl.predict(sdata, reference, genes=genes, inplace=False)
    present = set(measured.var_names)
    shared = [gene for gene in genes if gene in present]

    def scores(table, metrics: list[str]) -> pd.Series:
        long = rg.tl.evaluate(table, truth=measured, genes=shared, metrics=metrics)
        means = long.groupby("metric")["value"].mean()
        # A ratio: one gene that hardly varies in the truth would outweigh all others in a mean.
        means.update(long.groupby("metric")["value"].median().filter(["variance_kept"]))
        return means

    line = scores(table, ["pearson", "variance_kept", "share_of_ceiling"]).to_dict()
    if fewer:
        of_evidence = table.copy()
        of_evidence.X = of_evidence.layers[_keys.EVIDENCE]
        line["evidence"] = scores(of_evidence, ["pearson"])["pearson"]
        for n in fewer:
            few = rg.tl.predict(sdata, reference, genes=genes, n_neighbors=n, inplace=False)
            line[f"cited_{n}"] = scores(few, ["pearson"])["pearson"]
    return line


def narrower(sections: dict, use_rep: str, n_fields: int) -> str:
    """The embedding of the first fields of view alone, beside the whole one; fields stand side by side, smallest first."""
    key_added = f"{use_rep}_{n_fields}"
    for sdata in sections.values():
        table = sdata.tables["table"]
        whole = table.obsm[use_rep]
        width = whole.shape[1] // len(CONTEXT) * n_fields
        table.obsm[key_added] = whole[:, :width].copy()
        headers = table.uns[_keys.ATTRS][_keys.EMBEDDINGS]
        header = deepcopy(headers[use_rep])
        header["context"] = header["context"][:n_fields]
        header["section_mean"], header["section_std"] = header["section_mean"][:width], header["section_std"][:width]
        headers[key_added] = header
    return key_added


HEADINGS = {
    "pearson": "Pearson",
    "evidence": "of evidence",
    "effective_n": "effective n",
    **{f"cited_{n}": f"citing {n}" for n in CITED},
    "share_of_ceiling": "share of ceiling",
    "variance_kept": "variance kept",
}


def summarise(scores: pd.DataFrame, by: tuple[str, ...] = ("set", "encoder", "method")) -> pd.DataFrame:
    """Sections are averaged within donors, then donors with equal weight."""
    keys = list(by)
    numbers = [name for name in HEADINGS if name in scores]
    by_donor = scores.groupby([*keys, "donor"], sort=False)[numbers].mean().reset_index()
    summary = by_donor.groupby(keys, sort=False)[numbers].mean().reset_index()
    each = by_donor.groupby(keys, sort=False).apply(
        lambda part: ", ".join(f"{d} {p:.3f}" for d, p in zip(part["donor"], part["pearson"], strict=True)),
        include_groups=False,
    )
    summary["Pearson by donor"] = each.to_numpy()
    return summary


def paired(scores: pd.DataFrame) -> str:
    """`rag` against the best of `BASELINES`: difference, sections averaged within donors, and its error over sections."""
    rows = ["| set | encoder | best baseline | `rag` | difference | standard error | seeds |", "|---" * 7 + "|"]
    for (name, encoder), part in scores.groupby(["set", "encoder"], sort=False):
        by_section = part.groupby(["method", "donor", "section"])["pearson"].mean()
        means = by_section.groupby(["method", "donor"]).mean().groupby("method").mean()
        known = [one for one in BASELINES if one in means]
        if "rag" not in means or not known:
            continue
        best = means[known].idxmax()
        error = (by_section["rag"] - by_section[best]).sem()
        n_seeds = part.loc[part["method"] == "rag", "seed"].nunique()
        rows.append(f"| {name} | {encoder} | `{best}` {means[best]:.3f} | {means['rag']:.3f} | "
                    f"{means['rag'] - means[best]:+.3f} | {error:.3f} | {n_seeds} |")  # fmt: skip
    return "\n".join(rows)


def markdown(summary: pd.DataFrame) -> str:
    """The summary as a Markdown table."""
    columns = list(summary.columns)
    rows = ["| " + " | ".join(HEADINGS.get(name, name) for name in columns) + " |", "|---" * len(columns) + "|"]
    for line in summary.to_dict("records"):
        cells = []
        for name in columns:
            value = line[name]
            if isinstance(value, str):
                cells.append(value)
            elif np.isnan(value):
                cells.append("none")
            else:
                cells.append(f"{value:.1f}" if name == "effective_n" else f"{value:.3f}")
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def write_between_markers(path: Path, marker: str, text: str) -> None:
    """Replace what stands between the markers of a page."""
    begin, end = f"<!-- {marker}: begin -->", f"<!-- {marker}: end -->"
    page = path.read_text()
    if begin not in page or end not in page:
        msg = f"{path} lacks the lines {begin!r} and {end!r} between which the table is written."
        raise SystemExit(msg)
    before, after = page.split(begin)[0], page.split(end)[1]
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def joined(path: Path, marker: str, table: str, n_keys: int) -> str:
    """The table of a page with the lines of a new one: in the place of those of the same run, or after their kin."""

    def keys(line: str) -> list[str]:
        return line.split(" | ")[:n_keys]

    between = path.read_text().split(f"<!-- {marker}: begin -->")[1].split(f"<!-- {marker}: end -->")[0]
    head, rule, *lines = between.strip().splitlines()
    for line in table.splitlines()[2:]:
        same = [i for i, one in enumerate(lines) if keys(one) == keys(line)]
        kin = [i for i, one in enumerate(lines) if keys(one)[:-1] == keys(line)[:-1]]
        if same:
            lines[same[0]] = line
        else:
            lines.insert(kin[-1] + 1 if kin else len(lines), line)
    return "\n".join([head, rule, *lines])


def main() -> None:
    """Run the benchmark."""
    register()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("RAGST_SD_TEST_DATA"), help="folder with histology/, weights/")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--encoders", nargs="+", default=["texture", "mobilenetv2_100"])
    parser.add_argument("--methods", nargs="+", help=f"some of {', '.join(REGISTRY)}, or all")
    parser.add_argument("--context", action="store_true", help="compare fields of view")
    parser.add_argument("--cache", type=Path, help="folder in which embeddings are kept")
    parser.add_argument("--write", type=Path, help="page in whose marked table these lines are replaced")
    parser.add_argument("--csv", type=Path, help="file for the scores of each section; those of other runs stay in it")
    parser.add_argument("--cited", type=int, help="rows that methods are fitted to cite; the tables are for 50")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of rag, whose scores are averaged")
    args = parser.parse_args()
    if not args.data:
        parser.error("name the folder of real sections with --data or RAGST_SD_TEST_DATA")
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    chosen = tuple(args.methods or (IN_CONTEXT if args.context else METHODS))
    chosen = tuple(REGISTRY) if chosen == ("all",) else chosen
    data = Path(args.data)
    by = ("set", "encoder", "fields of view (µm)", "method") if args.context else ("set", "encoder", "method")
    parts = []
    for name in args.sets:
        sections = read_folder(data / "histology" / name)
        for encoder in args.encoders:
            use_rep = embed(sections, encoder, data / "weights", args.cache and args.cache / name)
            for n_fields in range(1, len(CONTEXT) + 1) if args.context else [len(CONTEXT)]:
                rep = use_rep if n_fields == len(CONTEXT) else narrower(sections, use_rep, n_fields)
                scores = leave_one_donor_out(sections, rep, chosen, args.seeds, args.cited)
                scores = scores.assign(set=name, encoder=encoder)
                scores["fields of view (µm)"] = ", ".join(f"{112 * one:.0f}" for one in CONTEXT[:n_fields])
                parts.append(scores)
                print(markdown(summarise(parts[-1], by)), flush=True)
    scores = pd.concat(parts, ignore_index=True)
    if args.csv:
        keys = ["set", "encoder", "fields of view (µm)", "method", "seed", "section"]
        kept = [pd.read_csv(args.csv)] if args.csv.exists() else []
        known = pd.concat([*kept, scores], ignore_index=True).drop_duplicates(keys, keep="last")
        known.to_csv(args.csv, index=False)
    # Methods that cite no rows have empty cells.
    summary = summarise(scores.reindex(columns=list(dict.fromkeys([*scores, *HEADINGS]))), by)
    if args.context:
        summary = summary[[*by, "pearson", "effective_n", "Pearson by donor"]]
    table = markdown(summary)
    print("\n" + table)
    if args.write:
        marker = "context" if args.context else "real_sections"
        write_between_markers(args.write, marker, joined(args.write, marker, table, len(by)))
    if args.csv and not args.context:
        table = paired(known)
        print("\n" + table)
        if args.write:
            write_between_markers(args.write, "paired", joined(args.write, "paired", table, 2))


if __name__ == "__main__":
    main()
