// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iterator>
#include <mutex>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/limits.h"
#include "common/parallel_tasks.h"
#include "common/status_macros.h"
#include "coordinator/model/device_decoder.h"
#include "coordinator/model/group_decoder.h"
#include "coordinator/model/host_decoder.h"
#include "kernels/device.h"
#include "kernels/device_choice.h"

namespace conclave::model {
namespace {

// How errors name the device.
absl::StatusOr<std::string> NameOf(int32_t gpu) {
  if (gpu == kernels::kHostDevice) return "the plain twin of a GPU";
  ASSIGN_OR_RETURN(const std::vector<kernels::CudaDevice> devices,
                   kernels::ListCudaDevices());
  if (gpu < 0 || gpu >= std::ssize(devices)) {
    return absl::UnavailableError(
        absl::StrCat("no GPU ", gpu, "; this machine has ", devices.size()));
  }
  return kernels::GpuName(devices, gpu, "gpu:");
}

DeviceDecoder::Options OptionsFor(StateSizes sizes,
                                  kernels::Activations activations,
                                  const DevicePlace& place) {
  return {
      .sizes = sizes,
      .rows_max = sizes.step_rows > 0 ? sizes.step_rows : limits::kStepRowsMax,
      .sequences_max = sizes.state_slots,
      .exact = activations == kernels::Activations::kF32,
      .kv = place.kv,
      .gdn = place.gdn};
}

absl::StatusOr<std::unique_ptr<Decoder>> CreateOnDevice(
    const checkpoint::Checkpoint& checkpoint,
    experts::Experts* experts,
    StateSizes sizes,
    kernels::Activations activations,
    const DevicePlace& place,
    const MicroBatchSettings& micro_batches) {
  ASSIGN_OR_RETURN(std::string name, NameOf(place.gpu));
  ASSIGN_OR_RETURN(std::unique_ptr<kernels::DeviceQueue> queue,
                   kernels::DeviceQueue::Create(place.gpu));
  RoutedHere here;
  experts::LinkedExperts* linked = place.linked;
  if (experts != nullptr || linked != nullptr) {
    here = place.routed_here;
    here.resize(checkpoint.config().full_attention.size());
    // Nothing is elsewhere: steps are recorded.
    if (std::find(here.begin(), here.end(), false) == here.end()) {
      experts = nullptr;
      linked = nullptr;
    }
  }
  ASSIGN_OR_RETURN(
      DeviceWeights weights,
      LoadDeviceWeights(
          checkpoint, queue.get(), {.here = here, .progress = place.progress}));
  DeviceDecoder::Options options = OptionsFor(sizes, activations, place);
  options.experts = experts;
  options.micro_batches = micro_batches;
  options.linked = linked;
  options.name = std::move(name);
  return DeviceDecoder::Create(std::move(queue), std::move(weights), options);
}

// Progress of one rank's part, told with the others'.
class JointProgress {
 public:
  JointProgress(size_t ranks, checkpoint::LoadProgressFn tell)
      : done_(ranks), total_(ranks), tell_(std::move(tell)) {}
  void Tell(size_t rank, uint64_t done, uint64_t total) {
    if (tell_ == nullptr) return;
    std::lock_guard<std::mutex> lock(mutex_);
    done_[rank] = done;
    total_[rank] = total;
    tell_(std::accumulate(done_.begin(), done_.end(), uint64_t{0}),
          std::accumulate(total_.begin(), total_.end(), uint64_t{0}));
  }

 private:
  std::mutex mutex_;
  std::vector<uint64_t> done_, total_;
  const checkpoint::LoadProgressFn tell_;
};

absl::StatusOr<std::unique_ptr<Decoder>> CreateOnGroup(
    const checkpoint::Checkpoint& checkpoint,
    StateSizes sizes,
    kernels::Activations activations,
    const DevicePlace& place,
    const MicroBatchSettings& micro_batches) {
  const auto ranks = static_cast<int32_t>(place.gpus.size());
  std::vector<GroupDecoder::Member> members(place.gpus.size());
  ASSIGN_OR_RETURN(const DenseWeights dense, LoadDenseWeights(checkpoint));
  JointProgress progress(members.size(), place.progress);
  const auto load = [&](int64_t i) -> absl::Status {
    const auto rank = static_cast<size_t>(i);
    GroupDecoder::Member& member = members[rank];
    ASSIGN_OR_RETURN(member.name, NameOf(place.gpus[rank]));
    ASSIGN_OR_RETURN(member.queue,
                     kernels::DeviceQueue::Create(place.gpus[rank]));
    ASSIGN_OR_RETURN(
        member.weights,
        LoadDeviceWeights(
            checkpoint,
            member.queue.get(),
            {.rank = {static_cast<int32_t>(i), ranks, place.form, place.shares},
             .dense = &dense,
             .progress = [&, rank](uint64_t done, uint64_t total) {
               progress.Tell(rank, done, total);
             }}));
    return absl::OkStatus();
  };
  RETURN_IF_ERROR(ParallelTasks(ranks, ranks, load));
  ASSIGN_OR_RETURN(
      std::unique_ptr<GroupDecoder> out,
      GroupDecoder::Create(std::move(members),
                           {.each = OptionsFor(sizes, activations, place),
                            .form = place.form,
                            .exchange = place.exchange,
                            .deadline = place.group_deadline,
                            .micro_batches = place.form == GroupForm::kLone
                                                 ? micro_batches
                                                 : MicroBatchSettings{}}));
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Decoder>> Decoder::Create(
    const checkpoint::Checkpoint& checkpoint,
    experts::Experts* experts,
    kernels::Backend backend,
    ThreadPool* pool,
    StateSizes sizes,
    kernels::Activations activations,
    const DevicePlace& place,
    const MicroBatchSettings& micro_batches) {
  if (backend == kernels::Backend::kCuda && place.gpus.size() > 1) {
    if (experts == nullptr && place.linked == nullptr) {
      return CreateOnGroup(
          checkpoint, sizes, activations, place, micro_batches);
    }
    return absl::InvalidArgumentError(
        "several GPUs and workers: not together yet; take the workers out of "
        "the file or name one GPU");
  }
  if (backend == kernels::Backend::kCuda) {
    return CreateOnDevice(
        checkpoint, experts, sizes, activations, place, micro_batches);
  }
  return HostDecoder::Create(checkpoint,
                             {.experts = experts,
                              .backend = backend,
                              .pool = pool,
                              .sizes = sizes,
                              .activations = activations,
                              .micro_batches = micro_batches});
}

}  // namespace conclave::model
