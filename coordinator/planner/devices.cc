// SPDX-License-Identifier: Apache-2.0
#include "coordinator/planner/devices.h"

#include <algorithm>
#include <array>
#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/limits.h"
#include "common/status_macros.h"

namespace conclave::planner {
namespace {

struct Profile {
  std::string_view name;
  int32_t memory_gib;  // where the name says nothing else
  double usable;       // part of it that a program may take
  double gb_per_s;     // read
  double tflops;       // reached in large products, estimate
  bool measured;       // gb_per_s was
};

// Data sheets promise more than one stream reads.
constexpr double kOfDataSheet = 0.86;
constexpr int32_t kMemoryGibMax = 4096;

// Measured figures: docs/exchange-and-kernels 7.1 and 7.4; others from the
// makers' data sheets.
constexpr std::array<Profile, 10> kProfiles = {
    {{"h100", 80, 0.98, 3000, 500, true},
     {"h200", 141, 0.995, 4300, 500, true},
     {"rtx-4090", 24, 0.95, 1008, 120, false},
     {"rtx-5090", 32, 0.95, 1792, 160, false},
     {"rtx-pro-6000", 96, 0.97, 1792, 190, false},
     {"m2-ultra", 192, 0.75, 800, 10, false},
     {"m3-ultra", 256, 0.75, 692, 12, true},
     {"m4-max", 128, 0.75, 546, 8, false},
     {"m5-max", 128, 0.75, 614, 30, false},
     {"cpu", 64, 0.9, 60, 0.5, false}}};

absl::Status Unknown(std::string_view name) {
  std::vector<std::string> names;
  for (const Profile& p : kProfiles) names.emplace_back(p.name);
  return absl::InvalidArgumentError(
      absl::StrCat("device '",
                   std::string(name),
                   "' is unknown; known are ",
                   absl::StrJoin(names, ", "),
                   ", each with -GB for another memory"));
}

const Profile* Find(std::string_view name) {
  for (const Profile& p : kProfiles) {
    if (p.name == name) return &p;
  }
  return nullptr;
}

}  // namespace

absl::StatusOr<Node> DeviceOf(std::string_view name) {
  const Profile* profile = Find(name);
  int32_t gib = 0;
  if (profile == nullptr) {
    const size_t dash = name.rfind('-');
    if (dash == std::string_view::npos) return Unknown(name);
    profile = Find(name.substr(0, dash));
    const std::string number(name.substr(dash + 1));
    if (profile == nullptr || !absl::SimpleAtoi(number, &gib) || gib < 1 ||
        gib > kMemoryGibMax) {
      return Unknown(name);
    }
  }
  Node node;
  node.name = std::string(name);
  node.device = std::string(profile->name);
  node.memory_bytes = static_cast<uint64_t>(
      profile->usable * (gib > 0 ? gib : profile->memory_gib) *
      static_cast<double>(uint64_t{1} << 30));
  node.bytes_per_s =
      profile->gb_per_s * 1e9 * (profile->measured ? 1 : kOfDataSheet);
  node.flops = profile->tflops * 1e12;
  node.measured = profile->measured;
  return node;
}

absl::StatusOr<std::vector<Node>> ParseNodes(std::string_view list) {
  std::vector<Node> nodes;
  std::map<std::string, int> total, next;
  const std::vector<std::string> items = absl::StrSplit(std::string(list), ',');
  for (std::string item : items) {
    int32_t count = 1;
    const size_t x = item.find('x');
    const std::string number = x == std::string::npos ? "" : item.substr(0, x);
    if (!number.empty() &&
        std::all_of(number.begin(), number.end(), [](unsigned char c) {
          return c >= '0' && c <= '9';
        })) {
      if (!absl::SimpleAtoi(number, &count) || count < 1 ||
          count > limits::kWorkersMax) {
        return absl::InvalidArgumentError(absl::StrCat(
            "nodes: '", item, "': count must be 1 to ", limits::kWorkersMax));
      }
      item = item.substr(x + 1);
    }
    ASSIGN_OR_RETURN(const Node node, DeviceOf(item));
    nodes.insert(nodes.end(), static_cast<size_t>(count), node);
    total[node.name] += count;
  }
  if (nodes.size() > limits::kWorkersMax + 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("nodes: more than ", limits::kWorkersMax, " workers"));
  }
  for (Node& node : nodes) {
    if (total[node.name] < 2) continue;
    const int index = next[node.name]++;
    node.name = absl::StrCat(node.name, "#", index);
  }
  return nodes;
}

}  // namespace conclave::planner
