// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cluster/membership.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/check.h"
#include "common/config/cluster_config.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/thread_pool.h"
#include "common/transport/channel.h"
#include "common/transport/grpc_transport.h"
#include "coordinator/cluster/assign_request.h"
#include "coordinator/cluster/control_client.h"
#include "coordinator/cluster/greeting.h"
#include "coordinator/cluster/worker_metrics.h"

namespace conclave::cluster {
namespace {

using transport::GrpcTransport;

constexpr absl::Duration kBackoffMin = absl::Milliseconds(100);
constexpr absl::Duration kBackoffMax = absl::Seconds(1);
constexpr absl::Duration kHealthInterval = absl::Milliseconds(500);
// How soon a broken link is noticed while no step runs.
constexpr absl::Duration kLinkInterval = absl::Milliseconds(20);
constexpr absl::Duration kOpenInterval = absl::Milliseconds(1);

absl::Duration Seconds(double seconds, double fallback) {
  return absl::Seconds(seconds > 0 ? seconds : fallback);
}

}  // namespace

struct Cluster::Impl {
  Impl(ClusterParts p, transport::TlsKeys k, const GrpcTransport::Options& o)
      : parts(std::move(p)),
        keys(std::move(k)),
        generation(
            static_cast<uint64_t>(absl::ToUnixNanos(parts.clock->Now()))),
        grpc(o) {}

  // The life of one worker's thread.
  void Keep(size_t index);
  absl::Status BringUp(size_t index, ControlClient* client);
  // The worker takes its slices; answers what it wants of them.
  absl::Status Load(size_t index, ControlClient* client);
  absl::Status OpenExchange(size_t index);
  // Until the worker is lost; says why.
  absl::Status Watch(size_t index, ControlClient* client);
  absl::Status CheckHealth(size_t index, ControlClient* client);
  absl::Status ServesAnother(size_t index, uint64_t other) const;

  std::string Peer(size_t index) const {
    const v1::Worker& worker = parts.config.workers(static_cast<int>(index));
    return absl::StrCat(worker.name(), " (", worker.address(), ")");
  }
  void Enter(size_t index, Phase phase);
  void Failed(size_t index, Phase phase, const absl::Status& error);
  // So that the end of the cluster ends its calls. Both: false at the end.
  bool Adopt(size_t index, ControlClient* client);
  bool Sleep(absl::Duration duration);

  const ClusterParts parts;
  const transport::TlsKeys keys;
  const uint64_t generation;
  GrpcTransport grpc;
  absl::Duration connect, load_progress, health;
  mutable std::mutex mu;
  std::condition_variable changed;
  // Where a state changes, its series follow. mu held.
  void Show(size_t index) {
    if (!shown.empty()) shown[index].Set(states[index]);
  }

  std::vector<WorkerState> states;      // guarded by mu
  std::vector<WorkerMetrics> shown;     // guarded by mu
  std::vector<ControlClient*> clients;  // guarded by mu
  std::atomic<bool> stop{false};
  std::vector<std::thread> keepers;
};

bool Cluster::Impl::Sleep(absl::Duration duration) {
  std::unique_lock<std::mutex> lock(mu);
  changed.wait_for(lock, absl::ToChronoNanoseconds(duration), [this] {
    return stop.load();
  });
  return !stop;
}

bool Cluster::Impl::Adopt(size_t index, ControlClient* client) {
  const std::lock_guard<std::mutex> lock(mu);
  clients[index] = client;
  return !stop;
}

void Cluster::Impl::Enter(size_t index, Phase phase) {
  const std::lock_guard<std::mutex> lock(mu);
  WorkerState& state = states[index];
  if (phase == Phase::kReady) {
    state.error = absl::OkStatus();
    if (state.phase != Phase::kReady) {
      log::Info(absl::StrCat("worker ", Peer(index), " is ready"));
    }
  }
  state.phase = phase;
  Show(index);
}

void Cluster::Impl::Failed(size_t index,
                           Phase phase,
                           const absl::Status& error) {
  const std::lock_guard<std::mutex> lock(mu);
  WorkerState& state = states[index];
  // A worker that is not there yet would fill the log.
  if (state.error.code() != error.code() && !stop) {
    log::Warning(absl::StrCat(
        "worker ", state.name, ": ", std::string(error.message())));
  }
  state.phase = phase;
  state.error = error;
  Show(index);
}

void Cluster::Impl::Keep(size_t index) {
  const v1::Worker& worker = parts.config.workers(static_cast<int>(index));
  absl::Duration backoff = kBackoffMin;
  while (!stop) {
    // A new channel each time: gRPC's own backoff would outlast ours.
    ControlClient client(
        Peer(index),
        transport::Dial(worker.address(), keys, transport::Traffic::kControl),
        parts.clock);
    if (!Adopt(index, &client)) return;
    absl::Status status = BringUp(index, &client);
    if (status.ok()) {
      backoff = kBackoffMin;
      status = Watch(index, &client);
    }
    Adopt(index, nullptr);
    grpc.Disconnect(static_cast<WorkerId>(index), status);
    Failed(index, Phase::kConnect, status);
    if (!Sleep(backoff)) return;
    backoff = std::min(backoff * 2, kBackoffMax);
  }
}

absl::Status Cluster::Impl::BringUp(size_t index, ControlClient* client) {
  const v1::Worker& worker = parts.config.workers(static_cast<int>(index));
  ASSIGN_OR_RETURN(const v1::RegisterReply reply,
                   client->Register(Greeting(worker, generation), connect));
  RETURN_IF_ERROR(CheckGreeting(parts.config, Peer(index), reply));
  // Two coordinators that take a worker from each other would never end.
  ASSIGN_OR_RETURN(const v1::HealthReply before,
                   client->Health(generation, health));
  if (before.generation() > generation) {
    return ServesAnother(index, before.generation());
  }
  {
    const std::lock_guard<std::mutex> lock(mu);
    WorkerState& state = states[index];
    Apply(reply, &state);
    state.bytes_done = state.bytes_total = 0;
    state.load_began = parts.clock->Now();
  }
  Enter(index, Phase::kAssign);
  RETURN_IF_ERROR(Load(index, client));
  Enter(index, Phase::kExchange);
  RETURN_IF_ERROR(OpenExchange(index));
  RETURN_IF_ERROR(CheckHealth(index, client));
  Enter(index, Phase::kReady);
  return absl::OkStatus();
}

absl::Status Cluster::Impl::Load(size_t index, ControlClient* client) {
  const v1::Worker& worker = parts.config.workers(static_cast<int>(index));
  v1::AssignRequest request = MakeAssign(
      parts.config, parts.placement, parts.config_sha256, index, generation);
  RETURN_IF_ERROR(parts.supply->Describe(&request));
  const auto session = parts.supply->Open(
      request,
      Peer(index),
      transport::Dial(worker.address(), keys, transport::Traffic::kBulk),
      load_progress);
  const auto progress = [&](const v1::LoadProgress& news) {
    session->Add(news);
    const std::lock_guard<std::mutex> lock(mu);
    Apply(news, parts.clock->Now(), &states[index]);
    Show(index);
  };
  RETURN_IF_ERROR(client->Assign(request, load_progress, stop, progress));
  const std::lock_guard<std::mutex> lock(mu);
  if (states[index].bytes_total > 0) {
    log::Info(
        absl::StrCat("worker ", Peer(index), " ", LoadedText(states[index])));
  }
  return absl::OkStatus();
}

absl::Status Cluster::Impl::OpenExchange(size_t index) {
  const v1::Worker& worker = parts.config.workers(static_cast<int>(index));
  const auto id = static_cast<WorkerId>(index);
  using transport::Traffic;
  grpc.Connect(
      id,
      {.name = Peer(index),
       .exchange = transport::Dial(worker.address(), keys, Traffic::kExchange),
       .bulk = transport::Dial(worker.address(), keys, Traffic::kBulk)});
  const absl::Time deadline = parts.clock->Now() + connect;
  while (true) {
    grpc.Pump();
    const absl::Status status = grpc.LinkStatus(id);
    if (status.ok() || grpc.IsBroken(id)) return status;
    if (parts.clock->Now() >= deadline) {
      return absl::DeadlineExceededError(
          absl::StrCat("open exchange: ",
                       Peer(index),
                       ": streams not accepted within ",
                       absl::FormatDuration(connect)));
    }
    if (!Sleep(kOpenInterval)) return absl::CancelledError("stopping");
  }
}

absl::Status Cluster::Impl::CheckHealth(size_t index, ControlClient* client) {
  ASSIGN_OR_RETURN(const v1::HealthReply reply,
                   client->Health(generation, health));
  {
    const std::lock_guard<std::mutex> lock(mu);
    WorkerState& state = states[index];
    Apply(reply, &state);
    Show(index);
  }
  if (reply.ready() && reply.generation() == generation) {
    return absl::OkStatus();
  }
  return reply.generation() == 0
             ? absl::FailedPreconditionError(
                   absl::StrCat("health: ", Peer(index), ": holds no experts"))
             : ServesAnother(index, reply.generation());
}

absl::Status Cluster::Impl::ServesAnother(size_t index, uint64_t other) const {
  return absl::FailedPreconditionError(
      absl::StrCat("health: ",
                   Peer(index),
                   ": serves the coordinator of generation ",
                   other,
                   ", this one is ",
                   generation,
                   "; a worker serves one coordinator, the newest"));
}

absl::Status Cluster::Impl::Watch(size_t index, ControlClient* client) {
  const auto id = static_cast<WorkerId>(index);
  absl::Time next_health = parts.clock->Now() + kHealthInterval;
  while (Sleep(kLinkInterval)) {
    grpc.Pump();
    RETURN_IF_ERROR(grpc.LinkStatus(id));
    if (parts.clock->Now() < next_health) continue;
    const absl::Status status = CheckHealth(index, client);
    if (status.code() == absl::StatusCode::kDeadlineExceeded) {
      // Stopped or overloaded: it keeps its experts and its link, and is ready
      // again as soon as it answers.
      Failed(
          index,
          Phase::kSilent,
          absl::UnavailableError(absl::StrCat("health: ",
                                              Peer(index),
                                              ": no answer within ",
                                              absl::FormatDuration(health))));
    } else if (!status.ok()) {
      return status;
    } else {
      Enter(index, Phase::kReady);
    }
    next_health = parts.clock->Now() + kHealthInterval;
  }
  return absl::CancelledError("the coordinator is stopping");
}

Cluster::Cluster(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Cluster::~Cluster() {
  {
    const std::lock_guard<std::mutex> lock(impl_->mu);
    impl_->stop = true;
    for (ControlClient* client : impl_->clients) {
      if (client != nullptr) client->Cancel();
    }
  }
  impl_->changed.notify_all();
  for (std::thread& keeper : impl_->keepers) keeper.join();
}

absl::StatusOr<std::unique_ptr<Cluster>> Cluster::Start(ClusterParts parts) {
  CONCLAVE_CHECK(parts.clock != nullptr && parts.supply != nullptr);
  ASSIGN_OR_RETURN(transport::TlsKeys keys,
                   transport::ReadTls(parts.config.tls()));
  const GrpcTransport::Options options = {
      .spin_us = config::SpinUs(
          parts.config, parts.config.coordinator().spin_us(), AvailableCores()),
      .clock = parts.clock};
  auto impl =
      std::make_unique<Impl>(std::move(parts), std::move(keys), options);
  const v1::Deadlines& deadlines = impl->parts.config.deadlines();
  impl->connect = Seconds(deadlines.connect_s(), 5);
  impl->load_progress = Seconds(deadlines.load_progress_s(), 30);
  impl->health = std::min(impl->connect, Seconds(deadlines.exchange_s(), 5));
  for (const v1::Worker& worker : impl->parts.config.workers()) {
    WorkerState& state = impl->states.emplace_back();
    state.name = worker.name();
    state.address = worker.address();
    if (impl->parts.metrics == nullptr) continue;
    impl->shown.emplace_back(impl->parts.metrics, state.name).Set(state);
  }
  impl->clients.resize(impl->states.size());
  for (size_t i = 0; i < impl->states.size(); ++i) {
    impl->keepers.emplace_back([raw = impl.get(), i] { raw->Keep(i); });
  }
  return std::unique_ptr<Cluster>(new Cluster(std::move(impl)));
}

transport::Transport* Cluster::transport() { return &impl_->grpc; }

uint64_t Cluster::generation() const { return impl_->generation; }

absl::Status Cluster::Ready() const {
  std::vector<std::string> missing;
  for (const WorkerState& state : Workers()) {
    if (state.phase == Phase::kReady) continue;
    missing.push_back(absl::StrCat("worker ",
                                   state.name,
                                   " (",
                                   state.address,
                                   ") is not ready, phase ",
                                   std::string(Name(state.phase)),
                                   std::string(Before(state)),
                                   std::string(state.error.message())));
  }
  if (missing.empty()) return absl::OkStatus();
  return absl::UnavailableError(absl::StrJoin(missing, "; "));
}

absl::Status Cluster::WaitReady(
    absl::Time deadline,
    absl::FunctionRef<void(const std::vector<WorkerState>&)> tick) {
  while (true) {
    tick(Workers());
    const absl::Status ready = Ready();
    const absl::Duration left = deadline - impl_->parts.clock->Now();
    if (ready.ok() || left <= absl::ZeroDuration()) return ready;
    impl_->Sleep(std::min(left, absl::Milliseconds(100)));
  }
}

WorkerState Cluster::Look(WorkerId worker) const {
  const std::lock_guard<std::mutex> lock(impl_->mu);
  return impl_->states[static_cast<size_t>(Index(worker))];
}

absl::Status Cluster::Join(WorkerId worker, v1::JoinRequest request) const {
  const auto index = static_cast<size_t>(Index(worker));
  const std::string& address =
      impl_->parts.config.workers(static_cast<int>(index)).address();
  // A channel of its own: the worker's thread uses the other one.
  ControlClient client(
      impl_->Peer(index),
      transport::Dial(address, impl_->keys, transport::Traffic::kControl),
      impl_->parts.clock);
  request.set_generation(impl_->generation);
  return client.Join(request, 2 * absl::Seconds(request.join_s()));
}

std::vector<WorkerState> Cluster::Workers() const {
  const std::lock_guard<std::mutex> lock(impl_->mu);
  return impl_->states;
}

}  // namespace conclave::cluster
