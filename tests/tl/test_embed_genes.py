from __future__ import annotations

import gzip
import logging

import numpy as np
import pandas as pd
import pytest

import ragst_sd as rg


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
    with pytest.raises(TypeError, match="must be str or PathLike or Mapping"):
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
