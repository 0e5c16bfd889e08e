// SPDX-License-Identifier: Apache-2.0
#include "worker/control_service.h"

#include <unistd.h>

#include <atomic>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/version.h"
#include "conclave/v1/control.grpc.pb.h"
#include "grpcpp/server_builder.h"
#include "kernels/context.h"

namespace conclave::worker {
namespace {

uint64_t PageBytes(int name) {
  const long pages = sysconf(name), size = sysconf(_SC_PAGESIZE);
  return pages < 0 || size < 0
             ? 0
             : static_cast<uint64_t>(pages) * static_cast<uint64_t>(size);
}

grpc::Status ToGrpc(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  return {static_cast<grpc::StatusCode>(status.code()),
          std::string(status.message())};
}

// One Assign call: a thread loads, gRPC writes the newest progress whenever
// the last message has gone out.
class AssignCall final : public grpc::ServerWriteReactor<v1::LoadProgress> {
 public:
  AssignCall(const v1::AssignRequest& request,
             const ControlService::Options& options,
             std::atomic<int>* loads)
      : options_(options), loads_(loads) {
    loads_->fetch_add(1);
    loader_ = std::thread([this, request] { Load(request); });
  }

  void OnWriteDone(bool /*ok*/) override {
    const std::lock_guard<std::mutex> lock(mu_);
    writing_ = false;
    Advance();
  }
  void OnDone() override {
    loader_.join();
    loads_->fetch_sub(1);
    delete this;
  }

 private:
  void Load(const v1::AssignRequest& request) {
    const absl::Status status =
        options_.store->Assign(request, [this](uint64_t done, uint64_t total) {
          if (options_.progress) options_.progress(done, total);
          const std::lock_guard<std::mutex> lock(mu_);
          next_.set_bytes_done(done);
          next_.set_bytes_total(total);
          news_ = true;
          Advance();
        });
    if (status.ok()) {
      log::Info(absl::StrCat("holding ",
                             request.shards_size(),
                             " shards, ",
                             options_.store->resident_bytes() >> 20,
                             " MiB of experts"));
    } else {
      log::Error(std::string(status.message()));
    }
    const std::lock_guard<std::mutex> lock(mu_);
    ended_ = true;
    status_ = status;
    if (status.ok()) {
      next_.set_done(true);
      news_ = true;
    }
    Advance();
  }

  void Advance() {
    if (writing_ || finished_) return;
    if (news_) {
      news_ = false;
      writing_ = true;
      current_ = next_;
      StartWrite(&current_);
    } else if (ended_) {
      finished_ = true;
      Finish(ToGrpc(status_));
    }
  }

  const ControlService::Options& options_;
  std::atomic<int>* loads_;
  std::thread loader_;
  std::mutex mu_;
  v1::LoadProgress next_, current_;
  absl::Status status_;
  bool news_ = false, writing_ = false, ended_ = false, finished_ = false;
};

}  // namespace

class ControlService::Service final
    : public v1::WorkerControl::CallbackService {
 public:
  explicit Service(Options options) : options_(std::move(options)) {}

  grpc::ServerUnaryReactor* Register(grpc::CallbackServerContext* context,
                                     const v1::RegisterRequest* request,
                                     v1::RegisterReply* reply) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpc(Greet(*request, reply)));
    return reactor;
  }

  grpc::ServerWriteReactor<v1::LoadProgress>* Assign(
      grpc::CallbackServerContext* /*context*/,
      const v1::AssignRequest* request) override {
    return new AssignCall(*request, options_, &loads_);
  }

  grpc::ServerUnaryReactor* Health(grpc::CallbackServerContext* context,
                                   const v1::HealthRequest* request,
                                   v1::HealthReply* reply) override {
    const auto assignment = options_.store->current();
    if (assignment != nullptr) reply->set_generation(assignment->generation);
    reply->set_ready(assignment != nullptr &&
                     assignment->generation == request->generation());
    reply->set_frames_served(options_.runner->frames_served());
    reply->set_resident_bytes(options_.store->resident_bytes());
    reply->set_memory_free_bytes(PageBytes(_SC_AVPHYS_PAGES));
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  bool loading() const { return loads_.load() > 0; }

 private:
  absl::Status Greet(const v1::RegisterRequest& request,
                     v1::RegisterReply* reply) {
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

  const Options options_;
  std::atomic<int> loads_{0};
};

ControlService::ControlService(Options options)
    : service_(std::make_unique<Service>(std::move(options))) {}

ControlService::~ControlService() = default;

void ControlService::Register(grpc::ServerBuilder* builder) {
  builder->RegisterService(service_.get());
}

bool ControlService::loading() const { return service_->loading(); }

}  // namespace conclave::worker
