// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace conclave::kernels {

// Memory of a device, freed with this. Owns `bytes` bytes, 256-byte aligned.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(DeviceBuffer&& other) noexcept;
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept;
  ~DeviceBuffer();

  size_t bytes() const { return bytes_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  friend class DeviceQueue;
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

// Steps that were recorded once and are launched as one. Freed before its
// queue.
class DeviceGraph {
 public:
  DeviceGraph() = default;
  DeviceGraph(DeviceGraph&& other) noexcept;
  DeviceGraph& operator=(DeviceGraph&& other) noexcept;
  ~DeviceGraph();
  bool recorded() const { return graph_ != nullptr; }

 private:
  friend class DeviceQueue;
  void* graph_ = nullptr;  // cudaGraphExec_t
};

// One device and the stream that all device blocks of a model use, in order.
// Used by one thread at a time. Calls that queue work return before it is
// done; what went wrong on the device comes back from Wait. Errors:
// ResourceExhausted (out of memory), Unavailable (no device), Internal.
class DeviceQueue {
 public:
  static absl::StatusOr<std::unique_ptr<DeviceQueue>> Create(int32_t device);
  ~DeviceQueue();
  DeviceQueue(const DeviceQueue&) = delete;
  DeviceQueue& operator=(const DeviceQueue&) = delete;

  int32_t device() const { return device_; }
  int32_t multiprocessors() const { return multiprocessors_; }
  int32_t compute_major() const { return compute_major_; }
  void* stream() const { return stream_; }  // cudaStream_t

  // `what` is named in errors ("KV cache"). Not initialised.
  absl::StatusOr<DeviceBuffer> Allocate(size_t bytes, const std::string& what);
  absl::Status Fill(const DeviceBuffer& to, uint8_t byte);

  // Host memory may be reused on return: pageable memory is staged.
  absl::Status Upload(const void* from, size_t bytes, void* to);
  // Waits for everything queued before.
  absl::Status Download(const void* from, size_t bytes, void* to);
  absl::Status Copy(const void* from, size_t bytes, void* to);

  // Between the two, launches are recorded instead of run.
  absl::Status BeginRecording();
  absl::StatusOr<DeviceGraph> EndRecording();
  absl::Status Launch(const DeviceGraph& graph);

  // Until everything queued is done.
  absl::Status Wait();

  // Device time between two marks, seconds; waits for the second one.
  absl::Status Mark(int32_t which);  // 0 or 1
  absl::StatusOr<double> Between();

 private:
  DeviceQueue() = default;
  absl::Status Use() const;  // makes the device this thread's
  int32_t device_ = 0;
  int32_t multiprocessors_ = 0;
  int32_t compute_major_ = 0;
  void* stream_ = nullptr;
  void* marks_[2] = {nullptr, nullptr};
};

}  // namespace conclave::kernels
