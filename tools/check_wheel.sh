#!/usr/bin/env bash
# Builds the source archive and the wheel, checks both, installs the wheel into an empty environment and runs the demo there.
#
#   tools/check_wheel.sh [python]     the interpreter of the empty environment; python3 if left out
#
# Needs the packages build and twine (in [dev]). Nothing is written into the repository.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${1:-python3}
tools=${TOOLS_PYTHON:-python3} # the interpreter that has build and twine
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# From the source archive, so that what is missing there is missing here.
"$tools" -m build --outdir "$work/dist" "$here" >"$work/build.log" 2>&1 || { cat "$work/build.log"; exit 1; }
"$tools" -m twine check --strict "$work"/dist/*
wheel=$(ls "$work"/dist/*.whl)

# All that is not Python has to be in it, and nothing that does not belong there.
(cd "$here/src" && git ls-files ragst_sd) | sort >"$work/tracked"
"$tools" -c "import sys, zipfile; print(*sorted(n for n in zipfile.ZipFile(sys.argv[1]).namelist() if '.dist-info/' not in n), sep='\n')" \
  "$wheel" | sort >"$work/packed"
diff "$work/tracked" "$work/packed" || { echo "the wheel does not hold what src holds (< src, > wheel)"; exit 1; }

"$python" -m venv "$work/env"
"$work/env/bin/pip" install --quiet --disable-pip-version-check "$wheel"
"$work/env/bin/pip" check
cd "$work" # away from src
version=$("$work/env/bin/python" -c "import ragst_sd, pathlib; assert 'site-packages' in ragst_sd.__file__; print(ragst_sd.__version__)")
case $(basename "$wheel") in
  ragst_sd-"$version"-*) ;;
  *) echo "the wheel is $(basename "$wheel"), but ragst_sd.__version__ is $version"; exit 1 ;;
esac
"$work/env/bin/ragst-sd" --version
MPLBACKEND=Agg "$work/env/bin/ragst-sd" demo --out "$work/demo"
for file in metrics.csv prediction.png retrieval.png explanation.csv reference.zarr.zip donor3.zarr; do
  [ -e "$work/demo/$file" ] || { echo "the demo has not written $file"; exit 1; }
done
"$work/env/bin/ragst-sd" inspect "$work/demo/reference.zarr.zip" >/dev/null
echo "wheel of $version: built, checked, installed and run"
