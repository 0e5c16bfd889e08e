#!/usr/bin/env python3
"""Fails on dead links, on paths that belong to no clone, and on bars that are
not those of their table."""
import pathlib
import re
import sys

sys.dont_write_bytecode = True
sys.path.insert(0, "tests/bench")
import bars


def main():
    bad = []
    pages = [p for p in pathlib.Path(".").rglob("*.md")
             if not str(p).startswith(("build/", ".venv/", ".cache/"))]
    for page in sorted(pages):
        for number, line in enumerate(page.read_text().splitlines(), 1):
            for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", line):
                if re.match(r"[a-z]+:", link):
                    continue
                if not (page.parent / link).exists():
                    bad.append(f"{page}:{number}: dead link {link}")
    for table in sorted(pathlib.Path("docs/benchmarks").glob("*.csv")):
        picture = table.with_suffix(".svg")
        if not picture.exists() or \
                picture.read_text() != bars.draw(*bars.read(table)):
            bad.append(f"{picture}: draw it again with tests/bench/bars.py "
                       f"{table} {picture}")
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE",
                 "VERSION", "docs/architecture.md", "docs/testing.md",
                 "deploy/quickstart.sh", "tests/run.sh", ".ci/run"):
        if not pathlib.Path(name).exists():
            bad.append(f"missing: {name}")
    print("\n".join(bad))
    sys.exit(bool(bad))


main()
