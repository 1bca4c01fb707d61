"""`rg.pp.harmonize_genes`."""

from __future__ import annotations

import logging
from itertools import compress
from typing import Any, cast

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from spatialdata import SpatialData

from ragst_sd import _keys
from ragst_sd._annotation import is_predicted
from ragst_sd._gene_names import is_rna
from ragst_sd._validate import listing, require_choice, require_key, require_type
from ragst_sd.reference.genes import filled_names
from ragst_sd.reference.normalize import as_csr, find_unit
from ragst_sd.reference.symbols import (
    KNOWN_BY,
    SPECIES,
    check_one_species,
    guess_species,
    load_table,
    one_to_one,
    resolve,
)

logger = logging.getLogger(__name__)

KEPT, RENAMED, MERGED, DROPPED = "kept", "renamed", "merged", "dropped"
OTHER_FEATURE = "other_feature"


def harmonize_genes(
    sdata: SpatialData | AnnData,
    *,
    species: str | None = None,
    table_key: str = "table",
    gene_symbols: str | None = None,
    orthologues_to: str | None = None,
    unknown: str = "keep",
    inplace: bool = True,
) -> pd.DataFrame:
    """Convert the gene names of a table to current symbols, and report what happened to each.

    Sections that were counted with annotations from different years may use different names for the same gene, and a
    reference would treat them as different genes. Names are looked up in tables of human and mouse that ship with the
    package (`GENCODE <https://www.gencodegenes.org>`__, `HGNC <https://www.genenames.org>`__,
    `MGI <https://www.informatics.jax.org>`__). A current symbol is kept. Ensembl ids, symbols that a gene had before,
    and aliases become the current symbol (the Ensembl id where a gene has no symbol). A previous symbol takes
    precedence over an alias, because counting pipelines write the symbols of their time. Nothing is guessed: names that
    stand for several genes are ambiguous and are treated like unknown names.

    Parameters
    ----------
    sdata
        Object with a table of measured expression, or the table itself. Run this before
        :func:`ragst_sd.tl.build_reference`.
    species
        `"human"` or `"mouse"`. Left out, it is the one whose current symbols and Ensembl ids at least half of the
        names are; its share is logged.
    table_key
        Table with expression.
    gene_symbols
        Column of `.var` with gene names; `.var_names` if left out.
    orthologues_to
        Also bring the names to this species (`"human"` or `"mouse"`), by one-to-one orthologues of Ensembl. All other
        genes are dropped. A table of that species stays one.
    unknown
        `"keep"` leaves names that were not found as they are, `"drop"` drops these genes.
    inplace
        `False` leaves the object as it is: the report then says what would become of each gene.

    Returns
    -------
    The report, one row per gene of the table as it came, in order, with its name in `.var_names` as the index:

    `name`
        what was looked up
    `symbol`
        the gene that it means (current symbol, or Ensembl id of a gene without one), in the table's own species; empty
        if none was found
    `gene`
        its name from now on; empty if it was dropped
    `how`
        `symbol`, `ensembl`, `ensembl_version` (an id with a version), `previous` (a symbol of earlier days), `alias`,
        `repeated` (`FTH1.1`, made by R or anndata of a second `FTH1`), `ambiguous`, `date` (a spreadsheet has made a
        date of it), `unknown`; `other_feature` where `.var["feature_types"]` does not say `Gene Expression`: these are
        merged with nothing and keep their names, with the type behind it where a gene has the same
    `action`
        `kept`, `renamed`, `merged` with others that mean the same gene, `dropped`
    `candidates`
        genes that the name has stood for, separated by `|`, where there were several

    With `inplace=True` the table in memory gets

    `.var_names`
        the new names. Counts of merged genes are added up in `.X` and all layers; the rest of `.var`, `.varm` and
        `.varp` is that of the first of them, and `.raw` stays as it is.
    `.var["gene_original"]`, `.var["gene_how"]`
        names as they came, and how they were found, those of merged genes separated by `|`
    `.uns["ragst"]["genes"]`
        `species`, `measured_in` (the species before orthologues), `sources` (of the gene tables, with date and
        licence), numbers of genes by `how` and by `action`, and the names of those `dropped`.

    Raises
    ------
    KeyError
        If the table or column does not exist.
    ValueError
        If the species cannot be inferred, names of two species are mixed, fewer than a tenth of the names is in the
        table of the species, no gene is left; names would have to be merged but values are not counts (logarithms
        cannot be added up); or the table is a predicted one, a reference, or backed by a file.

    Examples
    --------
    >>> import anndata as ad
    >>> import numpy as np
    >>> import pandas as pd
    >>> import ragst_sd as rg
    >>> names = ["EPCAM", "ENSG00000170421.12", "MARCH1", "FAM46C", "TENT5C", "my_probe"]
    >>> adata = ad.AnnData(np.ones((3, 6), dtype=np.float32), var=pd.DataFrame(index=names))
    >>> rg.pp.harmonize_genes(adata, species="human")[["gene", "how", "action"]]
                            gene              how   action
    EPCAM                  EPCAM           symbol     kept
    ENSG00000170421.12      KRT8  ensembl_version  renamed
    MARCH1               MARCHF1         previous  renamed
    FAM46C                TENT5C         previous   merged
    TENT5C                TENT5C           symbol   merged
    my_probe            my_probe          unknown     kept
    >>> float(adata[:, "TENT5C"].X[0, 0])
    2.0
    """
    table = _table(sdata, table_key)
    var: Any = table.var
    for value, argument in ((species, "species"), (orthologues_to, "orthologues_to")):
        if value is not None:
            require_choice(value, SPECIES, argument)
    require_choice(unknown, ("keep", "drop"), "unknown")
    if gene_symbols is not None:
        require_key(gene_symbols, var, "table.var", "Leave `gene_symbols` out to take `var_names`.")
    var_names, rna = np.array(table.var_names.astype(str), dtype=object), is_rna(table)
    symbols = var_names if gene_symbols is None else filled_names(list(var_names), var[gene_symbols].astype(str))
    names = np.where(rna, symbols, var_names).tolist()
    of_genes = list(compress(names, rna))
    if species is None:
        species, share = guess_species(of_genes)
        logger.info("Genes are of %s: %.1f %% of %d names are current.", species, 100 * share, len(of_genes))
    else:
        check_one_species(of_genes, species)
    report = _report(resolve(names, species), species, orthologues_to or species, unknown, rna)
    # A name that a gene has is the gene's: what else was counted under it is told by its type.
    taken = (~rna & report["gene"].isin(report["gene"][rna])).to_numpy()
    if taken.any():
        report.loc[taken, "gene"] += [f" ({kind})" for kind in var["feature_types"][taken]]
        report.loc[taken, "action"] = RENAMED
    report.index = table.var_names.copy()
    merged = sorted(set(report["gene"][report["action"] == MERGED]))
    if merged:
        _check_summable(table, merged)
    if not report["gene"].any():
        raise ValueError(f"No gene is left of {len(report)}: {_summary(report)}.")
    logger.info("Of %d genes %s.", len(report), _summary(report))
    if inplace:
        _write(table, report, species, orthologues_to or species)
    return report


def _table(sdata: SpatialData | AnnData, table_key: str) -> AnnData:
    """The table whose genes are renamed; an error for predictions, references and tables that stay on disk."""
    require_type(sdata, (SpatialData, AnnData), "sdata")
    if isinstance(sdata, SpatialData):
        require_key(table_key, sdata.tables, "sdata.tables", "Name the table with expression with `table_key=`.")
    table = sdata if isinstance(sdata, AnnData) else sdata.tables[table_key]
    if is_predicted(table) or _keys.MEASURED in table.varm:
        kind = "was predicted by `rg.tl.predict`" if is_predicted(table) else "is a reference"
        raise ValueError(
            f"The table {kind}; its genes are those of the sections. Harmonise the sections before "
            "`rg.tl.build_reference`."
        )
    if table.isbacked:
        raise ValueError(
            f"The table is backed by {table.filename}, which is never rewritten. Take it into memory with "
            "`.to_memory()`."
        )
    return table


def _report(resolved: pd.DataFrame, species: str, target: str, unknown: str, rna: np.ndarray) -> pd.DataFrame:
    """What becomes of each gene, one row each; features that are not RNA keep their names."""
    report = resolved.rename(columns={"gene": "symbol"})
    report.loc[~rna, ["symbol", "how", "candidates"]] = ["", OTHER_FEATURE, ""]
    known = report["how"].isin(KNOWN_BY)
    if target == species:
        gene = report["symbol"].where(known, report["name"] if unknown == "keep" else "")
    else:
        gene = report["symbol"].map(one_to_one(species, target)).fillna("")
    gene = gene.where(rna, report["name"])
    repeated = gene.where(rna, "").duplicated(keep=False) & rna
    report["gene"] = gene
    report["action"] = np.select([gene == "", repeated, gene == report["name"]], [DROPPED, MERGED, KEPT], RENAMED)
    return report[["name", "symbol", "gene", "how", "action", "candidates"]]


def _summary(report: pd.DataFrame) -> str:
    """How many genes are kept, renamed, merged and dropped, and how many names were not found, for messages."""
    counts = report["action"].value_counts()
    actions = ", ".join(f"{counts[action]} {action}" for action in (KEPT, RENAMED, MERGED, DROPPED) if action in counts)
    unsure = report["how"][~report["how"].isin(KNOWN_BY)].value_counts()
    return actions + "".join(f"; {number} {how}" for how, number in unsure.items())


def _check_summable(table: AnnData, merged: list[str]) -> None:
    """Refuse to merge columns of anything but counts."""
    # anndata lists `.X` among the layers, under the name None.
    matrices = {} if table.X is None else {"X": table.X}
    matrices |= {f"layers[{name!r}]": table.layers[name] for name in table.layers if name is not None}
    for where, matrix in matrices.items():
        kind, why = find_unit(as_csr(matrix))
        if kind not in ("counts", "estimated counts"):
            raise ValueError(
                f"Several names mean one gene ({listing(merged)}), and only counts can be added up: {where} holds "
                f"{why}. Harmonise genes on raw counts before normalising, and leave out layers of other values."
            )


def _write(table: AnnData, report: pd.DataFrame, species: str, target: str) -> None:
    """Rename, merge and drop the genes of the table, in memory."""
    gene = report["gene"].to_numpy(object)
    columns = np.flatnonzero(gene != "")
    # What is not RNA is added to nothing, whatever its name.
    unmerged = (report["how"] == OTHER_FEATURE).to_numpy()
    codes = pd.factorize(np.where(unmerged, np.arange(len(gene)).astype(object), gene)[columns])[0]
    first = columns[np.unique(codes, return_index=True)[1]]
    var, layers = cast("Any", table.var), cast("Any", table.layers)
    before = var.get(_keys.GENE_ORIGINAL, pd.Series(table.var_names, dtype=object)).to_numpy(object)
    origin = pd.DataFrame({_keys.GENE_ORIGINAL: before, _keys.GENE_HOW: report["how"].to_numpy(object)})
    joined = origin.iloc[columns].groupby(codes).agg(lambda group: "|".join(dict.fromkeys(map(str, group))))
    summed, merging = {}, len(first) < len(columns)
    if merging:
        summed = {name: _add_up(layers[name], columns, codes) for name in layers if name is not None}
    x = _add_up(table.X, columns, codes) if merging and table.X is not None else None
    sources = [source for name in dict.fromkeys((species, target)) for source in load_table(name).sources]
    header = {
        "species": target,
        "measured_in": species,
        "sources": np.asarray(sources, dtype=str),
        "how": report["how"].value_counts().to_dict(),
        "action": report["action"].value_counts().to_dict(),
        "dropped": np.asarray(report.index[gene == ""], dtype=str),
    }
    table._inplace_subset_var(first)
    table.layers.update(summed)
    if x is not None:
        table.X = x
    table.var_names = pd.Index(gene[first].astype(str))
    for name, values in joined.items():
        table.var[name] = values.to_numpy(object)
    table.uns[_keys.ATTRS] = {**table.uns.get(_keys.ATTRS, {}), _keys.GENES: header}


def _add_up(matrix: Any, columns: np.ndarray, codes: np.ndarray) -> Any:
    """Sums of the columns of each gene, sparse if they were, in the type that they had."""
    if hasattr(matrix, "compute"):
        matrix = matrix.compute()
    ones = np.ones(len(columns), dtype=matrix.dtype)
    out = matrix @ sp.csr_matrix((ones, (columns, codes)), shape=(matrix.shape[1], int(codes.max()) + 1))
    return out.astype(matrix.dtype, copy=False) if sp.issparse(out) else np.asarray(out, dtype=matrix.dtype)
