"""Names of genes and the tables that they are looked up in."""

from __future__ import annotations

import gzip
import re
from importlib.resources import files

import pytest

from ragst_sd.reference.symbols import SPECIES, check_one_species, guess_species, load_table, one_to_one, resolve


def found(name, species="human", *others):
    row = resolve([name, *others], species).iloc[0]
    return row["gene"], row["how"]


@pytest.mark.parametrize("species", SPECIES)
class TestTable:
    def test_names_source_date_and_licence(self, species):
        sources = load_table(species).sources
        assert len(sources) >= 3
        for source in sources:
            assert re.search(r"(19|20)\d\d|GRCh38", source), source
            assert re.search(r"CC0|CC-BY|open access", source), source

    def test_is_whole_and_small(self, species):
        table = load_table(species)
        assert len(table.symbols) > 40_000 and len(table.by_ensembl) > 75_000
        assert len(table.previous) + len(table.alias) > 20_000
        assert len((files("ragst_sd.reference") / f"genes_{species}.tsv.gz").read_bytes()) < 1_000_000

    def test_every_line_has_the_columns(self, species):
        text = gzip.decompress((files("ragst_sd.reference") / f"genes_{species}.tsv.gz").read_bytes()).decode()
        lines = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
        assert lines[0] == ["symbol", "ensembl", "previous", "alias", "orthologue"]
        assert {len(line) for line in lines} == {5}
        assert all(symbol or ensembl for symbol, ensembl, *_ in lines[1:])
        ids = [line[1] for line in lines[1:] if line[1]]
        prefix = "ENSG" if species == "human" else "ENSMUSG"
        assert all(re.fullmatch(prefix + r"\d{11}", identifier) for identifier in ids)
        listed = {name for line in lines[1:] for cell in line[2:4] for name in cell.split("|")}
        assert not any(blank in name for name in listed for blank in " \t,<>()")

    def test_a_gene_is_called_by_its_symbol(self, species):
        table = load_table(species)
        genes = set(table.by_ensembl.values())
        assert {gene for gene in genes if gene not in table.symbols} <= set(table.by_ensembl)
        for names in (table.previous, table.alias):
            assert {gene for some in names.values() for gene in some} <= table.symbols | genes


@pytest.mark.parametrize(
    ("name", "gene", "how"),
    [
        ("EPCAM", "EPCAM", "symbol"),
        ("ENSG00000119888", "EPCAM", "ensembl"),
        ("ENSG00000119888.12", "EPCAM", "ensembl_version"),
        ("FAM46C", "TENT5C", "previous"),
        ("SEPT7", "SEPTIN7", "previous"),
        ("RP11-34P13.8", "ENSG00000239945", "previous"),
        ("TM4SF8", "TSPAN3", "previous"),
        ("HER-2", "ERBB2", "alias"),
        ("STRA13", "", "ambiguous"),
        ("1-Mar", "", "date"),
        ("Sep-02", "", "date"),
        ("no_such_gene", "", "unknown"),
        ("", "", "unknown"),
    ],
)
def test_human_names(name, gene, how):
    assert found(name, "human", "KRT8", "KRT18") == (gene, how)


@pytest.mark.parametrize(
    ("name", "gene", "how"),
    [
        ("Gnai3", "Gnai3", "symbol"),
        ("ENSMUSG00000064339.2", "mt-Rnr2", "ensembl_version"),
        ("Fam46c", "Tent5c", "alias"),
        ("EPCAM", "", "unknown"),
    ],
)
def test_mouse_names(name, gene, how):
    assert found(name, "mouse", "Krt8", "Krt18") == (gene, how)


def test_an_earlier_symbol_goes_before_an_alias_and_both_are_told():
    row = resolve(["TAZ", "EPCAM"], "human").iloc[0]
    # The symbol of tafazzin until 2019, and what WWTR1 is called in papers.
    assert (row["gene"], row["how"], row["candidates"]) == ("TAFAZZIN", "previous", "TAFAZZIN|WWTR1")


def test_a_current_symbol_is_taken_as_it_is():
    alias = load_table("human").alias
    symbol = next(name for name in alias if name in load_table("human").symbols)
    assert found(symbol) == (symbol, "symbol")


def test_an_earlier_symbol_beside_its_gene_is_that_gene():
    # Gene models that were put together: both listed by annotations before 2018.
    assert list(resolve(["ARHGAP42", "TMEM133"], "human")["gene"]) == ["ARHGAP42", "ARHGAP42"]
    assert list(resolve(["Mia2", "Ctage5"], "mouse")["gene"]) == ["Mia2", "Mia2"]


def test_a_name_means_the_same_in_every_list():
    table = load_table("mouse")
    names = [*list(table.alias)[::500], *list(table.previous)[::300], "Fth1.1", *sorted(table.symbols)[::500]]
    together = resolve(names, "mouse").set_index("name")
    assert len(names) > 150
    for name in names[::10]:
        row = resolve([name, "Epcam"], "mouse").iloc[0]
        assert row[["gene", "how", "candidates"]].equals(together.loc[name]), name


def test_numbers_that_make_names_unique():
    assert found("FTH1.1", "human", "FTH1") == ("FTH1", "repeated")
    assert found("FTH1-2", "human", "FTH1") == ("FTH1", "repeated")
    assert found("no_such_gene.1", "human", "FTH1") == ("", "unknown")
    assert found("NKX2-1", "human", "EPCAM") == ("NKX2-1", "symbol")


def test_nothing_is_resolved_but_by_the_table():
    """Brute force over the lines of the table, for some names."""
    text = gzip.decompress((files("ragst_sd.reference") / "genes_human.tsv.gz").read_bytes()).decode()
    lines = [line.split("\t") for line in text.splitlines() if not line.startswith("#")][1:]
    symbols, ids = {line[0] for line in lines}, {line[1] for line in lines}
    names = sorted({name for line in lines for cell in line[2:4] for name in cell.split("|")} - symbols - ids)[::4000]
    assert len(names) > 10
    for name in names:
        expected = [{line[0] or line[1] for line in lines if name in line[i].split("|")} for i in (2, 3)]
        genes = expected[0] or expected[1]
        gene = resolve([name, "EPCAM", "ENO1"], "human").loc[0, "gene"]
        assert gene == (genes.pop() if len(genes) == 1 else ""), name


def test_species_is_guessed():
    assert guess_species(["EPCAM", "KRT8", "ENSG00000119888.2", "my_probe"]) == ("human", 0.75)
    assert guess_species(["Epcam", "Krt8", "mt-Nd1"])[0] == "mouse"
    with pytest.raises(ValueError, match="species cannot be told from 3 gene names"):
        guess_species(["gene1", "gene2", "gene3"])
    with pytest.raises(ValueError, match="species cannot be told from 0"):
        guess_species([])


def test_mixed_species_are_refused():
    mixed = ["EPCAM", "KRT8", "KRT18", "Epcam", "Krt8"]
    for names in (mixed, ["ENSG00000119888", "ENSMUSG00000064339"]):
        with pytest.raises(ValueError, match=r"mix species.*orthologues_to="):
            guess_species(names)
    with pytest.raises(ValueError, match="mix species: 60% are names of human, and 40% are names of mouse only"):
        check_one_species(mixed, "human")
    with pytest.raises(
        ValueError,
        match=r"are not those of mouse: 0% .* and 100% .* Is `rg.pp.harmonize_genes\(..., species='human'\)` meant",
    ):
        check_one_species(["EPCAM", "KRT8"], "mouse")
    assert check_one_species(["EPCAM", "KRT8", "gene1"], "human") == 0


def test_a_table_without_overlap_is_refused():
    with pytest.raises(ValueError, match="0 of 2 gene names are in the table of mouse"):
        resolve(["EPCAM", "KRT8"], "mouse")
    with pytest.raises(ValueError, match="no gene table of species 'rat'"):
        resolve(["Epcam"], "rat")
    assert len(resolve([], "human")) == 0


def test_orthologues_are_one_to_one_both_ways():
    forward, back = one_to_one("human", "mouse"), one_to_one("mouse", "human")
    assert len(forward) > 16_000 and {b: a for a, b in forward.items()} == back
    assert forward["EPCAM"] == "Epcam" and forward["TENT5C"] == "Tent5c" and forward["TP53"] == "Trp53"
    # Several genes on one side.
    assert not {"CYP2D6", "HLA-A", "GSTT2"} & set(forward)


REAL = [
    # folder, file, species, least share of names resolved, most names that stay ambiguous
    ("her2st", "B4", "human", 0.995, 5),
    ("mob", "rep01", "mouse", 0.94, 30),
    ("mob", "rep11", "mouse", 0.995, 30),
    ("mob2k", "MOB1", "mouse", 0.995, 1),
    ("colon", "d0", "mouse", 0.99, 0),
    ("lung_xenium_toy", "NCBI858", "human", 1.0, 0),
]


@pytest.mark.parametrize(("folder", "section", "species", "share", "ambiguous"), REAL)
def test_real_names(data_dir, folder, section, species, share, ambiguous):
    import anndata as ad

    names = list(ad.read_h5ad(data_dir / "histology" / folder / f"{section}.h5ad").var_names)
    found, share = guess_species(names)
    assert found == species and share > 0.85 and check_one_species(names, species) < 0.001
    report = resolve(names, species)
    assert (report["gene"] != "").mean() >= share
    assert (report["how"] == "ambiguous").sum() <= ambiguous
