// SPDX-License-Identifier: Apache-2.0
// Linked where CONCLAVE_NCCL is OFF.
#include "kernels/cuda/group.cuh"

namespace conclave::kernels::cuda {

absl::Status MakeCommunicators(DeviceGroup::Impl*) {
  return absl::UnavailableError(
      "this build has no NCCL (CONCLAVE_NCCL=OFF); use group_exchange: peer");
}

void AbortCommunicators(DeviceGroup::Impl*) {}

absl::Status QueueNcclSum(DeviceGroup::Impl* group, int32_t, const GroupSum&) {
  return MakeCommunicators(group);
}

absl::Status QueueNcclColumns(DeviceGroup::Impl* group,
                              int32_t,
                              const GroupColumns&) {
  return MakeCommunicators(group);
}

absl::Status WaitForNccl(DeviceGroup::Impl* group, int32_t rank) {
  return group->ranks[static_cast<size_t>(rank)].queue->Wait();
}

}  // namespace conclave::kernels::cuda
