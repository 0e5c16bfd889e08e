// SPDX-License-Identifier: Apache-2.0
#include "worker/worker.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/thread_pool.h"
#include "common/transport/channel.h"
#include "common/transport/grpc_exchange_server.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "worker/control_service.h"
#include "worker/expert_device.h"
#include "worker/expert_runner.h"
#include "worker/expert_store.h"
#include "worker/link_service.h"
#include "worker/peer_service.h"
#include "worker/shard_sums.h"

namespace conclave::worker {
namespace {

// Calls that are under way get so long before they are cut off.
constexpr absl::Duration kGrace = absl::Milliseconds(200);

int32_t Threads(const WorkerOptions& options) {
  return options.threads > 0 ? options.threads : AvailableCores();
}

// What stands in errors.
std::string NameOf(const WorkerOptions& options) {
  return options.name.empty() ? options.address : options.name;
}

// Null: experts stay on the CPU.
absl::StatusOr<std::unique_ptr<ExpertDevice>> OpenDevice(
    const WorkerOptions& options) {
  if (options.backend != kernels::Backend::kCuda) {
    return std::unique_ptr<ExpertDevice>();
  }
  return ExpertDevice::Create(options.gpu, options.gpu_name);
}

// Null: none. Where nobody chose the folder, one that cannot be used is no
// reason not to serve.
absl::StatusOr<std::unique_ptr<delivery::SliceCache>> OpenCache(
    const WorkerOptions& options) {
  if (options.cache.empty()) return std::unique_ptr<delivery::SliceCache>();
  auto cache = delivery::SliceCache::Open(options.cache, options.cache_bytes);
  if (!cache.ok() && options.cache == delivery::CacheFolder("")) {
    log::Warning(absl::StrCat(std::string(cache.status().message()),
                              "; fetched slices will not be kept"));
    return std::unique_ptr<delivery::SliceCache>();
  }
  return cache;
}

}  // namespace

struct Worker::Impl {
  Impl(const WorkerOptions& options,
       const transport::TlsKeys& keys,
       std::unique_ptr<delivery::SliceCache> slices,
       std::unique_ptr<ExpertDevice> gpu)
      : name(NameOf(options)),
        pool(Threads(options), options.spin_us),
        cache(std::move(slices)),
        device(std::move(gpu)),
        host(options.backend, &pool),
        store({.model = options.model,
               .hint = options.hint,
               .cache = cache.get(),
               .dial =
                   [keys](const std::string& address) {
                     return transport::Dial(
                         address, keys, transport::Traffic::kBulk);
                   },
               .device = device.get()}),
        runner(name, &store, Sums()),
        peers(options.name, &store),
        link({.name = name,
              .store = &store,
              .device = device.get(),
              .clock = RealClock()}),
        control({.name = options.name,
                 .threads = Threads(options),
                 .spin_us = options.spin_us,
                 .store = &store,
                 .runner = &runner,
                 .device = device.get(),
                 .peers = &peers,
                 .link = &link,
                 .clock = RealClock(),
                 .progress = options.progress}),
        exchange({.spin_us = options.spin_us,
                  .handler = [this](auto f) { return Answer(f); },
                  .control =
                      [this](const std::string& method,
                             std::string request,
                             transport::Responder respond) {
                        control.Handle(
                            method, std::move(request), std::move(respond));
                      }}) {}

  Buffer Answer(std::span<const std::byte> frame) {
    const auto kind = transport::PeekKind(frame);
    const bool step = kind.ok() && *kind == transport::FrameKind::kStep;
    return step ? link.Begin(frame) : runner.Handle(frame);
  }

  ShardSums* Sums() {
    if (device != nullptr) return device.get();
    return &host;
  }

  const std::string name;
  ThreadPool pool;
  std::unique_ptr<delivery::SliceCache> cache;
  std::unique_ptr<ExpertDevice> device;
  HostShardSums host;
  ExpertStore store;
  ExpertRunner runner;
  PeerService peers;
  LinkService link;
  ControlService control;
  transport::GrpcExchangeServer exchange;
  std::unique_ptr<grpc::Server> server;
  int port = 0;
};

Worker::Worker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Worker::~Worker() {
  impl_->store.Stop();
  impl_->link.Leave();
  if (impl_->server != nullptr) {
    impl_->server->Shutdown(absl::ToChronoTime(RealClock()->Now() + kGrace));
  }
  impl_->exchange.Stop();
}

absl::StatusOr<std::unique_ptr<Worker>> Worker::Start(WorkerOptions options) {
  ASSIGN_OR_RETURN(auto device, OpenDevice(options));
  return Start(std::move(options), std::move(device));
}

absl::StatusOr<std::unique_ptr<Worker>> Worker::Start(
    WorkerOptions options, std::unique_ptr<ExpertDevice> device) {
  ASSIGN_OR_RETURN(const transport::TlsKeys keys,
                   transport::ReadTls(options.tls));
  ASSIGN_OR_RETURN(auto cache, OpenCache(options));
  auto worker = std::unique_ptr<Worker>(new Worker(std::make_unique<Impl>(
      options, keys, std::move(cache), std::move(device))));
  Impl& impl = *worker->impl_;
  grpc::ServerBuilder builder;
  transport::ConfigureServer(&builder);
  builder.AddListeningPort(
      options.address, transport::ServerCredentials(keys), &impl.port);
  impl.exchange.Register(&builder);
  impl.server = builder.BuildAndStart();
  if (impl.server == nullptr || impl.port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ",
                     options.address,
                     ": the port is in use or the address is not this "
                     "machine's; choose another in the configuration"));
  }
  impl.exchange.Start();
  return worker;
}

int Worker::port() const { return impl_->port; }

absl::Status Worker::Health() const {
  if (impl_->device == nullptr) return absl::OkStatus();
  const absl::Status status = impl_->device->Health();
  if (status.ok()) return status;
  return absl::Status(
      status.code(),
      absl::StrCat("worker ", impl_->name, ": ", status.message()));
}

}  // namespace conclave::worker
