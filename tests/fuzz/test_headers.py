"""Random damage to a written reference: it is read as it was, or refused in our words, whatever the damage.

Half of the damage hits metadata (fields changed, removed, swapped), in a file that was packed again as a stranger's may be: then what
the content hash covers must be as it was if it is read at all. Half hits the bytes of the file.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
import zipfile

import numpy as np
import pytest

import ragst_sd as rg

pytestmark = pytest.mark.slow

N_MUTATIONS = int(os.environ.get("RAGST_SD_MUTATIONS", "1000"))
# Parts that run side by side.
N_PARTS = 10

VALUES = [
    None, True, False, -1, 0, 1, 2, 87, 2**31, 2**63, 10**30, 0.5, -1e308, "", "x", "float32", "string", "int8", "zstd", "..",
    "../../../etc/passwd", "a/b", "\x00", "é", [], {}, [1], [[]], {"name": "zstd"}, "NaN", "0.2.0", "csr_matrix", "dict", "array",
    "dataframe", "categorical", "null", "anndata", "rec-array", "awkward-array", "nullable-integer", "string-array",
]  # fmt: skip


@pytest.fixture(scope="module")
def store(_sections, tmp_path_factory):
    """A small fitted reference on disk, and what it holds."""
    reference = rg.tl.build_reference(
        {"donor1": _sections["donor1"], "donor2": _sections["donor2"]}, use_rep="X_colour"
    )
    small = reference[np.r_[:8, -8:0], :210].copy()
    del small.obsm["thumbnail"], small.layers["counts"]
    from ragst_sd._reference import reference_hash

    small.uns["ragst"]["content_hash"] = reference_hash(small)
    rg.tl.fit(small, method="knn", n_neighbors=4)
    path = tmp_path_factory.mktemp("fuzz") / "r.zarr.zip"
    rg.io.write_reference(small, path)
    return path, rg.io.read_reference(path)


def content(reference):
    """What the content hash covers."""
    return {
        "ids": list(reference.obs_names),
        "genes": list(reference.var_names),
        "X": reference.X.toarray() if hasattr(reference.X, "toarray") else np.asarray(reference.X),
        "embedding": np.asarray(reference.obsm["X_colour"]),
        "measured": np.asarray(reference.varm["measured"]),
        **{
            name: [str(one) for one in reference.obs[name]]
            for name in ("donor", "sample", "tissue", "technology", "panel")
        },
    }


def everything(reference):
    """All of it, as text where it is not an array."""
    found = content(reference) | {
        "obs": reference.obs.to_csv(),
        "var": reference.var.to_csv(),
        "uns": flat(reference.uns),
    }
    return found | {f"obsm/{name}": np.asarray(values) for name, values in reference.obsm.items()}


def flat(value):
    if hasattr(value, "items") and not hasattr(value, "to_csv"):
        return {str(name): flat(one) for name, one in sorted(value.items(), key=lambda item: str(item[0]))}
    if hasattr(value, "to_csv"):
        return value.to_csv()
    return repr(np.asarray(value).tolist())


def same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        np.testing.assert_array_equal(value, second[name], err_msg=name)


def places(value, at=()):
    """Every place in a JSON value."""
    yield at
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*at, key))


def damage_metadata(content, rng):
    """The file packed again, with one of its pieces of metadata changed."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    files = [name for name in parts if name.endswith("zarr.json")]
    # The root and the header are hit as often as all of the rest.
    favoured = ["zarr.json", "uns/ragst/zarr.json", "obs/zarr.json", "X/zarr.json"]
    file = favoured[rng.integers(4)] if rng.random() < 0.4 else files[rng.integers(len(files))]
    metadata = json.loads(parts[file])
    options = [one for one in places(metadata) if one]
    for _ in range(rng.integers(1, 3)):
        *path, last = options[rng.integers(len(options))]
        holder = metadata
        with contextlib.suppress(KeyError, IndexError, TypeError):
            for step in path:
                holder = holder[step]
            kind = rng.integers(5)
            if kind == 0:
                del holder[last]
            elif kind == 1 and isinstance(holder[last], str) and holder[last]:
                text = holder[last]
                where = rng.integers(len(text))
                holder[last] = text[:where] + chr(rng.integers(32, 1000)) + text[where + 1 :]
            elif kind == 2 and isinstance(holder[last], int):
                holder[last] = int(holder[last]) + int(rng.integers(-3, 4))
            else:
                holder[last] = VALUES[rng.integers(len(VALUES))]
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, part in (parts | {file: json.dumps(metadata).encode()}).items():
            archive.writestr(name, part)
    return packed.getvalue(), file


def damage_bytes(content, rng):
    new = bytearray(content)
    kind = rng.integers(5)
    # The list of parts, at the end, is hit as often as all of the rest.
    at = int(rng.integers(content.index(b"PK\x01\x02") if rng.random() < 0.5 else 0, len(new)))
    if kind == 0:
        new[at] ^= 1 << rng.integers(8)
    elif kind == 1:
        new[at : at + 5] = rng.integers(256, size=len(new[at : at + 5]), dtype=np.uint8).tobytes()
    elif kind == 2:
        new = new[:at]
    elif kind == 3:
        new[at : at + 8] = bytes(len(new[at : at + 8]))
    else:
        del new[at : at + int(rng.integers(1, 40))]
    return bytes(new), f"byte {at}, kind {kind}"


OUR_WORDS = ("does not match its hash", "do not match the hash", "cannot be understood", "cannot be read", "is not a reference",
             "It is not read", "it is not read", "is damaged", "is missing", "The reference lacks", "The reference is for the task",
             "schema version", "is damaged")  # fmt: skip


def complaint(path, expected, *, packed, lazy):
    """What is wrong with the way in which a damaged store is read, nothing if all is well; and whether it was refused."""
    try:
        found = rg.io.read_reference(path, lazy=lazy)
        if lazy:
            found = found.to_memory()
        read = content(found) if packed else everything(found)
    except (ValueError, FileNotFoundError) as error:
        told = any(part in str(error) for part in OUR_WORDS)
        return "" if told else f"{type(error).__name__}: {error}", True
    except Exception as error:  # noqa: BLE001
        # A chunk that stays on disk is found out when it is read.
        told = lazy and isinstance(error, RuntimeError)
        return "" if told else f"{type(error).__name__}: {error}", True
    try:
        same(read, expected)
    except AssertionError as error:
        return f"read silently wrong: {error}", False
    return "", False


@pytest.mark.parametrize("part", range(N_PARTS))
def test_damage_is_refused_or_harmless(store, part):
    path, whole = store
    covered, intact, complaints, n_refused = content(whole), path.read_bytes(), [], 0
    expected = everything(whole)
    seed = int(os.environ.get("RAGST_SD_SEED", "0"))
    mine = range(part * N_MUTATIONS // N_PARTS, (part + 1) * N_MUTATIONS // N_PARTS)
    for i in mine:
        packed, lazy = i % 2 == 1, i % 7 == 3
        changed, where = (damage_metadata if packed else damage_bytes)(intact, np.random.default_rng([seed, i]))
        path.with_name("damaged.zarr.zip").write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrong, refused = complaint(
                path.with_name("damaged.zarr.zip"), covered if packed else expected, packed=packed, lazy=lazy
            )
        n_refused += refused
        if wrong:
            complaints.append(f"mutation {i} of seed {seed}, {where}, lazy {lazy}: {wrong}")
    assert not complaints, "\n".join(complaints)
    assert n_refused > 0.5 * len(mine)
