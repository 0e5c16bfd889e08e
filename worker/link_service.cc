// SPDX-License-Identifier: Apache-2.0
#include "worker/link_service.h"

#include <future>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/log.h"
#include "common/memory.h"
#include "common/status_macros.h"
#include "kernels/device_choice.h"

namespace conclave::worker {
namespace {

constexpr size_t kCallsMax = 64;
// That wait to begin, beside the one that runs.
constexpr int kStepsMax = 2;
constexpr double kDeadlineMax_s = 3600;

bool IsDeadline(double seconds) {
  return seconds > 0 && seconds <= kDeadlineMax_s;
}

}  // namespace

LinkService::LinkService(Options options)
    : options_(std::move(options)),
      calls_(kCallsMax),
      thread_([this] { Run(); }) {}

LinkService::~LinkService() {
  ++turn_;
  calls_.Close();
  thread_.join();
}

void LinkService::Run() {
  while (auto call = calls_.Pop(absl::InfiniteDuration())) (*call)();
  Drop();
}

// Recordings and buffers of a link go with it, in this thread.
void LinkService::Drop() {
  std::shared_ptr<LinkedSteps> steps;
  const std::lock_guard<std::mutex> lock(mu_);
  std::swap(steps, steps_);
  if (steps != nullptr) layers_ = steps->layers();
}

absl::Status LinkService::CheckJoin(const v1::JoinRequest& request,
                                    const Assignment* assignment) const {
  if (options_.device == nullptr) {
    return absl::FailedPreconditionError(absl::StrCat(
        "join: worker ",
        options_.name,
        " computes on the CPU; exchange.over: nccl needs a GPU on every "
        "worker: start it with --backend cuda"));
  }
  if (assignment == nullptr || assignment->generation != request.generation()) {
    return absl::FailedPreconditionError(
        absl::StrCat("join: worker ",
                     options_.name,
                     " holds experts of generation ",
                     assignment == nullptr ? 0 : assignment->generation,
                     ", the coordinator is of generation ",
                     request.generation()));
  }
  if (request.link() == 0 || request.ranks() < 2 ||
      request.ranks() > limits::kWorkersMax + 1 || request.rank() < 1 ||
      request.rank() >= request.ranks() || request.rows_max() < 1 ||
      request.rows_max() > limits::kLinkRowsMax || request.per_row() < 2 ||
      request.per_row() > limits::kTopKMax + 1 || request.experts() < 1 ||
      request.experts() > limits::kExpertsMax ||
      !IsDeadline(request.join_s()) || !IsDeadline(request.exchange_s())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "join: worker ", options_.name, ": a field is out of bounds"));
  }
  return absl::OkStatus();
}

absl::Status LinkService::CheckRoom(const Assignment& assignment,
                                    const LinkedSteps::Shape& shape) const {
  ASSIGN_OR_RETURN(const uint64_t needed,
                   LinkedSteps::BytesOf(assignment, shape));
  ASSIGN_OR_RETURN(const MemoryState memory, options_.device->AskMemory());
  const uint64_t reserve = kernels::DeviceReserve(memory.total_bytes);
  if (needed + reserve <= memory.free_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("join: rows of a step need ",
                   Gigabytes(needed),
                   " beside the experts on ",
                   options_.device->name(),
                   ", ",
                   Gigabytes(memory.free_bytes),
                   " free (kept free ",
                   Gigabytes(reserve),
                   "); lower limits.step_tokens, or give worker ",
                   options_.name,
                   " a smaller share"));
}

absl::Status LinkService::JoinNow(const v1::JoinRequest& request,
                                  uint64_t turn) {
  Drop();
  const auto assignment = options_.store->current();
  RETURN_IF_ERROR(CheckJoin(request, assignment.get()));
  const LinkedSteps::Shape shape{.rows_max = request.rows_max(),
                                 .per_row = request.per_row(),
                                 .experts = request.experts(),
                                 .pairs_max = options_.device->pairs_max()};
  RETURN_IF_ERROR(CheckRoom(*assignment, shape));
  ASSIGN_OR_RETURN(std::unique_ptr<kernels::DeviceQueue> queue,
                   kernels::DeviceQueue::Create(options_.device->number()));
  ASSIGN_OR_RETURN(
      std::shared_ptr<LinkedSteps> steps,
      LinkedSteps::Create(
          std::move(queue),
          assignment,
          shape,
          {.id = request.id(),
           .rank = request.rank(),
           .ranks = request.ranks(),
           .join_deadline = absl::Seconds(request.join_s()),
           .deadline = absl::Seconds(request.exchange_s()),
           .lost =
               [this, turn] {
                 return turn_ == turn ? absl::OkStatus()
                                      : absl::AbortedError("the link was left");
               },
           .clock = options_.clock}));
  const std::lock_guard<std::mutex> lock(mu_);
  steps_ = std::move(steps);
  generation_ = request.generation();
  link_ = request.link();
  step_ = 0;
  rows_max_ = request.rows_max();
  layers_ = 0;
  error_.clear();
  return absl::OkStatus();
}

void LinkService::Join(v1::JoinRequest request, transport::Responder respond) {
  const uint64_t turn = ++turn_;
  const auto refuse = respond.finish;
  const absl::Status pushed = calls_.Push(
      [this, turn, request = std::move(request), respond = std::move(respond)] {
        const absl::Status status = JoinNow(request, turn);
        if (status.ok()) {
          respond.send(v1::JoinReply().SerializeAsString());
        } else {
          log::Warning(std::string(status.message()));
        }
        respond.finish(status);
      });
  if (!pushed.ok()) {
    refuse(absl::Status(
        pushed.code(),
        absl::StrCat("join: worker ", options_.name, ": ", pushed.message())));
  }
}

absl::Status LinkService::CheckStep(const transport::StepFrame& step) const {
  const std::lock_guard<std::mutex> lock(mu_);
  if (steps_ == nullptr || link_ != step.link || !error_.empty()) {
    return absl::FailedPreconditionError(
        absl::StrCat("step ",
                     step.tag.step,
                     ": link ",
                     step.link,
                     " is not joined",
                     error_.empty() ? "" : ": ",
                     error_));
  }
  if (generation_ != step.tag.generation) {
    return absl::FailedPreconditionError(
        absl::StrCat("the link is of generation ",
                     generation_,
                     ", the step is of generation ",
                     step.tag.generation));
  }
  if (step.rows > rows_max_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "step: rows ", step.rows, ", the link is for ", rows_max_));
  }
  return absl::OkStatus();
}

Buffer LinkService::Begin(std::span<const std::byte> frame) {
  const auto step = transport::DecodeStep(frame);
  absl::Status status = step.status();
  if (status.ok()) status = CheckStep(*step);
  if (status.ok() && waiting_ >= kStepsMax) {
    status = absl::ResourceExhaustedError("the steps before did not begin yet");
  }
  if (status.ok()) {
    ++waiting_;
    status = calls_.Push([this, step = *step] {
      --waiting_;
      StepNow(step);
    });
  }
  if (status.ok()) return transport::EncodeStep(*step);
  return transport::EncodeError(
      {.tag = step.ok() ? step->tag : transport::FrameTag{},
       .code = status.code(),
       .message =
           absl::StrCat("worker ", options_.name, ": ", status.message())});
}

void LinkService::StepNow(const transport::StepFrame& step) {
  std::shared_ptr<LinkedSteps> steps;
  {
    const std::lock_guard<std::mutex> lock(mu_);
    if (steps_ == nullptr || link_ != step.link) return;
    steps = steps_;
    step_ = step.tag.step;
  }
  const absl::Status status = steps->Run(step.rows, step.record);
  if (status.ok()) return;
  log::Warning(absl::StrCat("link ",
                            step.link,
                            ", step ",
                            step.tag.step,
                            ": ",
                            std::string(status.message())));
  {
    const std::lock_guard<std::mutex> lock(mu_);
    error_ = std::string(status.message());
  }
  steps = nullptr;
  Drop();
}

void LinkService::Leave() {
  ++turn_;
  auto left = std::make_shared<std::promise<void>>();
  const std::future<void> done = left->get_future();
  const absl::Status pushed = calls_.Push([this, left] {
    Drop();
    left->set_value();
  });
  if (pushed.ok()) done.wait();
}

void LinkService::Describe(v1::HealthReply* reply) const {
  const std::lock_guard<std::mutex> lock(mu_);
  reply->set_link(link_);
  reply->set_link_step(step_);
  reply->set_link_layers(steps_ == nullptr ? layers_ : steps_->layers());
  reply->set_link_error(error_);
}

}  // namespace conclave::worker
