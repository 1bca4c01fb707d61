"""Genes of a table by current symbols."""

from __future__ import annotations

import pytest

from ragst_sd.reference.current_names import CURRENT, current_names, names_in, species_of
from ragst_sd.reference.symbols import load_table

HUMAN = ["EPCAM", "KRT8", "FAM46C", "TENT5C", "MARCH1", "my_probe"]


def ids_of(symbols: list[str], species: str) -> list[str]:
    by_symbol = {symbol: identifier for identifier, symbol in load_table(species).by_ensembl.items()}
    return [by_symbol.get(symbol, symbol) for symbol in symbols]


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        ({"symbol": HUMAN}, "human"),
        ({"symbol": ["Epcam", "Krt8", "Actb"]}, "mouse"),
        ({"ensembl": ids_of(["EPCAM", "KRT8"], "human")}, "human"),
        ({"symbol": ["Gene001", "Gene002"]}, "unknown"),
    ],
)
def test_species(offered, expected):
    assert species_of(offered) == expected


def test_mixed_species_are_refused():
    with pytest.raises(ValueError, match=r"mix species: 50% are names of human, and 50% are names of mouse only"):
        species_of({"symbol": ["EPCAM", "KRT8", "Epcam", "Krt8"]})


def test_current_symbols_and_what_became_of_each():
    found = current_names({"symbol": HUMAN})
    assert found.names == ["EPCAM", "KRT8", "TENT5C", "TENT5C", "MARCHF1", "my_probe"]
    assert found.how == {"kept": 2, "renamed": 1, "merged": 2, "dropped": 0, "unknown": 1}
    assert sum(found.how.values()) == len(HUMAN)


def test_an_id_goes_before_a_symbol():
    """The id of EPCAM beside a symbol that names another gene, as annotations of other years have it."""
    offered = {"symbol": ["KRT8", "KRT18"], "ensembl": [*ids_of(["EPCAM"], "human"), "ENSG99999999999"]}
    assert current_names(offered).names == ["EPCAM", "KRT18"]


def test_orthologues_one_to_one_and_nothing_else():
    found = current_names({"symbol": ["Epcam", "Krt8", "Actb", "Tent5c", "Hbb-bs"]}, orthologues_to="human")
    assert found.species == "mouse"
    assert found.names[:2] == ["EPCAM", "KRT8"]
    assert found.names[4] == ""
    assert found.how["dropped"] == found.names.count("")


def test_names_in_the_naming_of_a_reference():
    offered = {"symbol": ["Epcam", "Krt8", "Hbb-bs"]}
    whose = ("The reference", "`adata`")
    assert names_in("symbol", offered, *whose) == ["Epcam", "Krt8", "Hbb-bs"]
    assert names_in(CURRENT["mouse"], offered, *whose) == ["Epcam", "Krt8", "Hbb-bs"]
    assert names_in(CURRENT["human"], offered, *whose) == ["EPCAM", "KRT8", "Hbb-bs (mouse)"]
    with pytest.raises(ValueError, match=r"The reference names its genes by Ensembl ids, `adata` by symbols .*'Epcam'"):
        names_in("ensembl", offered, *whose)
