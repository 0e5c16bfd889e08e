// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cluster/worker_state.h"

#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace conclave::cluster {

std::string_view Name(Phase phase) {
  switch (phase) {
    case Phase::kConnect:
      return "connect";
    case Phase::kAssign:
      return "load";
    case Phase::kExchange:
      return "open exchange";
    case Phase::kReady:
      return "ready";
    case Phase::kSilent:
      return "silent";
  }
  return "unknown";
}

void Apply(const v1::LoadProgress& news, absl::Time now, WorkerState* state) {
  state->load_news = now;
  state->bytes_done = news.bytes_done();
  state->bytes_total = news.bytes_total();
  state->local_bytes = news.local_bytes();
  state->cache_bytes = news.cache_bytes();
  state->peer_bytes = news.peer_bytes();
  state->coordinator_bytes = news.coordinator_bytes();
}

void Apply(const v1::RegisterReply& reply, WorkerState* state) {
  state->version = reply.worker_version();
  state->simd = reply.simd();
  state->threads = reply.threads();
}

void Apply(const v1::HealthReply& reply, WorkerState* state) {
  state->frames_served = reply.frames_served();
  state->resident_bytes = reply.resident_bytes();
  state->memory_free_bytes = reply.memory_free_bytes();
  state->link = reply.link();
  state->link_step = reply.link_step();
  state->link_layers = reply.link_layers();
  state->link_error = reply.link_error();
}

std::string_view Before(const WorkerState& state) {
  if (state.error.ok()) return "";
  const bool now =
      state.phase == Phase::kConnect || state.phase == Phase::kSilent;
  return now ? ": " : ", before that: ";
}

std::string LoadedText(const WorkerState& state) {
  const auto gb = [](uint64_t bytes) {
    return absl::StrFormat("%.3f GB", static_cast<double>(bytes) / 1e9);
  };
  std::string out = absl::StrFormat(
      "loaded %s in %.1f s",
      gb(state.bytes_done),
      absl::ToDoubleSeconds(state.load_news - state.load_began));
  std::vector<std::string> sources;
  const auto add = [&](uint64_t bytes, const char* from) {
    if (bytes > 0) sources.push_back(absl::StrCat(gb(bytes), " from ", from));
  };
  add(state.local_bytes, "its copy of the checkpoint");
  add(state.cache_bytes, "its cache");
  add(state.peer_bytes, "other workers");
  add(state.coordinator_bytes, "here");
  if (sources.empty()) return out;
  return absl::StrCat(out, ": ", absl::StrJoin(sources, ", "));
}

}  // namespace conclave::cluster
