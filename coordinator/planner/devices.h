// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave::planner {

// The way between a node and the coordinator.
struct Link {
  double round_trip_s = 150e-6;  // of a small frame: gRPC over 10GbE
  double bytes_per_s = 1.18e9;   // to the node
  double back_bytes_per_s = 1.18e9;
};

// Expert products as a worker measured them: a product of n slices with e
// entries takes call_s + bytes / bytes_per_s (1 + row_share (e - n) / n).
struct ExpertSpeed {
  double call_s = 0;
  double bytes_per_s = 0;  // 0: not measured
  double row_share = 0;
};

// What a plan needs to know of a machine.
struct Node {
  std::string name;           // "m3-ultra-256-2"
  std::string device;         // "m3-ultra"
  uint64_t memory_bytes = 0;  // that weights and caches may take
  double bytes_per_s = 0;     // memory read, as one stream sees it
  double flops = 0;           // of large products, as reached
  bool measured = false;      // else from the data sheet, times 0.86
  Link link;
  ExpertSpeed experts;
};

// One node of a profile. Profiles: h100, h200, rtx-4090, rtx-5090,
// rtx-pro-6000, m2-ultra, m3-ultra, m4-max, m5-max, cpu; "-GB" behind it gives
// the memory ("m3-ultra-256"), of which a Mac's GPU may take three quarters.
// InvalidArgument lists them.
absl::StatusOr<Node> DeviceOf(std::string_view name);

// A comma list of COUNTxDEVICE[-GB]: "h200,4xm3-ultra-256". The first node is
// the coordinator. Nodes are named after their device, numbered from 0 where
// there are several.
absl::StatusOr<std::vector<Node>> ParseNodes(std::string_view list);

}  // namespace conclave::planner
