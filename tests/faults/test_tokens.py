"""A token of the model hub is used and never written down: not in logs, not in errors, not in headers, not on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import ragst_sd

TOKEN = "hf_" + "FakeTokenThatMustNotAppear".ljust(34, "0")

CODE = """
    import logging, sys, time, traceback
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    time.sleep = lambda seconds: None
    import numpy as np
    from pathlib import Path
    import ragst_sd as rg
    from ragst_sd.datasets._download import fetch
    from ragst_sd.image.resolve_encoder import resolve_encoder
    folder = Path(sys.argv[1])
    for model in ("hf-hub:lab/tiny", "uni", "virchow2"):
        try:
            resolve_encoder(model, device="cpu", amp=False)
        except Exception:
            traceback.print_exc()
    try:
        url = "https://huggingface.co/datasets/lab/data/resolve/main/st/a.h5ad"
        file = {"name": "st/a.h5ad", "url": url}
        fetch(file, folder / "data", progress=False, advice="log in")
    except Exception:
        traceback.print_exc()
    print(rg.settings)
    sections = rg.datasets.synthetic(n_donors=1, n_genes=210, image_px=400, mpp=1.0)
    rg.pp.embed_tiles(sections["donor1"], tile_px=64, mpp=1.0, context=(1,), progress=False)
    reference = rg.tl.build_reference(sections, use_rep="X_texture")
    rg.io.write_reference(reference, folder / "r.zarr.zip")
    print(rg.io.data_card(reference), reference.uns)
    print("FINISHED")
"""


@pytest.mark.slow
def test_the_token_is_nowhere(tmp_path):
    env = {key: value for key, value in os.environ.items() if not key.upper().startswith("HF_")}
    env |= {
        "HF_TOKEN": TOKEN,
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HOME": str(tmp_path / "home"),
        "NO_PROXY": "127.0.0.1",
    }
    env |= {"RAGST_SD_CACHE_DIR": str(tmp_path / "cache")}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(ragst_sd.__file__).parents[1]), env.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CODE), str(tmp_path)],
        env=env,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert "FINISHED" in done.stdout, done.stderr[-2000:]
    assert done.stderr.count("ConnectionError") >= 3
    assert TOKEN not in done.stdout + done.stderr
    written = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert tmp_path / "r.zarr.zip" in written
    assert not [file for file in written if TOKEN.encode() in file.read_bytes()]
