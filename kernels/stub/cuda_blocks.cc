// SPDX-License-Identifier: Apache-2.0
#include <utility>

#include "kernels/device_matrix.h"
#include "kernels/device_moe.h"
#include "kernels/device_product.h"
#include "kernels/device_queue.h"
#include "kernels/device_rows.h"

namespace conclave::kernels {
namespace {

absl::Status NotBuilt() {
  return absl::UnimplementedError("this build has no CUDA (CONCLAVE_CUDA=OFF)");
}

}  // namespace

// Nothing is ever allocated or recorded.
DeviceBuffer::DeviceBuffer(DeviceBuffer&&) noexcept {}
DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&&) noexcept { return *this; }
DeviceBuffer::~DeviceBuffer() = default;
DeviceGraph::DeviceGraph(DeviceGraph&&) noexcept {}
DeviceGraph& DeviceGraph::operator=(DeviceGraph&&) noexcept { return *this; }
DeviceGraph::~DeviceGraph() = default;

absl::StatusOr<std::unique_ptr<DeviceQueue>> DeviceQueue::Create(int32_t) {
  return NotBuilt();
}
DeviceQueue::~DeviceQueue() = default;
absl::StatusOr<DeviceBuffer> DeviceQueue::Allocate(size_t, const std::string&) {
  return NotBuilt();
}
absl::Status DeviceQueue::Fill(const DeviceBuffer&, uint8_t) {
  return NotBuilt();
}
absl::Status DeviceQueue::Upload(const void*, size_t, void*) {
  return NotBuilt();
}
absl::Status DeviceQueue::Download(const void*, size_t, void*) {
  return NotBuilt();
}
absl::Status DeviceQueue::Copy(const void*, size_t, void*) {
  return NotBuilt();
}
absl::Status DeviceQueue::BeginRecording() { return NotBuilt(); }
absl::StatusOr<DeviceGraph> DeviceQueue::EndRecording() { return NotBuilt(); }
absl::Status DeviceQueue::Launch(const DeviceGraph&) { return NotBuilt(); }
absl::Status DeviceQueue::Wait() { return NotBuilt(); }
absl::Status DeviceQueue::Mark(int32_t) { return NotBuilt(); }
absl::StatusOr<double> DeviceQueue::Between() { return NotBuilt(); }

absl::StatusOr<DeviceMatrix> MakeMatrix(DeviceQueue*,
                                        const MatrixPlan&,
                                        const std::string&) {
  return NotBuilt();
}
bool CanShare(const WeightLayout&, const WeightLayout&) { return false; }
uint64_t MatrixBytes(const MatrixPlan&) { return 0; }
absl::Status MatrixLoader::Load(
    const WeightView&, const MatrixPlan&, int32_t, int32_t, DeviceMatrix*) {
  return NotBuilt();
}
absl::Status FillMadeUp(DeviceQueue*, uint64_t, double, DeviceMatrix*) {
  return NotBuilt();
}
absl::Status FillMadeUpTable(DeviceQueue*, uint64_t, const WeightView&) {
  return NotBuilt();
}

absl::Status DeviceProduct(DeviceQueue*,
                           const DeviceMatrix&,
                           const DeviceRows&,
                           const void*,
                           int32_t,
                           int32_t,
                           float*) {
  return NotBuilt();
}
int32_t DevicePlanes(const DeviceQueue&, const DeviceMatrix&, int32_t, bool) {
  return 1;
}
absl::Status DeviceExperts(DeviceQueue*,
                           const DeviceExpertStack&,
                           const DeviceEntries&,
                           const DeviceRows&,
                           const DeviceRows&,
                           float*) {
  return NotBuilt();
}
int32_t GroupRowsFor(int64_t, int32_t) { return 1; }
int32_t GroupsMax(int64_t, int32_t, int32_t) { return 0; }

absl::Status DeviceRoute(DeviceQueue*,
                         const float*,
                         int32_t,
                         const DeviceEntries&) {
  return NotBuilt();
}
absl::Status DeviceEmbed(
    DeviceQueue*, const WeightView&, const int32_t*, int32_t, float*) {
  return NotBuilt();
}
absl::Status DeviceAddNorm(DeviceQueue*,
                           int32_t,
                           int32_t,
                           const DeviceAddend&,
                           const float*,
                           float,
                           const int32_t*,
                           float*,
                           const DeviceRows&,
                           void*) {
  return NotBuilt();
}

}  // namespace conclave::kernels
