#!/usr/bin/env python3
"""Fails on calls that the house rules ban; each ban names its replacement."""
import pathlib
import re
import sys

ROOTS = ("common", "kernels", "worker", "coordinator")
SUFFIXES = {".h", ".cc", ".cu", ".cuh", ".mm"}
# (pattern, replacement, folders or files where it is allowed)
BANS = [
    (r"\bthrow\b", "absl::Status", ()),
    (r"(?<![\w:.])(std::)?_?exit\s*\(", "a Status up to main",
     ("coordinator/main.cc", "worker/main.cc", "coordinator/cli/")),
    (r"\bstd::(cerr|cout|clog)\b|(?<![\w.])(std::)?f?printf\s*\(",
     "common/log.h",
     ("coordinator/main.cc", "worker/main.cc", "coordinator/cli/",
      "worker/cli/")),
    (r"absl::Now\s*\(|_clock::now\s*\(|gettimeofday|clock_gettime",
     "common/clock.h",
     ("common/clock.cc", "common/thread_pool.cc", "common/transport/")),
    (r"\b(absl::SleepFor|usleep|nanosleep|sleep_for|sleep_until)\s*\(",
     "Clock::SleepUntil", ("common/clock.cc",)),
    (r"\b(rand|srand|random)\s*\(|random_device|mt19937",
     "coordinator/sample's generator, seeded by the caller", ()),
    (r"^\s*#\s*(if|ifdef|ifndef|elif)\b", "a file that is linked instead",
     ("kernels/cpu/", "kernels/cuda/", "kernels/context.cc",
      "common/thread_pool.cc")),
    (r"\b(TODO|FIXME|XXX)\b", "an issue", ()),
    (r"\b(IsSimulated|is_test|IN_TEST)\b",
     "what differs comes in through the constructor", ()),
    (r"\b(strcpy|strcat|sprintf|gets)\s*\(", "bounded forms", ()),
]
NAMES = re.compile(r"(^|[/_])(util|utils|helper|helpers|misc|base|manager)"
                   r"\.(h|cc|cu)$")


def code_of(line):
    """The line without string literals and comments."""
    line = re.sub(r'"(\\.|[^"\\])*"', '""', line)
    return re.sub(r"//.*", "", line)


def main():
    bad = []
    for root in ROOTS:
        for path in sorted(pathlib.Path(root).rglob("*")):
            if path.suffix not in SUFFIXES:
                continue
            name = str(path)
            if NAMES.search(name):
                bad.append(f"{name}: a name that says nothing")
            for number, line in enumerate(path.read_text().splitlines(), 1):
                code = code_of(line)
                for pattern, instead, where in BANS:
                    text = line if "TODO" in pattern else code
                    if re.search(pattern, text) and \
                            not any(name.startswith(w) for w in where):
                        bad.append(f"{name}:{number}: banned: "
                                   f"{line.strip()[:60]} (use {instead})")
    print("\n".join(bad))
    sys.exit(bool(bad))


main()
