// SPDX-License-Identifier: Apache-2.0
#include "worker/control_service.h"

#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/version.h"
#include "kernels/context.h"

namespace conclave::worker {
namespace {

uint64_t PageBytes(int name) {
  const long pages = sysconf(name), size = sysconf(_SC_PAGESIZE);
  return pages < 0 || size < 0
             ? 0
             : static_cast<uint64_t>(pages) * static_cast<uint64_t>(size);
}

// Progress goes out at most so often, and at the end.
constexpr absl::Duration kProgressInterval = absl::Milliseconds(50);

absl::Status BadRequest(const std::string& method) {
  return absl::InvalidArgumentError(
      absl::StrCat(method, ": the request cannot be parsed"));
}

}  // namespace

ControlService::ControlService(Options options)
    : options_(std::move(options)) {}

ControlService::~ControlService() {
  for (std::thread& loader : loaders_) loader.join();
}

void ControlService::Handle(const std::string& method,
                            const std::string& request,
                            transport::Responder respond) {
  if (method == "/conclave.v1.WorkerControl/Register") {
    v1::RegisterRequest message;
    v1::RegisterReply reply;
    if (!message.ParseFromString(request)) {
      return respond.finish(BadRequest(method));
    }
    const absl::Status status = Greet(message, &reply);
    if (status.ok()) respond.send(reply.SerializeAsString());
    return respond.finish(status);
  }
  if (method == "/conclave.v1.WorkerControl/Health") {
    v1::HealthRequest message;
    if (!message.ParseFromString(request)) {
      return respond.finish(BadRequest(method));
    }
    respond.send(Health(message).SerializeAsString());
    return respond.finish(absl::OkStatus());
  }
  if (method == "/conclave.v1.WorkerControl/Assign") {
    v1::AssignRequest message;
    if (!message.ParseFromString(request)) {
      return respond.finish(BadRequest(method));
    }
    if (!loading()) {
      for (std::thread& loader : loaders_) loader.join();
      loaders_.clear();
    }
    loads_.fetch_add(1);
    loaders_.emplace_back(
        [this, message = std::move(message), respond = std::move(respond)] {
          Load(message, respond);
          loads_.fetch_sub(1);
        });
    return;
  }
  respond.finish(
      absl::UnimplementedError(absl::StrCat("there is no method ", method)));
}

void ControlService::Load(const v1::AssignRequest& request,
                          const transport::Responder& respond) {
  v1::LoadProgress last;
  absl::Time sent = absl::InfinitePast();
  const auto progress = [&](uint64_t done, uint64_t total) {
    if (options_.progress) options_.progress(done, total);
    last.set_bytes_done(done);
    last.set_bytes_total(total);
    const absl::Time now = options_.clock->Now();
    if (now - sent < kProgressInterval) return;
    sent = now;
    respond.send(last.SerializeAsString());
  };
  const absl::Status status = options_.store->Assign(request, progress);
  if (status.ok()) {
    log::Info(absl::StrCat("holding shards: ",
                           request.shards_size(),
                           ", MiB of experts: ",
                           options_.store->resident_bytes() >> 20));
    last.set_done(true);
    respond.send(last.SerializeAsString());
  } else {
    log::Error(std::string(status.message()));
  }
  respond.finish(status);
}

v1::HealthReply ControlService::Health(const v1::HealthRequest& request) const {
  v1::HealthReply reply;
  const auto assignment = options_.store->current();
  if (assignment != nullptr) reply.set_generation(assignment->generation);
  reply.set_ready(assignment != nullptr &&
                  assignment->generation == request.generation());
  reply.set_frames_served(options_.runner->frames_served());
  reply.set_resident_bytes(options_.store->resident_bytes());
  reply.set_memory_free_bytes(PageBytes(_SC_AVPHYS_PAGES));
  return reply;
}

absl::Status ControlService::Greet(const v1::RegisterRequest& request,
                                   v1::RegisterReply* reply) const {
  if (request.protocol_version() != kProtocolVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("register: the coordinator (",
                     request.coordinator_version(),
                     ") speaks protocol ",
                     request.protocol_version(),
                     ", worker ",
                     options_.name,
                     " speaks ",
                     kProtocolVersion,
                     "; run the same version on both sides"));
  }
  if (!options_.name.empty() && request.worker_name() != options_.name) {
    return absl::FailedPreconditionError(
        absl::StrCat("register: this is worker ",
                     options_.name,
                     ", the coordinator looks for ",
                     request.worker_name(),
                     "; check the addresses in the configuration"));
  }
  reply->set_protocol_version(kProtocolVersion);
  reply->set_worker_version(std::string(Version()));
  reply->set_worker_name(request.worker_name());
  reply->set_backend("cpu");
  reply->set_simd(kernels::ActiveSimdTarget());
  reply->set_threads(options_.threads);
  reply->set_memory_total_bytes(PageBytes(_SC_PHYS_PAGES));
  reply->set_memory_free_bytes(PageBytes(_SC_AVPHYS_PAGES));
  return absl::OkStatus();
}

bool ControlService::loading() const { return loads_.load() > 0; }

}  // namespace conclave::worker
