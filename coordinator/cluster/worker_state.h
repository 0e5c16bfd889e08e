// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "conclave/v1/control.pb.h"

namespace conclave::cluster {

// What a worker is up to, as seen from here.
enum class Phase {
  kConnect,   // dialled, registered
  kAssign,    // loads its slices
  kExchange,  // opens the exchange streams
  kReady,
  kSilent,  // was ready; does not answer, its link still stands
};
std::string_view Name(Phase phase);

struct WorkerState {
  std::string name;
  std::string address;
  Phase phase = Phase::kConnect;
  absl::Status error;  // the last one, kept until the worker is ready
  // The load, for a bar with rate and time left.
  uint64_t bytes_done = 0;
  uint64_t bytes_total = 0;
  absl::Time load_began = absl::InfinitePast();
  absl::Time load_news = absl::InfinitePast();  // of the last bytes
  // Of bytes_done, by where the worker took them from.
  uint64_t local_bytes = 0;
  uint64_t cache_bytes = 0;
  uint64_t peer_bytes = 0;
  uint64_t coordinator_bytes = 0;
  // From Register and Health.
  std::string version;
  std::string simd;
  int32_t threads = 0;
  uint64_t frames_served = 0;
  uint64_t resident_bytes = 0;
  uint64_t memory_free_bytes = 0;
  // Its end of the link joined last; link 0: none.
  uint64_t link = 0;
  uint64_t link_step = 0;
  int32_t link_layers = 0;
  std::string link_error;
};

// Puts news of a load into the state.
void Apply(const v1::LoadProgress& news, absl::Time now, WorkerState* state);

// What a worker says of itself.
void Apply(const v1::RegisterReply& reply, WorkerState* state);
void Apply(const v1::HealthReply& reply, WorkerState* state);

// What stands between a worker's phase and its last error: nothing without one.
std::string_view Before(const WorkerState& state);

// "loaded 1.250 GB in 3.1 s: 1.000 GB from its cache, 0.250 GB from here".
std::string LoadedText(const WorkerState& state);

}  // namespace conclave::cluster
