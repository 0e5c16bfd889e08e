"""Peak memory of a load and of a conversion. Sanitizers have memory of their
own: tests/run.sh runs this file with programs of the release preset."""
import os
import pathlib
import re
import subprocess
import sys

import pytest

from processes import CONCLAVE, MODEL, SANITIZED
from test_delivery import fetching, resident, text_of

MIB = 1 << 20


def status_kib(program, field):
    text = open(f"/proc/{program.process.pid}/status").read()
    return int(re.search(rf"^{field}:\s+(\d+)", text, re.M)[1])


def major_faults(program):
    text = open(f"/proc/{program.process.pid}/stat").read()
    return int(text.rsplit(")", 1)[1].split()[9])


def mapped_files(program):
    """Code and whatever else of the disk lies in its address space."""
    text = open(f"/proc/{program.process.pid}/maps").read()
    return {pathlib.Path(found) for found in re.findall(r" (/.+)$", text, re.M)
            if os.path.isfile(found)}


def test_memory_and_page_faults_of_a_load(make_cluster, wide):
    one = make_cluster(workers=1, change=lambda c: fetching(c, wide))
    worker = one.workers["w0"]
    held = resident(one, "w0")
    assert held == 4 * 16 * 3 * 8192 * 256 * 2
    programs = [one.coordinator, worker]
    if not SANITIZED:
        for program in programs:
            peak = status_kib(program, "VmHWM") * 1024
            steady = status_kib(program, "VmRSS") * 1024
            # 134 MB of one fused tensor would show.
            assert peak - steady < 128 * MIB, program.log.name
        assert status_kib(worker, "VmHWM") * 1024 < held + 256 * MIB
    # Whatever is not in memory by now would have to come from the disk.
    weights = {*wide.iterdir(), *(one.folder / "cache").glob("??/*")}
    for file in weights:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    # Code that no request has used yet may have to, as the system likes it.
    for file in set().union(*map(mapped_files, programs)) - weights:
        file.read_bytes()
    before = [major_faults(p) for p in programs]
    text_of(one)
    assert [major_faults(p) for p in programs] == before


def peak_bytes(folder, model, out):
    """Of one quantize, alone: pages of a mapped file would count, too."""
    code = ("import resource, subprocess, sys\n"
            "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL,"
            " stderr=subprocess.DEVNULL)\n"
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
    reply = subprocess.run(
        [sys.executable, "-c", code, CONCLAVE, "quantize", "--model", model,
         "--to", "mlx4", "--out", folder / out],
        capture_output=True, text=True, check=True)
    return int(reply.stdout) * 1024


@pytest.mark.skipif(SANITIZED, reason="measures memory")
def test_quantize_does_not_grow_with_the_tensors(tmp_path, wide):
    small = peak_bytes(tmp_path, MODEL, "small")
    large = peak_bytes(tmp_path, wide, "large")
    assert large - small < 48 * MIB
