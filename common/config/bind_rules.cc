// SPDX-License-Identifier: Apache-2.0
// Addresses, and the rule for binds outside loopback.

#include <arpa/inet.h>

#include <algorithm>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/config/cluster_config.h"
#include "common/status_macros.h"

namespace conclave::config {
namespace {

constexpr size_t kHostBytesMax = 253;  // a DNS name
constexpr int kPortMax = 65535;

absl::Status Bad(std::string_view address, const std::string& why) {
  const std::string shown(address.substr(0, kHostBytesMax));
  return absl::InvalidArgumentError(
      absl::StrCat("'", absl::CHexEscape(shown), "' is no HOST:PORT: ", why));
}

bool IsIpv6(const std::string& host) {
  in6_addr ignored = {};
  return inet_pton(AF_INET6, host.c_str(), &ignored) == 1;
}

bool IsName(const std::string& host) {
  return !host.empty() &&
         std::all_of(host.begin(), host.end(), [](unsigned char c) {
           return absl::ascii_isalnum(c) || c == '.' || c == '-' || c == '_';
         });
}

}  // namespace

absl::StatusOr<HostPort> ParseHostPort(std::string_view address) {
  if (address.size() > kHostBytesMax + 8) return Bad(address, "too long");
  HostPort out;
  std::string_view port;
  if (!address.empty() && address[0] == '[') {
    const size_t close = address.find("]:");
    if (close == address.npos) {
      return Bad(address, "write IPv6 as [ADDRESS]:PORT");
    }
    out.host = std::string(address.substr(1, close - 1));
    port = address.substr(close + 2);
    if (!IsIpv6(out.host)) {
      return Bad(address, "what stands in brackets is no IPv6 address");
    }
  } else {
    const size_t colon = address.rfind(':');
    if (colon == address.npos) return Bad(address, "the port is missing");
    out.host = std::string(address.substr(0, colon));
    port = address.substr(colon + 1);
    if (out.host.find(':') != out.host.npos) {
      return Bad(address, "write IPv6 as [ADDRESS]:PORT");
    }
    if (out.host.empty()) {
      return Bad(address, "the host is missing; 0.0.0.0 means every interface");
    }
    if (!IsName(out.host)) {
      return Bad(address, "the host is neither a name nor an address");
    }
  }
  const bool digits =
      !port.empty() && port.size() <= 5 &&
      std::all_of(port.begin(), port.end(), absl::ascii_isdigit);
  if (!digits || !absl::SimpleAtoi(std::string(port), &out.port) ||
      out.port > kPortMax) {
    return Bad(address,
               absl::StrCat("the port must be a number up to ", kPortMax));
  }
  return out;
}

bool IsLoopback(const HostPort& address) {
  if (address.host == "localhost") return true;
  in_addr v4 = {};
  if (inet_pton(AF_INET, address.host.c_str(), &v4) == 1) {
    return (ntohl(v4.s_addr) >> 24) == 127;
  }
  in6_addr v6 = {};
  return inet_pton(AF_INET6, address.host.c_str(), &v6) == 1 &&
         IN6_IS_ADDR_LOOPBACK(&v6);
}

int32_t SpinUs(const v1::ClusterConfig& config, int32_t wanted, int32_t cores) {
  int32_t processes = 1;
  for (const v1::Worker& worker : config.workers()) {
    const auto address = ParseHostPort(worker.address());
    if (address.ok() && IsLoopback(*address)) ++processes;
  }
  return processes > cores ? 0 : std::max(wanted, 0);
}

absl::Status CheckHttpBind(const v1::ClusterConfig& config) {
  const v1::Coordinator& coordinator = config.coordinator();
  // A key that was asked for and is not there must never mean "no key".
  if (coordinator.api_key().empty() && !coordinator.api_key_file().empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("coordinator.api_key_file: cannot read ",
                     coordinator.api_key_file(),
                     "; write the key into it, or remove the field"));
  }
  ASSIGN_OR_RETURN(const HostPort listen, ParseHostPort(coordinator.listen()));
  if (IsLoopback(listen) || config.insecure() ||
      !coordinator.api_key().empty()) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(
      absl::StrCat("coordinator.listen: ",
                   coordinator.listen(),
                   " can be reached from other machines, so it needs a key: "
                   "set coordinator.api_key_file (or api_key), listen on "
                   "127.0.0.1, or accept the risk with insecure: true"));
}

absl::Status CheckWorkerBind(const v1::ClusterConfig& config,
                             const v1::Worker& worker) {
  ASSIGN_OR_RETURN(const HostPort address, ParseHostPort(worker.address()));
  const v1::Tls& tls = config.tls();
  const bool mutual =
      !tls.ca().empty() && !tls.cert().empty() && !tls.key().empty();
  if (IsLoopback(address) || config.insecure()) return absl::OkStatus();
  if (mutual && config.exchange().over() == "nccl") {
    return absl::FailedPreconditionError(
        absl::StrCat("worker '",
                     worker.name(),
                     "': ",
                     worker.address(),
                     ": exchange.over: nccl sends rows without TLS; keep them "
                     "on a network that you trust and accept the risk with "
                     "insecure: true, or use exchange.over: grpc"));
  }
  if (mutual) return absl::OkStatus();
  return absl::FailedPreconditionError(
      absl::StrCat("worker '",
                   worker.name(),
                   "': ",
                   worker.address(),
                   " can be reached from other machines, so the exchange needs "
                   "mutual TLS: set tls.ca, tls.cert and tls.key, use a "
                   "loopback address, or accept the risk with insecure: true"));
}

}  // namespace conclave::config
