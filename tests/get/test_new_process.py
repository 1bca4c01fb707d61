"""A table read back in a new process answers from its provenance alone, and says when the reference is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import ragst_sd as rg

CODE = """
import sys
import spatialdata as sd
import ragst_sd as rg

table = sd.read_zarr(sys.argv[1], selection=("tables",)).tables["predicted"]
rg.get.neighbors(table).to_csv(sys.argv[2] + "/neighbors.csv", index=False)
rg.get.influence(table, rows=sys.argv[3]).to_csv(sys.argv[2] + "/reverse.csv", index=False)
for what, call in {
    "explain": lambda: rg.get.explain(table, None, obs_names=table.obs_names[0], genes=table.var_names[0]),
    "influence": lambda: rg.get.influence(table),
}.items():
    try:
        call()
    except ValueError as error:
        print(what, error)
"""


@pytest.mark.slow
def test_only_values_need_the_reference(predicted, tmp_path):
    predicted.write(tmp_path / "s.zarr")
    row = rg.get.neighbors(predicted)["reference"].iloc[0]
    path = os.pathsep.join([str(Path(rg.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(tmp_path / "s.zarr"), str(tmp_path), row],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name, expected in {
        "neighbors": rg.get.neighbors(predicted),
        "reverse": rg.get.influence(predicted, rows=row),
    }.items():
        found = pd.read_csv(tmp_path / f"{name}.csv", dtype={"query": str})
        pd.testing.assert_frame_equal(found, expected, check_dtype=False, rtol=1e-6)
    digest = predicted.tables["predicted"].uns["retrieval"]["reference_hash"][:12]
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["explain", "influence"]
    for line in lines:
        assert "The reference is needed" in line and digest in line and "rg.get.neighbors" in line


def test_no_reference_in_this_process(predicted):
    with pytest.raises(ValueError, match="The reference is needed"):
        rg.get.influence(predicted)
