"""Near-duplicate sections."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from ragst_sd.reference.duplicates import find_duplicates, fingerprint

GENES = [f"g{i}" for i in range(300)]


def measured(rng, rates):
    return np.log1p(rng.poisson(rates).astype(np.float32))


def a_print(name, values, pictures, xy, *, donors=None, image_hash="", genes=GENES):
    return fingerprint(
        name, donors={donors or name}, image_hash=image_hash or name, expression=sp.csr_matrix(values), genes=genes,
        shared=GENES, embedding=pictures, xy=xy,
    )  # fmt: skip


@pytest.fixture
def tissue(rng):
    """Expected counts, pictures and places of 150 spots of three tissues."""
    kind = rng.integers(0, 3, 150)
    rates = rng.gamma(1.0, 3.0, (3, 300))[kind]
    look = rng.normal(size=(3, 80))[kind]
    return rates, look, rng.uniform(0, 1000, (150, 2))


def test_two_measurements_of_like_tissue_are_no_copies(rng, tissue):
    """Serial sections: the same expected counts, looks and places, each measured with its own noise."""
    rates, look, xy = tissue
    sections = [
        a_print(name, measured(rng, rates), look + rng.normal(size=look.shape), xy + rng.normal(size=xy.shape))
        for name in ("a", "b", "c")
    ]
    assert not list(find_duplicates(sections))


@pytest.mark.parametrize("kept", [1.0, 0.95])
def test_a_copy_is_known_by_the_noise_of_its_counts(rng, tissue, kept):
    """Some rows of the same counts, a few reads lost, and other pictures."""
    rates, look, xy = tissue
    counts = rng.poisson(rates)
    rows = rng.permutation(150)[:60]
    first = a_print("a", np.log1p(counts), look + rng.normal(size=look.shape), xy)
    thinned = np.log1p(rng.binomial(counts[rows], kept))
    second = a_print("b", thinned, look[rows] + rng.normal(size=(60, 80)), xy[rows])
    (found,) = find_duplicates([first, second])
    assert found.by == "expression"
    assert found.share > 0.9
    assert not list(find_duplicates([first, a_print("b", thinned, look[rows], xy[rows], donors="a")]))


def test_a_copy_is_known_by_its_picture(rng, tissue):
    """Scaled, mirrored and re-encoded: embeddings move a little, places are turned; counts are of another kind."""
    rates, look, xy = tissue
    own = look + rng.normal(size=look.shape)
    rows = rng.permutation(150)[:90]
    first = a_print("a", measured(rng, rates), own, xy)
    moved = own[rows] + 0.3 * rng.normal(size=(90, 80))
    second = a_print("b", measured(rng, rates[rows]), moved, 0.6 * xy[rows][:, ::-1] + 40)
    (found,) = find_duplicates([first, second])
    assert found.by == "pictures"
    # As near, but the places say that it is other tissue.
    elsewhere = a_print("b", measured(rng, rates[rows]), moved, rng.permutation(xy[rows]))
    assert not list(find_duplicates([first, elsewhere]))


def test_identical_images(rng, tissue):
    rates, look, xy = tissue
    pair = [a_print(name, measured(rng, rates), look, xy, image_hash="same") for name in ("a", "b")]
    assert next(find_duplicates(pair)).by == "images"


def test_few_genes_and_few_spots_are_not_judged(rng, tissue):
    rates, look, xy = tissue
    values = measured(rng, rates)
    few = [a_print(n, values[:, :20], rng.normal(size=look.shape), xy, genes=GENES[:20]) for n in ("a", "b")]
    assert few[0].expression is None
    assert not list(find_duplicates(few))
    small = [a_print(n, values[:5], look[:5], xy[:5]) for n in ("a", "b")]
    assert not list(find_duplicates(small))


def copy_of(source, folder, *, scale, share, rng):
    """The same section as others would publish it: cropped, scaled, as JPEG, some of its spots."""
    import anndata as ad
    from PIL import Image

    crop = (7, 11)
    with Image.open(source.with_suffix(".jpg")) as image:
        part = image.convert("RGB").crop((*crop, image.width - 5, image.height - 9))
        part = part.resize((int(part.width * scale), int(part.height * scale)), Image.Resampling.LANCZOS)
        part.save(folder / "copy.jpg", quality=60)
    table = ad.read_h5ad(source)
    table = table[np.sort(rng.permutation(table.n_obs)[: int(share * table.n_obs)])].copy()
    table.obsm["spatial"] = (table.obsm["spatial"] - crop) * scale
    table.uns["meta"]["um_per_px"] = float(table.uns["meta"]["um_per_px"]) / scale
    table.write_h5ad(folder / "copy.h5ad")
    return folder / "copy.h5ad", folder / "copy.jpg"


@pytest.mark.slow
def test_a_real_section_published_twice(data_dir, tmp_path, rng):
    """Serial sections raise no alarm; a copy does, by its counts, or without them by its picture."""
    import ragst_sd as rg

    folder = data_dir / "histology" / "mob2k"
    sections = {}
    for name in ("MOB1", "MOB2", "MOB3"):
        sections[name] = rg.io.read_st(folder / f"{name}.h5ad", folder / f"{name}.jpg", sample=name)
        # Every section its own donor: serial sections of one brain are the hardest to tell from copies.
        sections[name].tables["table"].obs["donor"] = name
    twin = rg.io.read_st(*copy_of(folder / "MOB1.h5ad", tmp_path, scale=0.6, share=0.6, rng=rng), sample="twin")
    table = twin.tables["table"]
    table.obs["donor"] = "someone"
    for sdata in [*sections.values(), twin]:
        rg.pp.embed_tiles(sdata, model="texture", tile_px=64, mpp=2.75, context=(1, 2.5), progress=False)
    how = {"use_rep": "X_texture", "on_duplicate": "error", "thumbnails": False}
    rg.tl.build_reference(sections, **how)
    with pytest.raises(ValueError, match=r"'MOB1' and 'twin' are the same tissue, as the expression") as found:
        rg.tl.build_reference({**sections, "twin": twin}, **how)
    assert str(found.value).count("are the same tissue") == 1
    mean = np.asarray(table.X.mean(axis=0)).ravel()
    table.X = sp.csr_matrix(rng.poisson(mean, table.shape).astype(np.float32))
    with pytest.raises(ValueError, match=r"'MOB1' and 'twin' are the same tissue, as the picture") as found:
        rg.tl.build_reference({**sections, "twin": twin}, **how)
    assert str(found.value).count("are the same tissue") == 1
