// SPDX-License-Identifier: Apache-2.0
#include "kernels/device.h"

#include <gtest/gtest.h>

#include "tests/gpu/product_world.h"
#include "tests/gpu/require_gpu.h"

namespace conclave::kernels {
namespace {

TEST(CudaDevice, IsListedWithItsMemory) {
  CONCLAVE_REQUIRE_GPU();
  const auto devices = ListCudaDevices(0);
  ASSERT_TRUE(devices.ok()) << devices.status();
  for (const CudaDevice& device : *devices) {
    EXPECT_FALSE(device.name.empty());
    EXPECT_GE(device.compute_major, 8);
    EXPECT_GT(device.memory_total_bytes, 0u);
    EXPECT_LE(device.memory_free_bytes, device.memory_total_bytes);
  }
  EXPECT_GT((*devices)[0].memory_free_bytes, 0u);
  const auto unasked = ListCudaDevices();
  ASSERT_TRUE(unasked.ok()) << unasked.status();
  EXPECT_EQ((*unasked)[0].memory_free_bytes, 0u);
}

TEST(CudaDevice, ReadsItsMemory) {
  CONCLAVE_REQUIRE_GPU();
  const auto bandwidth = MeasureReadBandwidth(0, uint64_t{1} << 30, 5);
  ASSERT_TRUE(bandwidth.ok()) << bandwidth.status();
  EXPECT_GT(*bandwidth, 1e9);
}

TEST(CudaDevice, RefusesWhatDoesNotFit) {
  CONCLAVE_REQUIRE_GPU();
  const auto bandwidth = MeasureReadBandwidth(0, uint64_t{1} << 50, 1);
  EXPECT_EQ(bandwidth.status().code(), absl::StatusCode::kResourceExhausted);
}

// What was refused is told by that call alone, not by the launch that follows.
TEST(CudaDevice, ARefusedCallIsToldOnce) {
  CONCLAVE_REQUIRE_GPU();
  EXPECT_FALSE(DeviceQueue::Create(4096).ok());
  const auto queue = NewQueue();
  ASSERT_NE(queue, nullptr);
  const AnyWeight weight("bf16", 1, 16, 64);
  OnDevice made(*queue, {weight.view()});
  EXPECT_TRUE(queue->Wait().ok());
}

// Without a GPU every call says why, and nothing aborts.
TEST(CudaDevice, SaysWhyThereIsNone) {
  const auto devices = ListCudaDevices();
  if (devices.ok()) GTEST_SKIP() << "there is a GPU";
  EXPECT_NE(devices.status().message().find("CUDA"), std::string::npos);
  EXPECT_FALSE(MeasureReadBandwidth(0, 1024, 1).ok());
}

}  // namespace
}  // namespace conclave::kernels
