// SPDX-License-Identifier: Apache-2.0
#include "worker/cli/worker_flags.h"

#include <string>

#include "absl/flags/flag.h"
#include "absl/strings/str_cat.h"
#include "common/config/cluster_config.h"
#include "common/delivery/slice_cache.h"
#include "common/log.h"
#include "common/status_macros.h"
#include "common/thread_pool.h"
#include "kernels/device_choice.h"

ABSL_FLAG(std::string, config, "", "cluster configuration");
ABSL_FLAG(std::string, name, "", "which worker of the configuration this is");
ABSL_FLAG(std::string, listen, "", "HOST:PORT to listen on, without --config");
ABSL_FLAG(std::string, model, "", "checkpoint folder on this machine");
ABSL_FLAG(std::string, cache, "", "folder of fetched slices, \"off\" = none");
ABSL_FLAG(double, cache_gb, 0, "what the cache may keep, 0 = everything");
ABSL_FLAG(std::string, backend, "auto", "auto, cuda, cpu or cpu-plain");
ABSL_FLAG(int32_t, gpu, 0, "which GPU");
ABSL_FLAG(int32_t, threads, 0, "compute threads, 0 = one per core");
ABSL_FLAG(int32_t, spin_us, 0, "poll this long before blocking, -1 = never");
ABSL_FLAG(std::string, simd, "", "pin one SIMD target");
ABSL_FLAG(std::string, log_level, "info", "debug, info, warning, error, off");

namespace conclave::worker {
namespace {

// Bytes of the configuration's gigabytes.
uint64_t Bytes(double gb) { return static_cast<uint64_t>(gb * 1e9); }

// The configuration and the worker of it that the flags mean.
absl::StatusOr<v1::ClusterConfig> Configuration(v1::Worker* worker) {
  const std::string file = absl::GetFlag(FLAGS_config);
  const std::string listen = absl::GetFlag(FLAGS_listen);
  if (file.empty() == listen.empty()) {
    return absl::InvalidArgumentError(
        "give either --config FILE --name W or --listen HOST:PORT");
  }
  if (file.empty()) {
    worker->set_name(absl::GetFlag(FLAGS_name));
    worker->set_address(listen);
    const v1::ClusterConfig config = config::DefaultClusterConfig();
    worker->set_spin_us(config.coordinator().spin_us());
    return config;
  }
  if (absl::GetFlag(FLAGS_name).empty()) {
    return absl::InvalidArgumentError(
        "--config needs --name, the worker of the file that this is");
  }
  ASSIGN_OR_RETURN(const v1::ClusterConfig config,
                   config::LoadClusterConfig(file));
  ASSIGN_OR_RETURN(*worker,
                   config::FindWorker(config, absl::GetFlag(FLAGS_name)));
  return config;
}

}  // namespace

absl::StatusOr<WorkerOptions> OptionsFromFlags() {
  if (!log::SetLevel(absl::GetFlag(FLAGS_log_level))) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--log_level ", absl::GetFlag(FLAGS_log_level), " is unknown"));
  }
  v1::Worker worker;
  ASSIGN_OR_RETURN(const v1::ClusterConfig config, Configuration(&worker));
  RETURN_IF_ERROR(config::ParseHostPort(worker.address()).status());
  RETURN_IF_ERROR(config::CheckWorkerBind(config, worker));
  RETURN_IF_ERROR(kernels::PinSimdTarget(absl::GetFlag(FLAGS_simd)));
  if (!absl::GetFlag(FLAGS_model).empty()) {
    worker.set_model(absl::GetFlag(FLAGS_model));
  }
  std::string cache = absl::GetFlag(FLAGS_cache);
  if (cache.empty()) cache = worker.cache();
  if (cache.empty()) cache = config.delivery().cache();
  double cache_gb = absl::GetFlag(FLAGS_cache_gb);
  if (cache_gb == 0) cache_gb = config.delivery().cache_gb();
  if (!(cache_gb >= 0)) {
    return absl::InvalidArgumentError("--cache_gb must not be negative");
  }
  if (absl::GetFlag(FLAGS_threads) > 0) {
    worker.set_threads(absl::GetFlag(FLAGS_threads));
  }
  int32_t spin_us = absl::GetFlag(FLAGS_spin_us);
  if (spin_us == 0) spin_us = worker.spin_us();
  const int32_t gpu = absl::GetFlag(FLAGS_gpu);
  ASSIGN_OR_RETURN(
      const kernels::BackendChoice choice,
      kernels::ChooseBackend({.backend = absl::GetFlag(FLAGS_backend),
                              .gpu = gpu,
                              .backend_name = "--backend",
                              .gpu_name = "--gpu:"},
                             kernels::ListCudaDevices));
  if (!choice.line.empty()) log::Info(choice.line);
  return WorkerOptions{
      .name = worker.name(),
      .address = worker.address(),
      .model = worker.model(),
      .hint = config.model(),
      .threads = worker.threads(),
      .spin_us = config::SpinUs(config, spin_us, AvailableCores()),
      .backend = choice.backend,
      .gpu = gpu,
      .gpu_name = choice.gpu,
      .tls = config.tls(),
      .progress = nullptr,
      .cache = delivery::CacheFolder(cache),
      .cache_bytes = Bytes(cache_gb)};
}

}  // namespace conclave::worker
