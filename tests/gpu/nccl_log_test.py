#!/usr/bin/env python3
"""Reads logs as several NCCLs write them."""
import pathlib
import tempfile
import unittest

import nccl_log

# 2.28 with cuMem, one process each; a banner, and a channel within a process.
CUMEM = """\
host:41:52 [0] NCCL INFO NCCL version 2.28.3+cuda13.0
host:41:52 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM/read
host:41:52 [0] NCCL INFO Channel 01/0 : 0[0] -> 1[1] via P2P/CUMEM/read/CE
host:41:52 [0] NCCL INFO Connected all rings, use ring PXN 0 GDR 1
host:42:53 [1] NCCL INFO Channel 00/1 : 1[1] -> 0[0] via P2P/CUMEM
"""
# Bus numbers for devices; 2.18 and before had no number of a connection.
IPC = """\
host:41:52 [0] NCCL INFO Channel 00 : 0[1a000] -> 1[3b000] via P2P/IPC
host:42:53 [1] NCCL INFO Channel 00/0 : 1[3b000] -> 0[1a000] via P2P/IPC/read
"""
SOCKETS = """\
[2026-11-28 10:00:00] host:41:52 [0] NCCL INFO Channel 00/0 : 1[1] -> 0[0] \
[receive] via NET/Socket/0
[2026-11-28 10:00:00] host:41:52 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] \
[send] via NET/Socket/0(1)/Shared
"""
INFINIBAND = """\
host:41:52 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] [send] via \
NET/IB/8/GDRDMA(PCI) comm 0x5581 nRanks 02
host:42:53 [1] NCCL INFO Channel 00/0 : 1[1] -> 0[0] [send] via \
NET/AWS Libfabric/2/GDRDMA
"""
SHARED = """\
host:41:52 [0] NCCL INFO Channel 00 : 0[0] -> 1[1] via SHM/direct/direct
host:42:53 [1] NCCL INFO Channel 00 : 1[1] -> 0[0] via SHM/direct/direct
"""


def check(text, ranks, expected):
    return nccl_log.check(text.splitlines(), ranks, expected)


class NcclLog(unittest.TestCase):
    def test_pointers(self):
        found = check(CUMEM, 2, nccl_log.POINTERS)
        self.assertEqual(found, {(0, 1, "P2P/CUMEM"): 2,
                                 (1, 0, "P2P/CUMEM"): 1})
        self.assertEqual(nccl_log.table_cell(found),
                         "P2P/CUMEM 0->1 x2, 1->0 x1")
        self.assertEqual(check(IPC, 2, nccl_log.POINTERS),
                         {(0, 1, "P2P/IPC"): 1, (1, 0, "P2P/IPC"): 1})

    def test_networks(self):
        self.assertEqual(
            nccl_log.table_cell(check(SOCKETS, 2, nccl_log.NETWORK)),
            "NET/Socket 0->1 x1, 1->0 x1")
        self.assertEqual(
            nccl_log.table_cell(check(INFINIBAND, 2, nccl_log.NETWORK)),
            "NET/AWS 1->0 x1; NET/IB 0->1 x1")

    def test_another_way_fails_with_its_lines(self):
        for text, expected in [(SHARED, nccl_log.POINTERS),
                               (SHARED, nccl_log.NETWORK),
                               (SOCKETS, nccl_log.POINTERS),
                               (CUMEM, nccl_log.NETWORK),
                               # One pair of many.
                               (CUMEM + SHARED, nccl_log.POINTERS),
                               # Pointers within one process are not these.
                               (CUMEM.replace("CUMEM", "direct pointer"),
                                nccl_log.POINTERS)]:
            with self.assertRaises(AssertionError) as raised:
                check(text, 2, expected)
            said = str(raised.exception)
            self.assertIn(f"expected {' or '.join(expected)}", said)
            self.assertIn(text.splitlines()[-1], said)

    def test_every_pair_has_channels(self):
        for text, ranks, missing in [
                ("", 2, "no channel 0->1"),
                (CUMEM.rsplit("\n", 2)[0], 2, "no channel 1->0"),
                (CUMEM, 3, "no channel 0->2; no channel 2->0")]:
            with self.assertRaisesRegex(AssertionError, missing):
                check(text, ranks, nccl_log.POINTERS)

    def test_processes_write_files_of_their_own(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            for name, number, line in [("w0", "7", "b"),
                                       ("coordinator", "8", "a")]:
                path = nccl_log.environment(folder, name)["NCCL_DEBUG_FILE"]
                pathlib.Path(path.replace("%p", number)).write_text(line + "\n")
            self.assertEqual(nccl_log.read(folder), ["a", "b"])


if __name__ == "__main__":
    unittest.main()
