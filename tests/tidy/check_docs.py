#!/usr/bin/env python3
"""Fails on dead links and on paths that belong to no clone."""
import pathlib
import re
import sys


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
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE",
                 "VERSION", "docs/architecture.md", "docs/testing.md",
                 "deploy/quickstart.sh", "tests/run.sh", ".ci/run"):
        if not pathlib.Path(name).exists():
            bad.append(f"missing: {name}")
    print("\n".join(bad))
    sys.exit(bool(bad))


main()
