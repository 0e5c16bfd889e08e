"""Which way NCCL goes between processes, from what it logs at NCCL_DEBUG=INFO.

Lines as NCCL 2.18 to 2.31 have them, the name in brackets being a bus or a
device and `read` or `CE` how the bytes are moved:

    Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM/read
    Channel 00 : 0[1a000] -> 1[3b000] via P2P/IPC
    Channel 01/0 : 1[1] -> 0[0] [receive] via NET/Socket/0
"""
import collections
import re

CHANNEL = re.compile(
    r"Channel \d+(?:/\d+)? : (?P<source>\d+)\[\w+\] -> (?P<to>\d+)\[\w+\]"
    r"(?: \[(?:send|receive)\])? via (?P<way>\S+)")

# Memory of the other process by a pointer: a file descriptor of cuMem, or a
# handle of cudaIpc.
POINTERS = ("P2P/CUMEM", "P2P/IPC")
# Any network that NCCL has, NET/Socket at the least.
NETWORK = ("NET/",)

SHOWN_MAX = 20  # lines of a failure


def environment(folder, name):
    """What makes a process write its log to a file of its own."""
    return {"NCCL_DEBUG": "INFO", "NCCL_DEBUG_SUBSYS": "INIT,P2P,SHM,NET",
            "NCCL_DEBUG_FILE": str(folder / f"nccl-{name}.%p.txt")}


def read(folder):
    """The lines of all processes that wrote there."""
    return [line for path in sorted(folder.glob("nccl-*.txt"))
            for line in path.read_text(errors="replace").splitlines()]


def channels(lines):
    """How many channels there are, by (from, to, way), ranks as numbers; of
    the way what says whose memory or network it is: "P2P/CUMEM"."""
    out = collections.Counter()
    for line in lines:
        found = CHANNEL.search(line)
        if found:
            way = "/".join(found["way"].split("/")[:2])
            out[int(found["source"]), int(found["to"]), way] += 1
    return out


def table_cell(found):
    """"P2P/CUMEM 0->1 x8, 1->0 x8"."""
    by_way = collections.defaultdict(list)
    for (source, to, way), count in sorted(found.items()):
        by_way[way].append(f"{source}->{to} x{count}")
    return "; ".join(f"{way} {', '.join(pairs)}"
                     for way, pairs in sorted(by_way.items()))


def check(lines, ranks, expected):
    """Channels of rank 0 to every other one and back, and all of them the
    expected way; returns them. AssertionError with the lines that were seen."""
    found = channels(lines)
    wrong = [f"{source}->{to} goes via {way}"
             for source, to, way in sorted(found)
             if not way.startswith(expected)]
    for rank in range(1, ranks):
        for pair in ((0, rank), (rank, 0)):
            if not any(key[:2] == pair for key in found):
                wrong.append(f"no channel {pair[0]}->{pair[1]}")
    if wrong:
        seen = [line for line in lines if " via " in line] or lines
        shown = "\n".join(seen[:SHOWN_MAX])
        raise AssertionError(
            f"expected {' or '.join(expected)} between {ranks} processes: "
            f"{'; '.join(wrong)}\n{len(lines)} lines of NCCL, of them\n{shown}")
    return found
