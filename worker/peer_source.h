// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/delivery/content_hash.h"
#include "common/status_macros.h"
#include "conclave/v1/control.pb.h"
#include "grpcpp/channel.h"

namespace conclave::worker {

using DialFn =
    std::function<std::shared_ptr<grpc::Channel>(const std::string& address)>;

// Other workers as a source of slices that they held or hold. A peer that does
// not answer, lacks what it promised or sends wrong bytes is not asked again
// in this load. Thread-safe.
class PeerSource {
 public:
  // `deadline`: of each call. What is pointed to outlives the source.
  PeerSource(const std::vector<v1::Peer>& peers,
             const DialFn& dial,
             absl::Duration deadline,
             Clock* clock,
             const std::atomic<bool>& stop);

  // Asks all peers at once which of these they hold.
  void Ask(const std::vector<delivery::ContentHash>& hashes);

  // Fills `out` with checked bytes. NotFound: no peer (any longer) has it.
  absl::Status Fetch(const delivery::ContentHash& hash,
                     const checkpoint::SliceLayout& layout,
                     const checkpoint::SliceSpans& out);

 private:
  struct Peer {
    v1::Peer who;
    std::shared_ptr<grpc::Channel> channel;
    bool bad = false;  // guarded by mu_
  };
  absl::Status FetchFrom(const Peer& peer,
                         const delivery::ContentHash& hash,
                         const checkpoint::SliceLayout& layout,
                         const checkpoint::SliceSpans& out);
  Peer* HolderOf(const delivery::ContentHash& hash);

  const absl::Duration deadline_;
  Clock* const clock_;
  const std::atomic<bool>& stop_;
  std::mutex mu_;
  std::vector<std::unique_ptr<Peer>> peers_;
  std::map<delivery::ContentHash, std::vector<Peer*>> holders_;
  size_t turn_ = 0;  // spreads the load over holders
};

}  // namespace conclave::worker
