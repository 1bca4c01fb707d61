"""Small sections on disk, and builds in processes that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np

import ragst_sd as rg

RECIPE = """\
version: 1
name: Small sections
sources:
  - folder: sections
    tissue: made tissue
    technology: Visium
    license: CC-BY-4.0
    citation: Nobody (2020). A made section. https://example.org
encoder: {model: texture, batch_size: 16}
tiles: {tile_px: 64, mpp: 1.0, context: [1]}
"""


def deposit(folder: Path, *, n_donors: int = 3, n_sections: int = 1) -> None:
    """Write `<section>.h5ad` and `<section>.png` of synthetic donors."""
    import spatialdata as sd
    from anndata import AnnData
    from skimage.io import imsave

    folder.mkdir(parents=True, exist_ok=True)
    made = rg.datasets.synthetic(n_donors=n_donors, n_sections=n_sections, n_genes=260, image_px=700, rng=0)
    for name, sdata in made.items():
        table = sdata.tables["table"]
        counts = AnnData(
            table.X,
            obs=table.obs[["donor", "label"]].copy(),
            var=table.var[[]].copy(),
            obsm={"spatial": np.asarray(table.obsm["spatial"])},
            uns={"meta": {"um_per_px": 1.0}},
        )
        counts.obs["in_tissue"] = (np.arange(len(counts.obs)) % 5 > 0).astype(int)
        counts.write_h5ad(folder / f"{name}.h5ad")
        image = sd.get_pyramid_levels(sdata.images["he"], n=0)
        imsave(folder / f"{name}.png", np.asarray(image).transpose(1, 2, 0), check_contrast=False)


_NURSERY = """
import json, os, sys, threading
import torch
from ragst_sd.__main__ import main
import ragst_sd as rg
from pathlib import Path
import anndata, spatialdata, skimage.io, dask.array, zarr, geopandas, matplotlib.figure, filelock, yaml
for module in (rg.pp, rg.tl, rg.io, rg.datasets):
    for name in module.__all__:
        getattr(module, name)
import ragst_sd.datasets._catalog, ragst_sd.image.texture, ragst_sd.image.resolve_encoder, ragst_sd.reference.symbols
for species in ragst_sd.reference.symbols.SPECIES:
    ragst_sd.reference.symbols.known_names(species)

if "RAGST_TEST_CATALOG" in os.environ:
    ragst_sd.datasets._catalog.CATALOG = Path(os.environ["RAGST_TEST_CATALOG"])

def arm(step):
    # The process dies at the step-th event: before or after a file takes the place that it was written for.
    passed = 0
    def event():
        nonlocal passed
        # The store of zarr renames its chunks in threads of its own.
        if threading.current_thread() is not threading.main_thread():
            return
        passed += 1
        if passed == step:
            os._exit(9)
    original = Path.replace
    def replace(self, target):
        event()
        out = original(self, target)
        event()
        return out
    Path.replace = replace

print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    pid = os.fork()
    if pid == 0:
        out = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1), os.dup2(out, 2)
        torch.set_num_threads(1)
        if job["step"]:
            arm(job["step"])
        code = main(["build", *job["arguments"]])
        sys.stdout.flush()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
"""


class Nursery:
    """A process that has everything imported and forks builds, so that a killed build costs no start."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.log = folder / "builds.log"
        path = os.pathsep.join([str(Path(rg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(_NURSERY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "RAGST_SD_PROGRESS": "false"} | environment,
        )
        assert self.process.stdout.readline().strip() == "ready"

    def build(self, *arguments: str | Path, step: int = 0, kill_after: float | None = None) -> int:
        """Exit status of a build (negative: the signal that ended it), which is killed after some seconds or at some step."""
        job = {"arguments": [str(one) for one in arguments], "step": step, "log": str(self.log)}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        if kill_after is not None:
            time.sleep(kill_after)
            # The nursery waits for it at once, so the number may be gone when it has ended by itself.
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(int(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
