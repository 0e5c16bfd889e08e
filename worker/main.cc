// SPDX-License-Identifier: Apache-2.0
#include <pthread.h>
#include <signal.h>
#include <time.h>

#include <cstdio>
#include <cstdlib>
#include <string>
#include <string_view>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "common/config/cluster_config.h"
#include "common/log.h"
#include "common/version.h"
#include "worker/cli/load_display.h"
#include "worker/cli/worker_flags.h"
#include "worker/worker.h"

// conclave-worker: holds experts and answers one coordinator at a time.
int main(int argc, char** argv) {
  using namespace conclave;
  for (int i = 1; i < argc; ++i) {
    const std::string_view arg = argv[i];
    if (arg == "--help" || arg == "-h" || arg == "--version") {
      const std::string version = "conclave-worker " + std::string(Version());
      std::puts(arg == "--version" ? version.c_str() : worker::kUsage);
      return EXIT_SUCCESS;
    }
  }
  if (absl::ParseCommandLine(argc, argv).size() > 1) {
    std::fprintf(stderr, "conclave-worker takes flags only; see --help\n");
    return EXIT_FAILURE;
  }
  auto options = worker::OptionsFromFlags();
  if (!options.ok()) {
    log::Error(std::string(options.status().message()));
    return EXIT_FAILURE;
  }
  options->progress = worker::LoadDisplay();
  // All threads inherit the mask, so that only the loop below sees these.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  const std::string address = options->address;
  auto running = worker::Worker::Start(*std::move(options));
  if (!running.ok()) {
    log::Error(std::string(running.status().message()));
    return EXIT_FAILURE;
  }
  log::Info("listening on " + address + ", waiting for a coordinator");
  // Until a signal to stop comes, or no frame can ever be computed again.
  constexpr timespec kTick{.tv_sec = 1, .tv_nsec = 0};
  absl::Status health;
  while (health.ok() && sigtimedwait(&signals, nullptr, &kTick) <= 0) {
    health = (*running)->Health();
  }
  if (!health.ok()) log::Error(std::string(health.message()));
  log::Info("stopping");
  running->reset();
  return health.ok() ? EXIT_SUCCESS : EXIT_FAILURE;
}
