// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cluster/checkup.h"

#include <limits>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "common/version.h"
#include "coordinator/cluster/control_client.h"

namespace conclave::cluster {
namespace {

// The shortest of so many calls says most about the clock.
constexpr int kClockSamples = 7;
// Buffers are filled before they are read, maybe by many workers of one host.
constexpr absl::Duration kMeasureDeadline = absl::Seconds(60);

std::string Peer(const v1::Worker& worker) {
  return absl::StrCat(worker.name(), " (", worker.address(), ")");
}

// False words of a worker would make nonsense of a table.
bool Sane(uint64_t bytes) { return bytes < uint64_t{1} << 60; }

absl::Status AskHealth(ControlClient* client,
                       const v1::Worker& worker,
                       const CheckupOptions& options,
                       Checkup* out) {
  double shortest = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kClockSamples; ++i) {
    const absl::Time begin = options.clock->Now();
    ASSIGN_OR_RETURN(const v1::HealthReply reply,
                     client->Health(0, options.deadline));
    const absl::Duration took = options.clock->Now() - begin;
    const double seconds = absl::ToDoubleSeconds(took);
    out->generation = reply.generation();
    out->memory_free_bytes = reply.memory_free_bytes();
    out->memory_total_bytes = reply.memory_total_bytes();
    out->resident_bytes = reply.resident_bytes();
    out->tells_time = reply.unix_nanos() != 0;
    if (seconds >= shortest || !out->tells_time) continue;
    shortest = seconds;
    const absl::Time theirs = absl::FromUnixNanos(reply.unix_nanos());
    out->clock_offset_s = absl::ToDoubleSeconds(theirs - (begin + took / 2));
    out->clock_error_s = seconds / 2;
  }
  if (Sane(out->memory_free_bytes) && Sane(out->memory_total_bytes) &&
      Sane(out->resident_bytes)) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(
      "health: ", Peer(worker), " tells sizes that no machine has"));
}

absl::Status AskAll(ControlClient* client,
                    const v1::Worker& worker,
                    const CheckupOptions& options,
                    Checkup* out) {
  v1::RegisterRequest hello;
  hello.set_protocol_version(kProtocolVersion);
  hello.set_coordinator_version(std::string(Version()));
  hello.set_worker_name(worker.name());
  ASSIGN_OR_RETURN(const v1::RegisterReply reply,
                   client->Register(hello, options.deadline));
  out->version = reply.worker_version();
  out->simd = reply.simd();
  out->threads = reply.threads();
  return AskHealth(client, worker, options, out);
}

}  // namespace

Checkup CheckWorker(const v1::Worker& worker, const CheckupOptions& options) {
  Checkup out;
  out.reach = ReachPort(worker.address(), options.deadline);
  if (out.reach.reach != Reach::kOk) return out;
  ControlClient client(
      Peer(worker),
      transport::Dial(
          worker.address(), options.keys, transport::Traffic::kControl),
      options.clock);
  out.control = AskAll(&client, worker, options, &out);
  // A broken connection before the first answer: below gRPC there is more to
  // learn.
  if (out.version.empty() && (absl::IsUnavailable(out.control) ||
                              absl::IsDeadlineExceeded(out.control) ||
                              absl::IsInternal(out.control))) {
    out.reach =
        ExplainSilence(worker.address(), options.keys, options.deadline);
    // It took the call and kept silent: a worker, for all that is known.
    if (absl::IsDeadlineExceeded(out.control) &&
        out.reach.reach == Reach::kStranger) {
      out.reach.reach = Reach::kHangs;
    }
  }
  return out;
}

std::vector<absl::StatusOr<v1::MeasureReply>> MeasureWorkers(
    const std::vector<v1::Worker>& workers,
    const v1::MeasureRequest& request,
    const CheckupOptions& options) {
  std::vector<absl::StatusOr<v1::MeasureReply>> out(workers.size());
  std::vector<std::thread> threads;
  for (size_t i = 0; i < workers.size(); ++i) {
    threads.emplace_back([&, i] {
      ControlClient client(
          Peer(workers[i]),
          transport::Dial(
              workers[i].address(), options.keys, transport::Traffic::kControl),
          options.clock);
      out[i] = client.Measure(request, kMeasureDeadline);
    });
  }
  for (std::thread& thread : threads) thread.join();
  return out;
}

}  // namespace conclave::cluster
