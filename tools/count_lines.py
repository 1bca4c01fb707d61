"""Counts lines of code: what is left of the files without blank lines, comments and docstrings, and how long such a line is.

python tools/count_lines.py [FOLDER OR FILE ...]     (src/ragst_sd where none is given)
"""

from __future__ import annotations

import argparse
import ast
import io
import tokenize
from pathlib import Path

# Tokens that are no code: they alone do not make a line count.
_LAYOUT = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}


def code_lines(text: str) -> list[str]:
    """The lines of a Python file that hold code, without the comment behind them."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        # A text that stands alone documents something: a module, a class, a function or the attribute above it.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings.update(range(node.lineno, (node.end_lineno or 0) + 1))
    lines = text.splitlines()
    ends: dict[int, int] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _LAYOUT:
            for number in range(token.start[0], token.end[0]):
                ends[number] = len(lines[number - 1])
            ends[token.end[0]] = token.end[1]
    return [lines[number - 1][:end].rstrip() for number, end in sorted(ends.items()) if number not in docstrings]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="*", type=Path, default=[Path(__file__).parents[1] / "src" / "ragst_sd"])
    parser.add_argument("--files", action="store_true", help="a line for each file, the longest first")
    arguments = parser.parse_args()
    files = [file for path in arguments.paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    counted = {file: code_lines(file.read_text(encoding="utf-8")) for file in files}
    if arguments.files:
        for file, lines in sorted(counted.items(), key=lambda item: -len(item[1])):
            print(f"{len(lines):6} {file}")
    total = sum(map(len, counted.values()))
    length = sum(len(line) for lines in counted.values() for line in lines) / max(total, 1)
    print(f"{total} lines of code in {len(files)} files, {length:.1f} characters each")


if __name__ == "__main__":
    main()
