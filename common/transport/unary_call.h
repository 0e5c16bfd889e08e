// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "common/buffer.h"
#include "common/clock.h"
#include "grpcpp/channel.h"

namespace conclave::transport {

// A unary call on raw bytes. Blocks; other threads may call on the same
// channel. DeadlineExceeded when `clock` passes the deadline, Cancelled when
// `stop` is set, else the peer's status; the message begins with `what`.
absl::StatusOr<Buffer> CallUnary(const std::shared_ptr<grpc::Channel>& channel,
                                 const std::string& method,
                                 Buffer request,
                                 absl::Duration deadline,
                                 Clock* clock,
                                 const std::atomic<bool>& stop,
                                 const std::string& what);

}  // namespace conclave::transport
