// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/transport/channel.h"

namespace conclave::cluster {

// Why a port cannot be talked to, found out below gRPC, whose own errors do
// not tell these apart.
enum class Reach {
  kOk,
  kBadName,      // DNS knows no such host, or does not answer
  kRefused,      // nothing listens there
  kNoAnswer,     // no packet came back in time
  kNoRoute,      // the system knows no way to the host
  kNoTls,        // it listens, and speaks no TLS
  kWantsTls,     // it speaks TLS, and we have no keys
  kBadPeerCert,  // its certificate is not what ours trust
  kRefusesCert,  // it ends the handshake, or wants another certificate
  kHangs,        // it accepts connections and says nothing
  kStranger,     // it listens, and is no worker
};

struct ReachResult {
  Reach reach = Reach::kOk;
  std::string detail;  // the system's or OpenSSL's words
};

// Resolves and connects, no more. kOk up to kNoRoute.
ReachResult ReachPort(const std::string& address, absl::Duration deadline);

// What is wrong with a port that accepts connections and does not answer
// gRPC: a TLS handshake with the keys, or with none. kNoTls and below.
ReachResult ExplainSilence(const std::string& address,
                           const transport::TlsKeys& keys,
                           absl::Duration deadline);

// Whether this process may listen there. Unavailable: somebody else does.
absl::Status CanListen(const std::string& address);

}  // namespace conclave::cluster
