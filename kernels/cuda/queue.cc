// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "kernels/cuda/cuda_status.h"
#include "kernels/cuda/process.h"
#include "kernels/cuda/shared_bytes.h"
#include "kernels/device_queue.h"

namespace conclave::kernels {
namespace {

using cuda::ToStatus;

cudaStream_t StreamOf(const DeviceQueue& queue) {
  return static_cast<cudaStream_t>(queue.stream());
}

}  // namespace

absl::StatusOr<size_t> cuda::SharedBytesMax(const DeviceQueue& queue) {
  int bytes = 0;
  RETURN_IF_ERROR(ToStatus(
      cudaDeviceGetAttribute(
          &bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, queue.device()),
      "reading an attribute"));
  return static_cast<size_t>(bytes);
}

DeviceBuffer::DeviceBuffer(DeviceBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

DeviceBuffer& DeviceBuffer::operator=(DeviceBuffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

DeviceBuffer::~DeviceBuffer() {
  if (data_ != nullptr) cudaFree(data_);
}

DeviceGraph::DeviceGraph(DeviceGraph&& other) noexcept
    : graph_(std::exchange(other.graph_, nullptr)) {}

DeviceGraph& DeviceGraph::operator=(DeviceGraph&& other) noexcept {
  std::swap(graph_, other.graph_);
  return *this;
}

DeviceGraph::~DeviceGraph() {
  if (graph_ != nullptr) {
    cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph_));
  }
}

absl::StatusOr<std::unique_ptr<DeviceQueue>> DeviceQueue::Create(
    int32_t device) {
  cuda::PrepareProcess();
  auto queue = std::unique_ptr<DeviceQueue>(new DeviceQueue);
  queue->device_ = device;
  RETURN_IF_ERROR(queue->Use());
  RETURN_IF_ERROR(ToStatus(
      cudaDeviceGetAttribute(
          &queue->multiprocessors_, cudaDevAttrMultiProcessorCount, device),
      "reading an attribute"));
  RETURN_IF_ERROR(ToStatus(
      cudaDeviceGetAttribute(
          &queue->compute_major_, cudaDevAttrComputeCapabilityMajor, device),
      "reading an attribute"));
  cudaStream_t stream = nullptr;
  RETURN_IF_ERROR(
      ToStatus(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking),
               "creating a stream"));
  queue->stream_ = stream;
  for (void*& mark : queue->marks_) {
    cudaEvent_t event = nullptr;
    RETURN_IF_ERROR(ToStatus(cudaEventCreate(&event), "creating an event"));
    mark = event;
  }
  return queue;
}

DeviceQueue::~DeviceQueue() {
  for (void* mark : marks_) {
    if (mark != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(mark));
  }
  if (stream_ != nullptr) cudaStreamDestroy(StreamOf(*this));
}

absl::Status DeviceQueue::Use() const {
  return ToStatus(cudaSetDevice(device_), "choosing the device");
}

absl::StatusOr<DeviceBuffer> DeviceQueue::Allocate(size_t bytes,
                                                   const std::string& what) {
  RETURN_IF_ERROR(Use());
  DeviceBuffer out;
  // A buffer always has an address, also of a model part that is empty.
  const absl::Status status = ToStatus(
      cudaMalloc(&out.data_, std::max<size_t>(bytes, 1)), "allocating memory");
  if (!status.ok()) {
    size_t free_bytes = 0;
    size_t total_bytes = 0;
    cudaMemGetInfo(&free_bytes, &total_bytes);
    return absl::Status(status.code(),
                        absl::StrCat(what,
                                     ": needs ",
                                     bytes >> 20,
                                     " MiB, ",
                                     free_bytes >> 20,
                                     " MiB of the GPU's ",
                                     total_bytes >> 20,
                                     " are free (",
                                     status.message(),
                                     ")"));
  }
  out.bytes_ = bytes;
  return out;
}

absl::Status DeviceQueue::Fill(const DeviceBuffer& to, uint8_t byte) {
  RETURN_IF_ERROR(Use());
  return ToStatus(cudaMemsetAsync(to.data_, byte, to.bytes_, StreamOf(*this)),
                  "filling memory");
}

absl::Status DeviceQueue::Upload(const void* from, size_t bytes, void* to) {
  RETURN_IF_ERROR(Use());
  return ToStatus(
      cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, StreamOf(*this)),
      "copying to the device");
}

absl::Status DeviceQueue::Download(const void* from, size_t bytes, void* to) {
  RETURN_IF_ERROR(Use());
  RETURN_IF_ERROR(ToStatus(
      cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, StreamOf(*this)),
      "copying from the device"));
  return Wait();
}

absl::Status DeviceQueue::Copy(const void* from, size_t bytes, void* to) {
  RETURN_IF_ERROR(Use());
  return ToStatus(
      cudaMemcpyAsync(
          to, from, bytes, cudaMemcpyDeviceToDevice, StreamOf(*this)),
      "copying on the device");
}

absl::Status DeviceQueue::BeginRecording() {
  RETURN_IF_ERROR(Use());
  return ToStatus(
      cudaStreamBeginCapture(StreamOf(*this), cudaStreamCaptureModeThreadLocal),
      "beginning to record a step");
}

absl::StatusOr<DeviceGraph> DeviceQueue::EndRecording() {
  cudaGraph_t graph = nullptr;
  RETURN_IF_ERROR(ToStatus(cudaStreamEndCapture(StreamOf(*this), &graph),
                           "recording a step"));
  cudaGraphExec_t executable = nullptr;
  const absl::Status status =
      ToStatus(cudaGraphInstantiate(&executable, graph, 0),
               "instantiating a recorded step");
  cudaGraphDestroy(graph);
  RETURN_IF_ERROR(status);
  DeviceGraph out;
  out.graph_ = executable;
  return out;
}

absl::Status DeviceQueue::Launch(const DeviceGraph& graph) {
  RETURN_IF_ERROR(Use());
  return ToStatus(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph.graph_),
                                  StreamOf(*this)),
                  "launching a recorded step");
}

absl::Status DeviceQueue::Wait() {
  return ToStatus(cudaStreamSynchronize(StreamOf(*this)),
                  "waiting for the device");
}

absl::Status DeviceQueue::Mark(int32_t which) {
  return ToStatus(
      cudaEventRecord(static_cast<cudaEvent_t>(marks_[which]), StreamOf(*this)),
      "recording an event");
}

absl::StatusOr<double> DeviceQueue::Between() {
  const auto begin = static_cast<cudaEvent_t>(marks_[0]);
  const auto end = static_cast<cudaEvent_t>(marks_[1]);
  RETURN_IF_ERROR(ToStatus(cudaEventSynchronize(end), "waiting for an event"));
  float milliseconds = 0;
  RETURN_IF_ERROR(ToStatus(cudaEventElapsedTime(&milliseconds, begin, end),
                           "reading an event"));
  return milliseconds * 1e-3;
}

}  // namespace conclave::kernels
