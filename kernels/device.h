// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace conclave::kernels {

// Not a GPU but host memory and loops: for DeviceQueue::Create in builds
// without CUDA, where the blocks of kernels/device_*.h are their own plain
// twins.
inline constexpr int32_t kHostDevice = -1;

// A GPU that the CUDA driver shows.
struct CudaDevice {
  std::string name;
  int32_t compute_major = 0;
  int32_t compute_minor = 0;
  uint64_t memory_total_bytes = 0;
  uint64_t memory_free_bytes = 0;  // where it was asked for
};

// The GPUs of this machine. Unimplemented: built without CUDA. Unavailable: no
// driver, one that is too old, or no device; the message says which. Free
// memory is told of `free_of` alone: asking makes CUDA set up that device for
// this process, which takes some hundred MB of it.
absl::StatusOr<std::vector<CudaDevice>> ListCudaDevices(
    std::optional<int32_t> free_of = std::nullopt);

// Sums `bytes` of device memory with a plain grid-stride read, `repeats` times;
// the median, in bytes per second: the roofline that other figures are held
// against. Errors as above; ResourceExhausted when `bytes` do not fit.
absl::StatusOr<double> MeasureReadBandwidth(int32_t device,
                                            uint64_t bytes,
                                            int32_t repeats);

// Seconds that `bytes` (a multiple of 16) take from one GPU to another and back
// by stores of one block and a flag, the mean of `rounds`: the floor of an
// exchange. Errors as above; Internal: no peer access.
absl::StatusOr<double> MeasurePeerRoundTrip(int32_t first,
                                            int32_t second,
                                            uint64_t bytes,
                                            int32_t rounds);

}  // namespace conclave::kernels
