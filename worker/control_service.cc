// SPDX-License-Identifier: Apache-2.0
#include "worker/control_service.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/memory.h"
#include "common/version.h"
#include "kernels/context.h"
#include "worker/measure.h"

namespace conclave::worker {
namespace {

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
  if (measurer_.joinable()) measurer_.join();
}

void ControlService::Handle(const std::string& method,
                            std::string request,
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
  if (method == "/conclave.v1.WorkerDelivery/Deliver") {
    return options_.store->inbox()->Deliver(std::move(request),
                                            std::move(respond));
  }
  if (method == "/conclave.v1.WorkerControl/Measure") {
    v1::MeasureRequest message;
    if (!message.ParseFromString(request)) {
      return respond.finish(BadRequest(method));
    }
    return StartMeasure(std::move(message), std::move(respond));
  }
  if (method == "/conclave.v1.WorkerControl/Join") {
    v1::JoinRequest message;
    if (!message.ParseFromString(request)) {
      return respond.finish(BadRequest(method));
    }
    return options_.link->Join(std::move(message), std::move(respond));
  }
  options_.peers->Handle(method, std::move(request), std::move(respond));
}

void ControlService::StartMeasure(v1::MeasureRequest request,
                                  transport::Responder respond) {
  if (measuring_.exchange(true)) {
    return respond.finish(absl::ResourceExhaustedError(
        "measure: another measurement runs on this worker; try again"));
  }
  if (measurer_.joinable()) measurer_.join();
  measurer_ = std::thread(
      [this, request = std::move(request), respond = std::move(respond)] {
        const auto reply = Measure(request,
                                   {.threads = options_.threads,
                                    .spin_us = options_.spin_us,
                                    .device = options_.device,
                                    .clock = options_.clock});
        measuring_ = false;
        if (reply.ok()) respond.send(reply->SerializeAsString());
        respond.finish(reply.status());
      });
}

void ControlService::Load(const v1::AssignRequest& request,
                          const transport::Responder& respond) {
  v1::LoadProgress last;
  absl::Time sent = absl::InfinitePast();
  const auto report = [&](const v1::LoadProgress& progress) {
    if (options_.progress && progress.bytes_total() > 0) {
      options_.progress(progress.bytes_done(), progress.bytes_total());
    }
    last = progress;
    const absl::Time now = options_.clock->Now();
    if (last.wants().empty() && now - sent < kProgressInterval) return;
    sent = now;
    respond.send(last.SerializeAsString());
    last.clear_wants();
  };
  // What a link holds of the experts before goes with it.
  options_.link->Leave();
  const absl::Status status = options_.store->Assign(request, report);
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
  const bool works =
      options_.device == nullptr || options_.device->Health().ok();
  reply.set_ready(works && assignment != nullptr &&
                  assignment->generation == request.generation());
  reply.set_frames_served(options_.runner->frames_served());
  reply.set_resident_bytes(options_.store->resident_bytes());
  const MemoryState memory = Memory();
  reply.set_memory_free_bytes(memory.free_bytes);
  reply.set_memory_total_bytes(memory.total_bytes);
  reply.set_unix_nanos(absl::ToUnixNanos(options_.clock->Now()));
  options_.link->Describe(&reply);
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
  reply->set_backend(options_.device == nullptr ? "cpu" : "cuda");
  reply->set_simd(options_.device == nullptr ? kernels::ActiveSimdTarget()
                                             : options_.device->name());
  reply->set_threads(options_.threads);
  const MemoryState memory = Memory();
  reply->set_memory_total_bytes(memory.total_bytes);
  reply->set_memory_free_bytes(memory.free_bytes);
  return absl::OkStatus();
}

MemoryState ControlService::Memory() const {
  return options_.device == nullptr ? MemoryNow() : options_.device->memory();
}

bool ControlService::loading() const { return loads_.load() > 0; }

}  // namespace conclave::worker
