"""What references must have in common to be merged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ragst_sd._validate import listing
from ragst_sd.reference.current_names import CURRENT
from ragst_sd.reference.merging import differing_columns
from ragst_sd.reference.schema import differing_fields
from ragst_sd.tl._gene_names import check_one_species_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData


def check_alike(named: Mapping[str, AnnData], headers: Mapping[str, dict[str, Any]]) -> None:
    """Raise a `ValueError` if references differ in embedding, scale of expression, naming of genes, species or columns."""
    first_name, first = next(iter(headers.items()))
    for name, header in headers.items():
        clauses = differing_fields(first["encoder"], header["encoder"])
        for field in ("task", "use_rep", "standardize"):
            if first[field] != header[field]:
                clauses.append(f"{field}: {first[field]} against {header[field]}")
        if not clauses:
            widths = [named[one].obsm[str(header["use_rep"])].shape[1] for one in (first_name, name)]
            clauses += [f"width: {widths[0]} against {widths[1]}"] * (widths[0] != widths[1])
        for field in ("naming", "given", "target_sum", "unit"):
            a, b = first["normalization"][field], header["normalization"][field]
            if a != b:
                clauses.append(f"{field} of the expression: {a} against {b}")
        if clauses:
            msg = (
                f"{first_name} and {name} were made differently ({'; '.join(clauses)}), so their rows cannot be compared. Build "
                "both with the same embedding, settings and naming of genes."
            )
            raise ValueError(msg)
    if first["normalization"]["naming"] not in CURRENT.values():
        species = [
            (sample, one)
            for header in headers.values()
            for sample, one in zip(header["sections"]["sample"], header["sections"]["species"], strict=True)
        ]
        check_one_species_of({str(sample): str(one) for sample, one in species}, "Sections of the references")
    missing = differing_columns({name: list(map(str, header["obs"])) for name, header in headers.items()})
    if missing:
        msg = f"The references keep different columns of `obs` ({missing}). Build them with the same `obs=`."
        raise ValueError(msg)


def check_samples(headers: Mapping[str, dict[str, Any]]) -> None:
    """Raise a `ValueError` if a sample is in several references."""
    owner: dict[str, str] = {}
    twice = {}
    for name, header in headers.items():
        for sample in map(str, header["sections"]["sample"]):
            if owner.setdefault(sample, name) != name:
                twice[sample] = (owner[sample], name)
    if twice:
        sample, (first, second) = next(iter(twice.items()))
        msg = (
            f"{len(twice)} samples are in more than one reference: {listing(twice)} ({sample!r} in {first} and {second}). If it is "
            f"the same section, leave it out of one: `reference[reference.obs['sample'] != {sample!r}].copy()`; else build one "
            "of them with another sample name."
        )
        raise ValueError(msg)
