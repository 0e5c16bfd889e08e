// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cli/serve.h"

#include <pthread.h>
#include <signal.h>

#include <filesystem>
#include <iostream>
#include <utility>

#include "absl/flags/declare.h"
#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/config/cluster_config.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/version.h"
#include "coordinator/cli/backend_choice.h"
#include "coordinator/cli/deployment.h"
#include "coordinator/cli/flags.h"
#include "coordinator/cli/group_flags.h"
#include "coordinator/cli/table.h"
#include "coordinator/engine.h"
#include "coordinator/http/router.h"
#include "coordinator/http/server.h"

ABSL_FLAG(std::string, listen, "", "HOST:PORT of the HTTP port");
ABSL_FLAG(std::string,
          backend,
          "",
          "auto (a GPU where there is one), cuda, cpu, or cpu-plain (the slow "
          "twin); empty: as the configuration says, auto if nothing");
ABSL_FLAG(int32_t,
          gpu,
          -1,
          "which GPU; -1: as the configuration says, 0 if nothing");
ABSL_FLAG(int32_t, threads, 0, "compute threads; 0: one per core");
ABSL_FLAG(int32_t, spin_us, 0, "poll so long before blocking; -1: never");
ABSL_FLAG(int32_t, max_sequences, 0, "sequences that run at once");
ABSL_FLAG(int32_t, max_queue, 0, "requests that wait before 429");
ABSL_FLAG(int32_t, max_context, 0, "tokens of prompt and reply");
ABSL_FLAG(int32_t, step_tokens, 0, "token budget of one step");
ABSL_FLAG(int64_t, kv_tokens, 0, "size of the KV cache in tokens");
ABSL_FLAG(std::string, served_model_name, "", "name that clients use");
ABSL_FLAG(bool, soft_switches, true, "obey /think and /nothink in messages");

ABSL_DECLARE_FLAG(std::string, links);

namespace conclave::cli {
namespace {

constexpr absl::Duration kTick = absl::Milliseconds(200);

absl::Status Override(v1::ClusterConfig& config) {
  if (const std::string v = absl::GetFlag(FLAGS_links); !v.empty()) {
    config.set_links(v);
  }
  v1::Coordinator& c = *config.mutable_coordinator();
  v1::Limits& l = *config.mutable_limits();
  const auto text = [](const absl::Flag<std::string>& flag, auto set) {
    if (const std::string v = absl::GetFlag(flag); !v.empty()) set(v);
  };
  text(FLAGS_listen, [&](const auto& v) { c.set_listen(v); });
  text(FLAGS_api_key, [&](const auto& v) { c.set_api_key(v); });
  text(FLAGS_served_model_name,
       [&](const auto& v) { c.set_served_model_name(v); });
  text(FLAGS_backend, [&](const auto& v) { c.set_backend(v); });
  text(FLAGS_kv_dtype, [&](const auto& v) { c.set_kv_dtype(v); });
  text(FLAGS_gdn_state, [&](const auto& v) { c.set_gdn_state(v); });
  if (const int32_t v = absl::GetFlag(FLAGS_gpu); v >= 0) c.set_gpu(v);
  const auto number = [](const auto& flag, auto set) {
    if (const auto v = absl::GetFlag(flag); v != 0) set(v);
  };
  number(FLAGS_threads, [&](auto v) { c.set_threads(v); });
  number(FLAGS_spin_us, [&](auto v) { c.set_spin_us(v); });
  number(FLAGS_max_sequences, [&](auto v) { l.set_max_sequences(v); });
  number(FLAGS_max_queue, [&](auto v) { l.set_max_queue(v); });
  number(FLAGS_max_context, [&](auto v) { l.set_max_context(v); });
  number(FLAGS_step_tokens, [&](auto v) { l.set_step_tokens(v); });
  number(FLAGS_kv_tokens, [&](auto v) { l.set_kv_tokens(v); });
  if (!absl::GetFlag(FLAGS_soft_switches)) c.set_soft_switches_off(true);
  return ApplyGroupFlags(&c);
}

std::string ModelName(const v1::ClusterConfig& config) {
  const std::string& name = config.coordinator().served_model_name();
  if (!name.empty()) return name;
  std::filesystem::path path(config.model());
  if (!path.has_filename()) path = path.parent_path();
  return path.filename().string();
}

// All threads inherit the mask, so that only SignalWithin sees these.
sigset_t BlockSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return signals;
}

// True when a signal to stop came within the time.
bool SignalWithin(const sigset_t& signals, absl::Duration time) {
  const timespec wait = absl::ToTimespec(time);
  return sigtimedwait(&signals, nullptr, &wait) > 0;
}

struct Service {
  Metrics metrics;
  std::unique_ptr<Deployment> deployment;
  std::unique_ptr<Engine> engine;
  std::unique_ptr<http::Server> server;
};

absl::Status StartEngine(const v1::ClusterConfig& config,
                         kernels::Backend backend,
                         Service& service) {
  Deployment::Options options;
  options.backend = backend;
  options.clock = RealClock();
  options.metrics = &service.metrics;
  options.with_engine = true;
  ASSIGN_OR_RETURN(service.deployment, Deployment::Create(config, options));
  Deployment* deployment = service.deployment.get();
  ASSIGN_OR_RETURN(std::unique_ptr<model::Decoder> decoder,
                   deployment->MakeDecoder());
  ASSIGN_OR_RETURN(
      service.engine,
      Engine::Create(
          {.checkpoint = &deployment->checkpoint(),
           .decoder = std::move(decoder),
           .caches = deployment->caches(),
           .clock = RealClock(),
           .metrics = &service.metrics,
           .limits = deployment->limits(),
           .soft_switches = !config.coordinator().soft_switches_off(),
           .ready = [deployment] { return deployment->Ready(); }}));
  return absl::OkStatus();
}

absl::Status StartServer(const v1::ClusterConfig& config, Service& service) {
  ASSIGN_OR_RETURN(const config::HostPort listen,
                   config::ParseHostPort(config.coordinator().listen()));
  Engine* engine = service.engine.get();
  http::EngineCalls calls{
      .next_id = [engine] { return engine->NextId(); },
      .submit =
          [engine](GenerateRequest request, TokenSink sink) {
            return engine->Submit(std::move(request), std::move(sink));
          },
      .cancel = [engine](RequestId id) { engine->Cancel(id); },
      .health = [engine] { return engine->Health(); },
      .info = [engine] { return engine->info(); }};
  http::ServerOptions options;
  options.host = listen.host;
  options.port = listen.port;
  if (config.coordinator().https()) {
    options.tls_cert = config.tls().cert();
    options.tls_key = config.tls().key();
  }
  options.body_bytes_max = config.limits().max_body_bytes();
  options.idle = absl::Seconds(config.deadlines().http_idle_s());
  ASSIGN_OR_RETURN(
      service.server,
      http::Server::Start(
          options,
          http::MakeRouter({.model = ModelName(config),
                            .api_key = config.coordinator().api_key(),
                            .clock = RealClock(),
                            .metrics = &service.metrics},
                           std::move(calls))));
  return absl::OkStatus();
}

void PrintReady(const v1::ClusterConfig& config, const Service& service) {
  const Engine::Info info = service.engine->info();
  const checkpoint::ModelConfig& model =
      service.deployment->checkpoint().config();
  std::cerr << "conclave " << Version() << ": " << ModelName(config) << ", "
            << model.num_hidden_layers << " layers, " << model.num_experts
            << " experts, context " << info.max_context << ", "
            << service.deployment->ComputesOn() << "\n";
  std::vector<std::vector<std::string>> rows = {
      {"worker", "address", "version", "SIMD", "threads", "MiB held"}};
  for (const cluster::WorkerState& w : service.deployment->Workers()) {
    rows.push_back(
        {w.name,
         w.address,
         w.version,
         w.simd,
         absl::StrCat(w.threads),
         Fixed(static_cast<double>(w.resident_bytes) / (1 << 20), 1)});
  }
  std::cerr << service.deployment->Describe();
  if (rows.size() > 1) std::cerr << FormatTable(rows);
  std::cerr << "ready: " << (config.coordinator().https() ? "https" : "http")
            << "://" << config.coordinator().listen() << "/v1" << std::endl;
}

// Logs every change of the cluster's state; returns at a signal to stop, or
// with the reason why no step can ever run again.
absl::Status Watch(const v1::ClusterConfig& config,
                   Service& service,
                   const sigset_t& signals) {
  bool announced = false;
  std::string last;
  do {
    const absl::Status ready =
        announced ? service.deployment->Ready()
                  : service.deployment->WaitReady(RealClock()->Now() + kTick);
    if (ready.ok() && !announced) {
      announced = true;
      PrintReady(config, service);
    } else if (ready.message() != last) {
      if (ready.ok()) {
        log::Info("all workers are back");
      } else {
        log::Warning(std::string(ready.message()));
      }
    }
    last = std::string(ready.message());
    const absl::Status lost = service.engine->Lost();
    if (!lost.ok()) {
      log::Error(std::string(lost.message()));
      return lost;
    }
  } while (!SignalWithin(signals, announced ? kTick : absl::ZeroDuration()));
  return absl::OkStatus();
}

absl::Status Serve() {
  const sigset_t signals = BlockSignals();
  ASSIGN_OR_RETURN(v1::ClusterConfig config, ConfigFromFlags());
  RETURN_IF_ERROR(Override(config));
  RETURN_IF_ERROR(config::Validate(config));
  RETURN_IF_ERROR(config::CheckHttpBind(config));
  RETURN_IF_ERROR(UseProcessFlags(config.coordinator().simd()));
  ASSIGN_OR_RETURN(const BackendChoice choice,
                   ChooseBackend(config, kernels::ListCudaDevices));
  if (!choice.line.empty()) log::Info(choice.line);
  Service service;
  RETURN_IF_ERROR(StartEngine(config, choice.backend, service));
  RETURN_IF_ERROR(StartServer(config, service));
  const absl::Status lost = Watch(config, service, signals);
  log::Info("stopping");
  service.server->Stop(absl::Seconds(config.deadlines().shutdown_s()));
  service.engine.reset();
  return lost;
}

int Run(const std::vector<std::string>& arguments) {
  absl::Status status;
  if (!arguments.empty()) {
    status = absl::InvalidArgumentError(
        absl::StrCat("unexpected argument \"", arguments[0], "\""));
  } else {
    status = Serve();
  }
  return status.ok() ? 0 : Fail("serve", status);
}

}  // namespace

Command ServeCommand() {
  return {.name = "serve",
          .summary = "Serve a model over HTTP.",
          .usage = "serve (--config FILE | --model DIR) [--flag=value ...]",
          .examples =
              "  conclave serve --model deploy/models/qwen3.5-moe-tiny\n"
              "  conclave serve --config deploy/config/two-workers.yaml\n"
              "  conclave serve --model DIR --listen 127.0.0.1:9000 "
              "--max-sequences 32\n",
          .flags = {"config",        "model",     "links",
                    "listen",        "api_key",   "served_model_name",
                    "backend",       "gpu",       "kv_dtype",
                    "gpus",          "form",      "group_exchange",
                    "group_shares",  "gdn_state", "simd",
                    "activations",   "threads",   "spin_us",
                    "max_sequences", "max_queue", "max_context",
                    "step_tokens",   "kv_tokens", "soft_switches",
                    "log_level"},
          .run = Run};
}

}  // namespace conclave::cli
