"""What a user waits for: fit, cross-validation, calibration, evaluation and prediction, beside their targets.

    python benchmarks/seconds.py --busy 2 --write docs/scaling.md
    python benchmarks/seconds.py --only fit_small explain --scale 0.1

Sections are made up (`planted.py`), but for the screen of Papalexi, which is read from `RAGST_SD_TEST_DATA`. Each line is measured in a process
of its own, with what numba compiles. Memory is how far the process rises above where it stands with its data in it. With `--busy` everything
runs a second time, beside as many processes that do nothing but count. `--scale` makes rows and genes fewer; targets are those of the full
size all the same.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lines import as_table, row
from real_sections import write_between_markers
from search import peak_megabytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HERE = Path(__file__).resolve().parent
FEATURES, GENES, FEWEST_GENES, SPOTS = 1536, 18_000, 600, 2000
# Until the process that started it is gone, however that came about.
COUNT = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(10**6))"
GRAPH = "tl.predict, pynndescent"


class Case(NamedTuple):
    """Something that is waited for."""

    label: str
    prepare: Callable[[float], Callable[[], object]]
    """From the scale to the call that is measured."""
    wall: float | None = None
    """Most seconds by the clock, on a quiet machine."""
    processor: float | None = None
    """Most seconds of the processors, quiet or busy."""
    megabytes: float | None = None


def of_size(scale: float, rows: int, *, donors: int = 4, features: int = FEATURES, genes: int = GENES) -> dict:
    """Sections with so many rows at full scale, and enough of everything at any."""
    from planted import planted

    n_rows, n_genes = max(30 * donors, round(scale * rows)), max(FEWEST_GENES, round(scale * genes))
    return planted(n_rows, donors=donors, features=features, genes=n_genes)


def fitting(rows: int, **size: int) -> Callable[[float], Callable[[], object]]:
    def prepare(scale: float) -> Callable[[], object]:
        from planted import planted_reference

        import ragst_sd as rg

        reference = planted_reference(of_size(scale, rows, **size))
        return lambda: rg.tl.fit(reference, method="rag", progress=False)

    return prepare


def cross_validating(scale: float) -> Callable[[], object]:
    from planted import planted_reference

    import ragst_sd as rg

    reference = planted_reference(of_size(scale, 2000))
    return lambda: rg.tl.cross_validate(reference, progress=False)


def calibrating(scale: float) -> Callable[[], object]:
    from planted import planted_reference

    import ragst_sd as rg

    reference = planted_reference(of_size(scale, 2000))
    rg.tl.fit(reference, method="rag", progress=False)
    return lambda: rg.tl.calibrate(reference, progress=False)


def predicted(scale: float, rows: int, *, spots: int = SPOTS, genes: int = GENES):
    """A section, and a reference of the other donors with a short training: as large as one of a long one."""
    from planted import planted_reference

    import ragst_sd as rg

    sections = of_size(scale, rows + spots, donors=1 + round(rows / spots), genes=genes)
    query = sections.pop(list(sections)[-1])
    reference = planted_reference(sections)
    rg.tl.fit(reference, method="rag", options={"max_steps": 1}, progress=False)
    return query, reference


def predicting(scale: float) -> Callable[[], object]:
    import ragst_sd as rg

    query, reference = predicted(scale, 8000)
    return lambda: rg.tl.predict(query, reference, inplace=False)


def evaluating(scale: float) -> Callable[[], object]:
    import ragst_sd as rg

    query, reference = predicted(scale, 8000)
    rg.tl.predict(query, reference)
    return lambda: rg.tl.evaluate(query)


def explaining(scale: float) -> Callable[[], object]:
    import ragst_sd as rg

    query, reference = predicted(scale, 20_000, spots=5000, genes=2000)
    rg.tl.predict(query, reference)
    spot, gene = query.tables["predicted"].obs_names[0], reference.var_names[0]
    # Its modules are imported by the first one; the next one is a click in the viewer.
    rg.get.explain(query, reference, obs_names=spot, genes=gene)
    return lambda: rg.get.explain(query, reference, obs_names=spot, genes=gene)


def fitting_screen(scale: float) -> Callable[[], object]:
    from perturbation import screen

    import ragst_sd as rg

    one = screen("Papalexi", Path(os.environ["RAGST_SD_TEST_DATA"]) / "perturb", 0)
    cells = one.adata[:: max(1, round(1 / scale))].copy()
    reference = rg.tl.build_perturbation_reference(cells, embedding=one.embedding, rng=0, **one.read, **one.build)
    return lambda: rg.tl.fit(reference, method="pt_rag", progress=False)


CASES = {
    "fit_small": Case('`fit(method="rag")`, 500 rows x 64 features', fitting(500, features=64), 4, 6),
    "fit": Case('`fit(method="rag")`, 8,000 rows, 4 donors', fitting(8000), 60, 100, 2000),
    "fit_large": Case(
        '`fit(method="rag")`, 50,000 rows, 16 donors, 2,000 genes', fitting(50_000, donors=16, genes=2000), 300
    ),
    "cross_validate": Case("`cross_validate` with the default methods, 2,000 rows, 4 donors", cross_validating, 60),
    "calibrate": Case("`calibrate`, 2,000 rows, 4 donors", calibrating, 60),
    "evaluate": Case("`evaluate`, 2,000 spots", evaluating, 5, megabytes=1000),
    "predict": Case("`predict` of 2,000 spots from 8,000 rows", predicting, 5),
    "pt_rag": Case('`fit(method="pt_rag")`, Papalexi', fitting_screen, 60, 100),
    "explain": Case("`explain` of one spot, 20,000 rows x 2,000 genes", explaining, 0.1),
}


def child(name: str, scale: float) -> dict[str, float]:
    """Seconds and megabytes of one case, in this process."""
    call = CASES[name].prepare(scale)
    seconds: dict[str, float] = {}

    def timed() -> None:
        start, busy = time.perf_counter(), time.process_time()
        call()
        seconds.update(wall=time.perf_counter() - start, processor=time.process_time() - busy)

    megabytes = peak_megabytes(timed)
    return {**seconds, "megabytes": megabytes}


def first_calls() -> dict[str, float]:
    """Seconds that the first call of each public function takes longer than the second, in this process."""
    import ragst_sd as rg

    sections = rg.datasets.synthetic(n_donors=4, image_px=500)
    query = sections.pop("donor4")
    made: dict = {}
    short = {"max_steps": 2, "n_seeds": 1}

    def embed(model: str) -> None:
        for sdata in (*sections.values(), query):
            rg.pp.embed_tiles(sdata, model=model, progress=False, overwrite=True)

    def build() -> None:
        made["reference"] = rg.tl.build_reference(sections, use_rep="X_texture")

    def explain() -> None:
        table = query.tables["predicted"]
        rg.get.explain(query, made["reference"], obs_names=table.obs_names[0], genes=table.var_names[0])

    calls: dict[str, Callable[[], object]] = {
        "pp.embed_tiles": lambda: embed("texture"),
        "tl.build_reference": build,
        "tl.fit, knn": lambda: rg.tl.fit(made["reference"], method="knn"),
        "tl.fit, rag": lambda: rg.tl.fit(made["reference"], options=short, progress=False),
        "tl.predict": lambda: rg.tl.predict(query, made["reference"]),
        "tl.evaluate": lambda: rg.tl.evaluate(query),
        "tl.evaluate, Moran's I": lambda: rg.tl.evaluate(query, metrics=["moran_agreement"]),
        "get.explain": explain,
        "get.neighbors": lambda: rg.get.neighbors(query),
        "get.influence": lambda: rg.get.influence(query, made["reference"], progress=False),
        "get.risk_coverage": lambda: rg.get.risk_coverage(query),
        "tl.cross_validate": lambda: rg.tl.cross_validate(made["reference"], methods=["knn"], progress=False),
        "tl.calibrate": lambda: rg.tl.calibrate(made["reference"], levels=[0.5], progress=False),
        GRAPH: lambda: rg.tl.predict(query, made["reference"], backend="pynndescent"),
    }
    longer = {}
    for name, call in calls.items():
        seconds = []
        for _ in range(2):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        longer[name] = seconds[0] - seconds[1]
    return longer


@contextmanager
def busy_processes(number: int) -> Iterator[None]:
    """So many processes count while this runs."""
    running = [subprocess.Popen([sys.executable, "-c", COUNT]) for _ in range(number)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def in_a_process(*arguments: str, environment: dict[str, str] | None = None) -> dict[str, float]:
    """What this script prints of a child."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False,
        env={**os.environ, **(environment or {})},
    )  # fmt: skip
    if done.returncode:
        sys.stderr.write(done.stderr)
        done.check_returncode()
    return json.loads(done.stdout.splitlines()[-1])


def results(*, only: list[str] | None = None, busy: int = 0, scale: float = 1.0) -> list[dict]:
    """Rows name, value, target, unit, passed."""
    out = []
    for name in only or [*CASES, "first_calls"]:
        if name == "first_calls":
            out += of_first_calls()
            continue
        case, asked = CASES[name], ("--child", name, "--scale", str(scale))
        if name == "pt_rag" and "RAGST_SD_TEST_DATA" not in os.environ:
            continue
        found = in_a_process(*asked)
        out += [
            row(f"{case.label}: by the clock", found["wall"], case.wall, "s"),
            row(f"{case.label}: of the processors", found["processor"], case.processor, "s"),
            row(f"{case.label}: memory", found["megabytes"], case.megabytes, "MB"),
        ]
        if busy:
            with busy_processes(busy):
                found = in_a_process(*asked)
            beside = f"beside {busy} busy processes"
            out += [
                row(f"{case.label}: by the clock, {beside}", found["wall"], None, "s"),
                row(f"{case.label}: of the processors, {beside}", found["processor"], case.processor, "s"),
            ]
    return out


def of_first_calls() -> list[dict]:
    """The public function whose first call takes longest over the second: where nothing is compiled yet, and after.

    An approximate graph is a line of its own: what it compiles is not ours.
    """
    out = []
    with tempfile.TemporaryDirectory() as folder:
        for when in ("where nothing was compiled before", "in a new process"):
            found = in_a_process("--child", "first_calls", environment={"NUMBA_CACHE_DIR": folder})
            graph = found.pop(GRAPH)
            name = max(found, key=lambda one: found[one])
            out.append(row(f"longest wait for a first call {when} (`{name}`)", found[name], 5, "s"))
            out.append(row(f"wait for the first call of `{GRAPH}` {when}", graph, 5, "s"))
    return out


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*CASES, "first_calls"])
    parser.add_argument("--busy", type=int, default=0, help="processes that count beside a second run")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows and genes of the full size")
    parser.add_argument("--write", type=Path, help="page whose marked table is replaced")
    parser.add_argument("--child", choices=[*CASES, "first_calls"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(first_calls() if args.child == "first_calls" else child(args.child, args.scale)))
        return
    text = as_table(results(only=args.only, busy=args.busy, scale=args.scale))
    print(text)
    if args.write:
        write_between_markers(args.write, "seconds", text)


if __name__ == "__main__":
    main()
