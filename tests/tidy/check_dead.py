#!/usr/bin/env python3
"""Fails on source files that no CMakeLists.txt names, and on disabled tests."""
import pathlib
import re
import sys

ROOTS = ("common", "kernels", "worker", "coordinator", "tests")


def main():
    bad = []
    named, top = set(), pathlib.Path(".").resolve()
    for lists in pathlib.Path(".").rglob("CMakeLists.txt"):
        if str(lists).startswith("build"):
            continue
        text = re.sub(r"#.*", "", lists.read_text())
        text = text.replace("${PROJECT_SOURCE_DIR}/", str(top) + "/")
        for word in re.findall(r"[\w./-]+\.(?:h|cc|cu|cuh|mm)\b", text):
            named.add((lists.parent.resolve() / word).resolve())
    for root in ROOTS:
        for path in sorted(pathlib.Path(root).rglob("*")):
            if path.suffix in (".cc", ".cu", ".mm") and \
                    path.resolve() not in named and path.name != "empty_main.cc":
                bad.append(f"{path}: no CMakeLists.txt builds it")
            if root == "tests" and path.suffix == ".cc" and \
                    re.search(r"\bDISABLED_|#if 0", path.read_text()):
                bad.append(f"{path}: a disabled test")
            if root != "tests" and path.suffix == ".h" and \
                    path.resolve() not in named and \
                    not path.name.endswith("-inl.h") and "cuda" not in path.parts:
                bad.append(f"{path}: not in a HDRS list")
    print("\n".join(bad))
    sys.exit(bool(bad))


main()
