from __future__ import annotations

import gzip
import logging

import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg

from ..screens import given_responses


def planted(n_blocks=4, per_block=6, seed=0):
    """Gene sets drawn mostly within blocks, so that genes of one block belong together."""
    rng = np.random.default_rng(seed)
    sets = {}
    for block in range(n_blocks):
        genes = [f"B{block}G{i}" for i in range(per_block)]
        for t in range(8):
            sets[f"block {block} set {t}"] = list(rng.choice(genes, 4, replace=False))
        sets[f"mixed {block}"] = [f"B{b}G{rng.integers(per_block)}" for b in range(n_blocks)]
    return sets


def write_gmt(path, sets):
    path.write_text("".join(f"{name}\t\t" + "\t".join(genes) + "\n" for name, genes in sets.items()))
    return path


def test_genes_of_the_same_sets_are_alike():
    embedding = rg.tl.embed_genes(planted(), n_components=4)
    assert isinstance(embedding, pd.DataFrame)
    assert embedding.shape == (24, 4)
    assert list(embedding.index) == sorted(embedding.index)
    similarity = embedding.to_numpy() @ embedding.to_numpy().T
    block = np.array([name[:2] for name in embedding.index])
    same = (block[:, None] == block) & ~np.eye(len(block), dtype=bool)
    assert similarity[same].mean() > similarity[block[:, None] != block].mean() + 0.5
    np.testing.assert_allclose(np.diag(similarity), 1)


def test_agrees_with_a_dense_decomposition():
    sets = planted(2, 5)
    genes = sorted({gene for members in sets.values() for gene in members})
    belongs = np.array([[gene in members for members in sets.values()] for gene in genes], dtype=float)
    weighted = belongs * np.log(len(genes) / belongs.sum(axis=0))
    weighted /= np.linalg.norm(weighted, axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(weighted, full_matrices=False)
    expected = (u * s)[:, :3]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = rg.tl.embed_genes(sets, n_components=3).to_numpy()
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-8)


def test_order_and_container_do_not_matter(tmp_path):
    sets = planted()
    shuffled = {name: sets[name][::-1] for name in reversed(sets)}
    first = rg.tl.embed_genes(sets, n_components=5)
    for other in (shuffled, write_gmt(tmp_path / "sets.gmt", shuffled)):
        pd.testing.assert_frame_equal(rg.tl.embed_genes(other, n_components=5), first, check_exact=True)


def test_reads_weights_blank_lines_repeated_sets_and_gzip(tmp_path):
    sets = planted()
    lines = [f"{name}\tno text\t" + "\t".join(f"{gene},1.0" for gene in genes) for name, genes in sets.items()]
    first, *rest = lines
    name, text, *genes = first.split("\t")
    halves = ["\t".join([name, text, *genes[:2]]), "\t".join([name, text, *genes[2:], ""])]
    path = tmp_path / "sets.gmt.gz"
    with gzip.open(path, "wt") as file:
        file.write("\n\n".join([*halves, *rest]) + "\r\n\n")
    pd.testing.assert_frame_equal(rg.tl.embed_genes(path, n_components=5), rg.tl.embed_genes(sets, n_components=5))


def test_rare_genes_are_left_out_and_counted(caplog):
    sets = planted() | {"rare": ["B0G0", "ONCE"], "alone": ["LONELY"], "alone too": ["LONELY"]}
    with caplog.at_level(logging.INFO):
        embedding = rg.tl.embed_genes(sets, n_components=4)
    assert not {"ONCE", "LONELY"} & set(embedding.index)
    assert "2 genes in fewer than 2 sets" in caplog.text
    everyone = rg.tl.embed_genes(sets, n_components=4, min_terms=1)
    assert "ONCE" in everyone.index
    # a gene alone in its sets shares nothing with any other, whatever is asked for
    assert "LONELY" not in everyone.index
    assert np.isfinite(everyone).to_numpy().all()


def planted_edges(n_blocks=3, per_block=8, seed=0):
    """A network with heavy edges within blocks and a few light ones between them."""
    rng = np.random.default_rng(seed)
    genes = [f"B{block}G{i}" for block in range(n_blocks) for i in range(per_block)]
    edges = [
        (one, other, 0.9 if one[:2] == other[:2] else 0.2)
        for i, one in enumerate(genes)
        for other in genes[:i]
        if rng.random() < (0.8 if one[:2] == other[:2] else 0.05)
    ]
    return pd.DataFrame(edges, columns=["protein1", "protein2", "combined_score"])


class TestNetwork:
    def test_neighbours_are_alike(self):
        embedding = rg.tl.embed_genes(planted_edges(), n_components=4)
        assert list(embedding.index) == sorted(embedding.index) and len(embedding) == 24
        similarity = embedding.to_numpy() @ embedding.to_numpy().T
        block = np.array([name[:2] for name in embedding.index])
        same = (block[:, None] == block) & ~np.eye(len(block), dtype=bool)
        assert similarity[same].mean() > similarity[block[:, None] != block].mean() + 0.8
        np.testing.assert_allclose(np.diag(similarity), 1)

    def test_agrees_with_a_dense_decomposition(self):
        edges = planted_edges()
        genes = sorted(set(edges["protein1"]) | set(edges["protein2"]))
        a = np.zeros((len(genes),) * 2)
        for one, other, weight in edges.itertuples(index=False):
            a[genes.index(one), genes.index(other)] = a[genes.index(other), genes.index(one)] = weight
        d = a.sum(axis=0)
        walk = a / np.sqrt(np.outer(d, d)) - np.sqrt(np.outer(d, d)) / d.sum()
        values, vectors = np.linalg.eigh(walk)
        expected = vectors[:, -4:] * np.sqrt(values[-4:])
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        found = rg.tl.embed_genes(edges, n_components=4).to_numpy()
        np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-6)

    def test_order_direction_and_repeats_do_not_matter(self):
        edges = planted_edges()
        turned = edges.rename(columns={"protein1": "protein2", "protein2": "protein1"})[list(edges)]
        lighter = edges.assign(combined_score=edges["combined_score"] / 2)
        first = rg.tl.embed_genes(edges, n_components=4)
        for other in (turned[::-1], pd.concat([lighter, edges, turned])):
            pd.testing.assert_frame_equal(rg.tl.embed_genes(other, n_components=4), first)

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ((None, "A", 1.0), "1 edges of `data` lead to an unknown gene"),
            (("9606.ENSP00000269305", "A", 1.0), r"names proteins \('9606.ENSP00000269305'\).*preferred_name"),
            (("A", "A", 1.0), r"from a gene to itself: 'A'. Remove these loops"),
            (("A", "B", -1.0), r"no finite number above 0 \('-1.0'\)"),
        ],
    )
    def test_edges_that_are_none(self, line, message):
        edges = pd.concat([planted_edges(), pd.DataFrame([line], columns=list(planted_edges()))])
        with pytest.raises(ValueError, match=message):
            rg.tl.embed_genes(edges, n_components=4)

    def test_neither_edges_nor_vectors(self):
        with pytest.raises(ValueError, match=r"columns 'a', 'b'. Edges have two columns of genes"):
            rg.tl.embed_genes(pd.DataFrame({"a": ["A"], "b": [1.0]}))
        with pytest.raises(ValueError, match="a network of 24 genes allows 23 at most"):
            rg.tl.embed_genes(planted_edges(), n_components=24)


class TestSideBySide:
    def test_each_has_the_same_variance(self):
        vectors = pd.DataFrame(np.random.default_rng(0).normal(3, 100, (20, 5)), index=[f"B0G{i}" for i in range(20)])
        parts = {"sets": planted(), "network": planted_edges(), "text": vectors}
        both = rg.tl.embed_genes(parts, n_components=4)
        assert list(both.index) == [f"B0G{i}" for i in range(6)]
        assert both.attrs["parts"] == {"sets": 4, "network": 4, "text": 5}
        assert list(both)[:5] == ["sets:svd1", "sets:svd2", "sets:svd3", "sets:svd4", "network:svd1"]
        for name in parts:
            part = both.filter(like=f"{name}:")
            np.testing.assert_allclose(part.mean(), 0, atol=1e-9)
            assert float((part**2).to_numpy().sum()) / len(part) == pytest.approx(1)
        listed = rg.tl.embed_genes(list(parts.values()), n_components=4)
        np.testing.assert_array_equal(listed, both)

    def test_vectors_alone_are_taken_as_they_are(self):
        vectors = pd.DataFrame({"x": [1.0, 2.0, np.nan], "y": [0.0, 1.0, 2.0]}, index=["B", "A", "C"])
        found = rg.tl.embed_genes(vectors)
        assert list(found.index) == ["A", "B"] and found.loc["A", "x"] == 2

    def test_no_genes_in_common(self):
        vectors = pd.DataFrame({"x": [1.0, 2.0]}, index=["ENSG1", "ENSG2"])
        with pytest.raises(ValueError, match=r"share 0 genes \('sets': 24 such as 'B0G0', 'text': 2 such as 'ENSG1'\)"):
            rg.tl.embed_genes({"sets": planted(), "text": vectors}, n_components=4)

    def test_the_widths_of_the_parts_go_into_the_reference(self):
        responses, vectors = given_responses()
        both = rg.tl.embed_genes([vectors, vectors * 2])
        reference = rg.tl.build_perturbation_reference(
            responses, unit="log_fold_change", context_key="context", embedding=both
        )
        header = reference.uns["ragst"]["embedding"]
        assert list(header["part_names"]) == ["1", "2"] and list(header["part_widths"]) == [4, 4]


def test_bad_input(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.gmt does not exist"):
        rg.tl.embed_genes(tmp_path / "nothing.gmt")
    broken = tmp_path / "broken.gmt"
    broken.write_text("a set\t\tA\tB\nA B C\n")
    with pytest.raises(ValueError, match="line 2: 1 fields"):
        rg.tl.embed_genes(broken)
    with pytest.raises(ValueError, match="none is in 2 sets"):
        rg.tl.embed_genes({"one": ["A", "B"]}, n_components=1)
    with pytest.raises(ValueError, match=r"allow 23 at most"):
        rg.tl.embed_genes(planted(), n_components=24)
    with pytest.raises(ValueError, match="is a string"):
        rg.tl.embed_genes({"one": "ABC"})
    with pytest.raises(TypeError, match="`data` is a str; it must be PathLike or Mapping or DataFrame"):
        rg.tl.embed_genes(["A", "B"])
    with pytest.raises(ValueError, match="whole number above zero"):
        rg.tl.embed_genes(planted(), n_components=0)


def test_real_gene_sets(data_dir):
    embedding = rg.tl.embed_genes(data_dir / "perturb/embeddings/GO_Biological_Process_2021.gmt")
    assert embedding.shape[1] == 128
    assert len(embedding) > 14_000
    assert {"STAT1", "IFNGR1", "JAK2"} <= set(embedding.index)
    similarity = embedding @ embedding.loc["IFNGR1"]
    assert "IFNGR2" in set(similarity.nlargest(len(embedding) // 100).index)
