#!/usr/bin/env python3
"""Measures what two micro-batches in flight gain over links of some delay.

Starts workers behind relays as predict.py does, on loopback, and runs
`conclave bench decode --micro-batches 1,2,0`, which takes the settings in
turn; prints medians and ratios. It judges nothing; run it by hand.

  tests/network/micro_batches.py --build build/dev --delays 0,500,2000
"""
import argparse
import pathlib
import re
import sys

from predict import ROOT, clusters, conclave

PATIENCE_S = 3600

ROW = re.compile(r"^cpu +\d+ +(\d+) +(1|2|by gain) +(\d+) +(\d+) +[\d.]+ +\d+ "
                 r"+[\d.]+ +(\d+)$", re.M)


def measured(options, cluster):
    """(sequences, micro-batches) -> decode tok/s, us/step, prompts tok/s."""
    said = conclave(options, "bench", "decode", "--config", cluster.config,
                    "--backends", "cpu", "--bench-threads", options.threads,
                    "--sequences", options.sequences, "--micro-batches",
                    "1,2,0", "--repeats", options.repeats, "--steps",
                    options.steps, "--prefill", "64", "--log-level",
                    "error", patience_s=PATIENCE_S).stdout
    return {(int(s), m): (int(decode), int(us), int(prompts))
            for s, m, decode, us, prompts in ROW.findall(said)}


def table(delay, cases):
    for sequences in sorted({s for s, _ in cases}):
        one = cases[sequences, "1"]
        for setting in ("1", "2", "by gain"):
            decode, us, prompts = cases[sequences, setting]
            print(f"| {delay} | {sequences} | {setting} | {us / 1e3:.2f} | "
                  f"{decode / one[0]:.2f} | {prompts} | "
                  f"{prompts / one[2]:.2f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", default=ROOT / "build/dev")
    parser.add_argument("--model", help="default: a random one of 400 MB")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--spin-us", type=int, default=-1)
    parser.add_argument("--delays", default="0,500,2000",
                        help="microseconds added to a round trip")
    parser.add_argument("--sequences", default="2,8,16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=64)
    options = parser.parse_args()
    options.loopback = True
    print("| delay us | sequences | micro-batches | ms/step | decode x | "
          "prompts tok/s | x |\n|---|---|---|---|---|---|---|", flush=True)
    for delay, cluster in clusters(options):
        table(delay, measured(options, cluster))
    return 0


if __name__ == "__main__":
    sys.exit(main())
