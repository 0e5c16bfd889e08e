// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "kernels/device.h"
#include "kernels/device_queue.h"
#include "kernels/host/stream.h"

namespace conclave::kernels {
namespace {

using host::Stream;
using host::StreamOf;
using host::Work;
using Graph = std::vector<Work>;

absl::Status NotBuilt() {
  return absl::UnimplementedError("this build has no CUDA (CONCLAVE_CUDA=OFF)");
}

constexpr size_t kAlign = 256;

}  // namespace

absl::StatusOr<std::vector<CudaDevice>> ListCudaDevices(
    std::optional<int32_t>) {
  return NotBuilt();
}

absl::StatusOr<double> MeasureReadBandwidth(int32_t, uint64_t, int32_t) {
  return NotBuilt();
}

absl::StatusOr<double> MeasurePeerRoundTrip(int32_t,
                                            int32_t,
                                            uint64_t,
                                            int32_t) {
  return NotBuilt();
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

DeviceBuffer::~DeviceBuffer() { std::free(data_); }

DeviceGraph::DeviceGraph(DeviceGraph&& other) noexcept
    : graph_(std::exchange(other.graph_, nullptr)) {}

DeviceGraph& DeviceGraph::operator=(DeviceGraph&& other) noexcept {
  std::swap(graph_, other.graph_);
  return *this;
}

DeviceGraph::~DeviceGraph() { delete static_cast<Graph*>(graph_); }

absl::StatusOr<std::unique_ptr<DeviceQueue>> DeviceQueue::Create(
    int32_t device) {
  if (device != kHostDevice) return NotBuilt();
  auto queue = std::unique_ptr<DeviceQueue>(new DeviceQueue);
  queue->device_ = device;
  queue->multiprocessors_ = 1;
  queue->stream_ = new Stream;
  for (void*& mark : queue->marks_) mark = new absl::Time;
  return queue;
}

DeviceQueue::~DeviceQueue() {
  for (void* mark : marks_) delete static_cast<absl::Time*>(mark);
  delete StreamOf(this);
}

absl::StatusOr<DeviceBuffer> DeviceQueue::Allocate(size_t bytes,
                                                   const std::string& what) {
  DeviceBuffer out;
  out.data_ = std::aligned_alloc(kAlign, (bytes / kAlign + 1) * kAlign);
  if (out.data_ == nullptr) {
    return absl::ResourceExhaustedError(absl::StrCat(
        what, ": needs ", bytes >> 20, " MiB, more than there are"));
  }
  out.bytes_ = bytes;
  return out;
}

absl::Status DeviceQueue::Fill(const DeviceBuffer& to, uint8_t byte) {
  StreamOf(this)->Do([data = to.data_, bytes = to.bytes_, byte] {
    std::memset(data, byte, bytes);
  });
  return absl::OkStatus();
}

absl::Status DeviceQueue::Upload(const void* from, size_t bytes, void* to) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return absl::OkStatus();
}

absl::Status DeviceQueue::Download(const void* from, size_t bytes, void* to) {
  if (bytes > 0) std::memcpy(to, from, bytes);
  return StreamOf(this)->Told();
}

absl::Status DeviceQueue::Copy(const void* from, size_t bytes, void* to) {
  StreamOf(this)->Do([=] { std::memmove(to, from, bytes); });
  return absl::OkStatus();
}

absl::Status DeviceQueue::BeginRecording() {
  StreamOf(this)->recording = true;
  return absl::OkStatus();
}

absl::StatusOr<DeviceGraph> DeviceQueue::EndRecording() {
  Stream* stream = StreamOf(this);
  stream->recording = false;
  DeviceGraph out;
  out.graph_ = new Graph(std::exchange(stream->recorded, {}));
  return out;
}

absl::Status DeviceQueue::Launch(const DeviceGraph& graph) {
  for (const Work& work : *static_cast<const Graph*>(graph.graph_)) {
    StreamOf(this)->Run(work);
  }
  return absl::OkStatus();
}

absl::Status DeviceQueue::Wait() { return StreamOf(this)->Told(); }

absl::Status DeviceQueue::Mark(int32_t which) {
  *static_cast<absl::Time*>(marks_[which]) = RealClock()->Now();
  return absl::OkStatus();
}

absl::StatusOr<double> DeviceQueue::Between() {
  return absl::ToDoubleSeconds(*static_cast<absl::Time*>(marks_[1]) -
                               *static_cast<absl::Time*>(marks_[0]));
}

}  // namespace conclave::kernels
