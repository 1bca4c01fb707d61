"""Values that must not change: what every method of both tasks predicts from real data with fits that are kept.

python tools/frozen.py --data "$RAGST_SD_TEST_DATA"                compares; ends with 1 where a value differs
python tools/frozen.py --data "$RAGST_SD_TEST_DATA" --refit        fits anew too, and says how far that is from the fits that are kept
python tools/frozen.py --data "$RAGST_SD_TEST_DATA" --write        fits and keeps all anew
python tools/frozen.py --data "$RAGST_SD_TEST_DATA" --write --only mob_kernel_ridge

For each method `tests/frozen` holds a fit, and of prediction, evidence, retrieval and explanation the hash of the whole array, its
mean and root mean square, and a sample of its values. Values count as the same within 1e-6 (relative, where they are above 1).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import torch

import ragst_sd as rg
from ragst_sd._demo import read_folder
from ragst_sd._reference import reference_hash
from ragst_sd.reference.hashing import fit_hash
from ragst_sd.retrieval.methods import METHODS
from ragst_sd.retrieval.response_methods import RESPONSE_METHODS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from methods import register  # noqa: E402

FOLDER = ROOT / "tests" / "frozen"
TOLERANCE = 1e-6
# Rows of a reference as a fit places them.
KEYS = ("retrieval_key", "regression_key")
N_SAMPLED = 60
N_GENES = 220
N_SPOTS = 70
# Short trainings: what is frozen is what becomes of a fit, not how good it is.
SHORT = {"max_steps": 10, "n_seeds": 2, "n_train_genes": 60, "width": 32}
SETS = {"mob": (("rep01", "rep02", "rep11"), "rep09"), "her2st": (("C2", "C3"), "B4")}
PERTURBATIONS = ("MAPK1", "MAP2K3+MAP2K6", "KLF1+TGFBR2", "SGK1+TBX3", "STAT1")
GENE_SETS = "embeddings/GO_Biological_Process_2021.gmt"


def tissue(data: Path, name: str) -> tuple[AnnData, Any]:
    """An unfitted reference of some spots and genes of a set, and the section to predict."""
    wanted, query = SETS[name]
    sections = {key: sdata for key, sdata in read_folder(data / "histology" / name).items() if key in (*wanted, query)}
    measured = [sdata.tables["table"] for sdata in sections.values()]
    shared = sorted(set.intersection(*(set(table.var_names) for table in measured)))
    depth = sum(np.asarray(table[:, shared].X.sum(axis=0)).ravel() for table in measured)
    genes = [shared[i] for i in np.sort(np.argsort(-depth, kind="stable")[:N_GENES])]
    for sdata in sections.values():
        table = sdata.tables["table"]
        every = max(1, table.n_obs // N_SPOTS)
        sdata.tables["table"] = table[::every, genes].copy()
        rg.pp.embed_tiles(sdata, model="texture", context=(1,), progress=False)
    section = sections.pop(query)
    return rg.tl.build_reference(sections, use_rep="X_texture", thumbnails=False), section


def tissue_values(reference: AnnData, section: Any) -> dict[str, np.ndarray]:
    """What a fitted reference says of a section."""
    table = rg.tl.predict(section, reference, inplace=False)
    explained = rg.get.explain(
        table, reference, obs_names=list(table.obs_names[::25]), genes=[str(gene) for gene in table.var_names[::40]]
    )
    return {
        "prediction": np.asarray(table.X),
        "evidence": np.asarray(table.layers["evidence"]),
        "rows": np.asarray(table.obsm["retrieval_rows"]),
        "weights": np.asarray(table.obsm["retrieval_weights"]),
        "distances": np.asarray(table.obsm["retrieval_distances"]),
        "effective_n": np.asarray(table.obs["effective_n"], dtype=float),
        "distance_percentile": np.asarray(table.obs["distance_percentile"], dtype=float),
        "contributions": np.asarray(explained["contribution"], dtype=float),
    }


def screen(data: Path) -> tuple[AnnData, AnnData]:
    """An unfitted reference of responses in four cell lines, and control cells of two of them."""
    cells = ad.read_h5ad(data / "perturb" / "expression" / "perturbench_devel.h5ad")
    embedding = rg.tl.embed_genes(data / "perturb" / GENE_SETS, min_terms=1)
    names = cells.obs["perturbation"].astype(str)
    known = [set(name.split("+")) <= {"control", *embedding.index} for name in names]
    cells = cells[np.asarray(known)].copy()
    reference = rg.tl.build_perturbation_reference(
        cells,
        embedding=embedding,
        unit="log1p_cp10k",
        context_key="cell_type",
        rng=0,
        perturbation_type=["CRISPRa", "CRISPRi"],
    )
    control = (cells.obs["perturbation"] == "control").to_numpy()
    asked = [np.flatnonzero(control & (cells.obs["cell_type"] == line).to_numpy())[:10] for line in ("k562", "A172")]
    return reference, cells[np.concatenate(asked)].copy()


def response_values(reference: AnnData, cells: AnnData) -> dict[str, np.ndarray]:
    """What a fitted reference says of perturbed cells; a perturbation that the method can't answer is left out."""
    values: dict[str, np.ndarray] = {}
    for name in PERTURBATIONS:
        try:
            table = rg.tl.perturb(
                cells, reference, perturbations=name, unit="log1p_cp10k", context_key="cell_type", progress=False
            )
        except ValueError as error:
            if "nothing to answer from" not in str(error):
                raise
            values[f"{name} refused"] = np.ones(1)
            continue
        explained = rg.get.explain(
            table, reference, obs_names=str(table.obs_names[0]), genes=[str(gene) for gene in table.var_names[::100]]
        )
        values |= {
            f"{name} prediction": np.asarray(table.X),
            f"{name} response": np.asarray(table.layers["response"]),
            f"{name} evidence": np.asarray(table.layers["evidence"]),
            f"{name} rows": np.asarray(table.obsm["retrieval_rows"]),
            f"{name} weights": np.asarray(table.obsm["retrieval_weights"]),
            f"{name} contributions": np.asarray(explained["contribution"], dtype=float),
        }
    return values


def cases(data: Path) -> Iterator[tuple[str, str, AnnData, Any]]:
    """Each case's name, its method, a reference of its own, and what is asked."""
    register()
    for name in SETS:
        reference, section = tissue(data, name)
        # What is drawn at random hangs on the last bits of phi, which differ between processors.
        for method in (each for each in METHODS if each != "random_rag"):
            # On the second tissue only what differs by its panels: one method that learns, one that does not, one that cites no rows.
            if name == "mob" or method in ("rag", "knn", "ridge"):
                yield f"{name}_{method}", method, reference.copy(), section
    reference, cells = screen(data)
    for method in RESPONSE_METHODS:
        yield f"screen_{method}", method, reference.copy(), cells


def fit(reference: AnnData, method: str, *, responses: bool) -> None:
    """Fit with short trainings."""
    offered = (RESPONSE_METHODS if responses else METHODS)[method].options.__dataclass_fields__
    options = {name: value for name, value in SHORT.items() if name in offered}
    if not responses:
        options["n_components"] = 24
        if "n_latent" in offered:
            options["n_latent"] = 16
    counts = {} if responses else {"n_neighbors": 20, "n_candidates": 30}
    rg.tl.fit(reference, method=method, options=options, rng=0, progress=False, **counts)


def flat(record: dict, prefix: str = "") -> dict[str, np.ndarray]:
    """A nested record as arrays by path."""
    arrays: dict[str, np.ndarray] = {}
    for name, value in record.items():
        if isinstance(value, dict):
            # An empty folder has to be kept as well.
            arrays |= flat(value, f"{prefix}{name}/") or {f"{prefix}{name}/": np.empty(0)}
        else:
            arrays[f"{prefix}{name}"] = np.asarray(value)
    return arrays


def nested(arrays: dict[str, np.ndarray]) -> dict:
    """The record of which `flat` made arrays; single values as numpy scalars and texts, as a store gives them."""
    record: dict = {}
    for path, array in arrays.items():
        *folders, name = path.split("/")
        place = record
        for folder in folders:
            place = place.setdefault(folder, {})
        if name:
            place[name] = array if array.ndim else (str(array) if array.dtype.kind == "U" else array[()])
    return record


def summary(values: np.ndarray) -> dict[str, Any]:
    """Hash, mean, root mean square and a sample of an array."""
    numbers = np.asarray(values, dtype=np.float64).ravel()
    picked = np.unique(np.linspace(0, numbers.size - 1, min(N_SAMPLED, numbers.size)).astype(int))
    known = numbers[np.isfinite(numbers)]
    return {
        "shape": list(np.shape(values)),
        "hash": hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16],
        "n_finite": int(known.size),
        "mean": float(known.mean()) if known.size else 0.0,
        "rms": float(np.sqrt((known**2).mean())) if known.size else 0.0,
        "sample": [float(number) if np.isfinite(number) else None for number in numbers[picked]],
    }


def differences(kept: dict[str, Any], values: np.ndarray) -> tuple[bool, float]:
    """Whether an array has the bytes that are kept, and the largest difference of its numbers from those that are kept."""
    now = summary(values)
    if now["hash"] == kept["hash"] and now["shape"] == kept["shape"]:
        return True, 0.0
    if now["shape"] != kept["shape"] or now["n_finite"] != kept["n_finite"]:
        return False, float("inf")
    before, after = ([row["mean"], row["rms"], *row["sample"]] for row in (kept, now))
    if [number is None for number in before] != [number is None for number in after]:
        return False, float("inf")
    pairs = [(a, b) for a, b in zip(before, after, strict=True) if a is not None]
    return False, max(abs(a - b) / max(1.0, abs(a)) for a, b in pairs)


def keep_fit(reference: AnnData, path: Path) -> None:
    """Write the fit of a reference as plain arrays."""
    arrays = flat(reference.uns["ragst"]["fit"], "fit/")
    keys = {name: reference.obsm[name] for name in KEYS if name in reference.obsm}
    np.savez_compressed(path, **arrays, **keys)


def give_fit(reference: AnnData, path: Path) -> None:
    """Put a fit that is kept into a reference."""
    with np.load(path, allow_pickle=False) as arrays:
        kept = {name: arrays[name] for name in arrays.files}
    for name in KEYS:
        if name in kept:
            reference.obsm[name] = kept.pop(name)
    reference.uns["ragst"] = {**reference.uns["ragst"], **nested(kept)}
    # Another processor may round the last bit of an embedding otherwise, and the fit is then of another reference.
    record = reference.uns["ragst"]["fit"]
    record["reference_hash"] = reference_hash(reference)
    record["fit_hash"] = fit_hash(
        reference.uns["ragst"], record, *(reference.obsm.get(name) for name in ("retrieval_key", "regression_key"))
    )


def compare(data: Path, folder: Path = FOLDER, *, refit: bool = False) -> list[str]:
    """What differs from the values that are kept, a line each; prints how far each method is from them."""
    wrong = []
    for name, method, reference, asked in cases(data):
        kept = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        tell = response_values if name.startswith("screen") else tissue_values
        give_fit(reference, folder / f"{name}.npz")
        for label in ("kept fit", "new fit") if refit else ("kept fit",):
            if label == "new fit":
                fit(reference, method, responses=name.startswith("screen"))
            values = tell(reference, asked)
            distances = {key: differences(kept[key], values[key]) for key in kept if key in values}
            missing = sorted(set(kept) ^ set(values))
            farthest = max(distances, key=lambda key: distances[key][1])
            same = sum(equal for equal, _ in distances.values())
            text = f"{name}, {label}: {same} of {len(kept)} arrays to the byte, largest difference {distances[farthest][1]:.2g} ({farthest})"
            print(text)
            if label == "kept fit" and (missing or distances[farthest][1] > TOLERANCE):
                wrong.append(f"{text}{'; not in both: ' + ', '.join(missing) if missing else ''}")
    return wrong


def write(data: Path, folder: Path = FOLDER, *, only: list[str] | None = None) -> None:
    """Fit every case, or those that are named, and keep fits and values."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, method, reference, asked in cases(data):
        if only and name not in only:
            continue
        responses = name.startswith("screen")
        fit(reference, method, responses=responses)
        keep_fit(reference, folder / f"{name}.npz")
        values = (response_values if responses else tissue_values)(reference, asked)
        lines = {key: summary(array) for key, array in values.items()}
        (folder / f"{name}.json").write_text(json.dumps(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(values)} arrays, fit of {(folder / f'{name}.npz').stat().st_size / 1e3:.0f} kB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--only", nargs="+", help="cases to write")
    parser.add_argument("--refit", action="store_true")
    arguments = parser.parse_args()
    # The number of threads decides in which order numbers are added up.
    torch.set_num_threads(1)
    if arguments.write:
        write(arguments.data, only=arguments.only)
        return 0
    wrong = compare(arguments.data, refit=arguments.refit)
    print("\n".join(["", *wrong]) if wrong else "all values are those that were frozen")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
