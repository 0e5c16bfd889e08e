#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Decode and prefill of 512 beside llama.cpp, on the same cores, in turn.

usage: compare.py LLAMA_BENCH CONCLAVE ROUNDS NAME=GGUF=MODEL ...

NAME stands in the table; GGUF is the peer's file (write_gguf.py), MODEL the
checkpoint folder of the same shape. Prints medians of all rounds and, as the
ratio, the median of the rounds' ratios."""
import json
import statistics
import subprocess
import sys

TOKENS, PROMPT = 64, 512


def peer(program, model, threads):
    out = subprocess.run(
        [program, "-m", model, "-p", str(PROMPT), "-n", str(TOKENS),
         "-t", str(threads), "-r", "1", "-o", "json"],
        capture_output=True, text=True, check=True).stdout
    rows = json.loads(out)
    return [next(r["avg_ts"] for r in rows if (r["n_gen"] > 0) == decode)
            for decode in (True, False)]


def ours(program, model, threads):
    out = subprocess.run(
        [program, "bench", "decode", "--model", model, "--bench-threads",
         str(threads), "--backends", "cpu", "--sequences", "1", "--steps",
         str(TOKENS), "--prefill", str(PROMPT), "--context", "1", "--repeats",
         "1"], capture_output=True, text=True, check=True).stdout
    row = out.strip().splitlines()[-1].split()
    return [float(row[3]), float(row[6])]


def main():
    bench, conclave, rounds, *pairs = sys.argv[1:]
    print(f"{'weights':14}{'threads':>8}{'work':>10}{'peer tok/s':>12}"
          f"{'ours tok/s':>12}{'ours / peer':>13}")
    for pair in pairs:
        name, gguf, model = pair.split("=")
        for threads in (1, 2):
            taken = [(peer(bench, gguf, threads), ours(conclave, model, threads))
                     for _ in range(int(rounds))]
            for i, work in enumerate(("decode", "prefill")):
                theirs = [p[i] for p, _ in taken]
                mine = [o[i] for _, o in taken]
                ratio = statistics.median(o / p for o, p in zip(mine, theirs))
                print(f"{name:14}{threads:>8}{work:>10}"
                      f"{statistics.median(theirs):>12.0f}"
                      f"{statistics.median(mine):>12.0f}{ratio:>13.2f}",
                      flush=True)


main()
