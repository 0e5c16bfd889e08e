#!/usr/bin/env python3
"""Fails when a file, a function or the repository grows over its limit.

Limits: .cc 400 lines, .h 200, function 70 (device functions 120), 80 columns,
42 MiB tracked. Exemptions stand by name, with a reason, in exemptions.txt and
may only shrink: an exemption that is no longer needed fails too.
"""
import pathlib
import re
import subprocess
import sys

SUFFIXES = {".h": 200, ".cc": 400, ".cu": 400, ".cuh": 200, ".mm": 400}
FUNCTION, DEVICE_FUNCTION, COLUMNS = 70, 120, 80
TRACKED_BYTES = 42 << 20
ROOTS = ("common", "kernels", "worker", "coordinator", "tests")


def functions(lines):
    """(first line, length) of every block at namespace level or in a class.

    The tree is formatted by clang-format, so a function body ends with a
    closing brace at the indentation of its first line.
    """
    for start, line in enumerate(lines):
        if not line.endswith("{") or re.match(
                r"\s*(namespace|class|struct|enum|union|extern|#|//|\}|if|for|"
                r"while|switch|do|else|try|case|static const|constexpr)", line):
            continue
        head = start
        while head > 0 and lines[head - 1].strip() and not re.search(
                r"[;{}:]\s*$|^\s*(//|#)", lines[head - 1]):
            head -= 1
        indent = len(lines[head]) - len(lines[head].lstrip())
        if indent > 2 or "(" not in "".join(lines[head:start + 1]):
            continue
        if "=" in lines[head] and "operator" not in lines[head]:
            continue
        for end in range(start + 1, len(lines)):
            text = lines[end]
            if text.startswith(" " * indent + "}") and \
                    len(text) - len(text.lstrip()) == indent:
                yield head + 1, end - head + 1
                break


def read_exemptions(path):
    out = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            key, reason = line.split(None, 1)
            out[key] = reason
    return out


def main():
    folder = pathlib.Path(__file__).parent
    exempt, used, bad = read_exemptions(folder / "exemptions.txt"), set(), []

    def report(key, text):
        if key in exempt:
            used.add(key)
        else:
            bad.append(text)

    for root in ROOTS:
        for path in sorted(pathlib.Path(root).rglob("*")):
            if path.suffix not in SUFFIXES:
                continue
            lines = path.read_text().splitlines()
            if len(lines) > SUFFIXES[path.suffix]:
                report(f"{path}", f"{path}: {len(lines)} lines, limit "
                       f"{SUFFIXES[path.suffix]}")
            if not lines or "SPDX-License-Identifier" not in lines[0]:
                bad.append(f"{path}:1: SPDX line is missing")
            limit = DEVICE_FUNCTION if path.suffix in (".cu", ".cuh") \
                else FUNCTION
            for first, length in functions(lines):
                if length > limit:
                    report(f"{path}:function", f"{path}:{first}: function of "
                           f"{length} lines, limit {limit}")
            for number, line in enumerate(lines, 1):
                if len(line) > COLUMNS and "http" not in line and \
                        not line.startswith("#include"):
                    report(f"{path}:columns",
                           f"{path}:{number}: {len(line)} columns")
    names = subprocess.run(["git", "ls-files", "-z"], capture_output=True,
                           check=False).stdout.decode().split("\0")
    size = sum(pathlib.Path(n).stat().st_size for n in names
               if n and pathlib.Path(n).is_file())
    if size > TRACKED_BYTES:
        bad.append(f"tracked files take {size} bytes, limit {TRACKED_BYTES}")
    bad += [f"exemptions.txt: {key} is no longer needed"
            for key in exempt if key not in used]
    print("\n".join(bad))
    sys.exit(bool(bad))


main()
