// SPDX-License-Identifier: Apache-2.0
#include "worker/worker.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/status_macros.h"
#include "common/thread_pool.h"
#include "common/transport/channel.h"
#include "common/transport/grpc_exchange_server.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "worker/control_service.h"
#include "worker/expert_runner.h"
#include "worker/expert_store.h"

namespace conclave::worker {
namespace {

// Calls that are under way get so long before they are cut off.
constexpr absl::Duration kGrace = absl::Milliseconds(200);

int32_t Threads(const WorkerOptions& options) {
  return options.threads > 0 ? options.threads : AvailableCores();
}

}  // namespace

struct Worker::Impl {
  explicit Impl(const WorkerOptions& options)
      : pool(Threads(options), options.spin_us),
        store(options.model),
        runner(options.name.empty() ? options.address : options.name,
               &store,
               options.backend,
               &pool),
        control({.name = options.name,
                 .threads = Threads(options),
                 .spin_us = options.spin_us,
                 .store = &store,
                 .runner = &runner,
                 .clock = RealClock(),
                 .progress = options.progress}),
        exchange({.spin_us = options.spin_us,
                  .handler = [this](auto f) { return runner.Handle(f); },
                  .control =
                      [this](const std::string& method,
                             const std::string& request,
                             transport::Responder respond) {
                        control.Handle(method, request, std::move(respond));
                      }}) {}

  ThreadPool pool;
  ExpertStore store;
  ExpertRunner runner;
  ControlService control;
  transport::GrpcExchangeServer exchange;
  std::unique_ptr<grpc::Server> server;
  int port = 0;
};

Worker::Worker(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Worker::~Worker() {
  if (impl_->server != nullptr) {
    impl_->server->Shutdown(absl::ToChronoTime(RealClock()->Now() + kGrace));
  }
  impl_->exchange.Stop();
}

absl::StatusOr<std::unique_ptr<Worker>> Worker::Start(WorkerOptions options) {
  ASSIGN_OR_RETURN(const transport::TlsKeys keys,
                   transport::ReadTls(options.tls));
  auto worker =
      std::unique_ptr<Worker>(new Worker(std::make_unique<Impl>(options)));
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

bool Worker::loading() const { return impl_->control.loading(); }

}  // namespace conclave::worker
