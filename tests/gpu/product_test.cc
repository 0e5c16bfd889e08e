// SPDX-License-Identifier: Apache-2.0
// Products on the GPU against the numbers that the formats define.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "kernels/device_product.h"
#include "tests/gpu/product_world.h"
#include "tests/gpu/require_gpu.h"

namespace conclave::kernels {
namespace {

TEST(DeviceProduct, EqualsTheFormatsNumbers) {
  CONCLAVE_REQUIRE_GPU();
  const auto queue = NewQueue();
  for (const std::string& format : Formats()) {
    for (const auto& [outs, cols] :
         {std::pair<int64_t, int64_t>{48, 128}, {37, 384}, {2000, 640}}) {
      const AnyWeight weight(format, 7, outs, cols);
      const OnDevice device(*queue, {weight.view()});
      for (const int32_t rows : {1, 2, 7, 8, 9, 16, 17, 33, 64, 65, 130, 300}) {
        for (const bool bf16 : {true, false}) {
          SCOPED_TRACE(format + " " + std::to_string(outs) + " x " +
                       std::to_string(cols) + ", rows " + std::to_string(rows) +
                       (bf16 ? " bf16" : " f32"));
          const TestRows x(*queue, 11 + rows, rows, cols, bf16);
          const DeviceBuffer out =
              Up(*queue, std::vector<float>(rows * outs, kSentinel));
          ASSERT_TRUE(DeviceProduct(queue.get(),
                                    device.matrix,
                                    x.device,
                                    nullptr,
                                    rows,
                                    1,
                                    out.as<float>())
                          .ok());
          const auto want = Reference(weight.view(), x.values, rows);
          EXPECT_LE(Error(Down(*queue, out.as<float>(), rows * outs), want),
                    !bf16       ? kExact
                    : rows > 64 ? kWide
                                : kNarrow);
        }
      }
    }
  }
}

// What a rank of a group loads: rows are longer than the view's columns.
TEST(DeviceProduct, TakesColumnsOfAWeight) {
  CONCLAVE_REQUIRE_GPU();
  const auto queue = NewQueue();
  for (const std::string& format : Formats()) {
    SCOPED_TRACE(format);
    const AnyWeight weight(format, 7, 48, 640);
    for (const auto& [begin, end] :
         {std::pair<int64_t, int64_t>{0, 256}, {384, 640}}) {
      const WeightView part = Columns(weight.view(), begin, end);
      const OnDevice device(*queue, {part});
      const TestRows x(*queue, 5, 3, part.cols, true);
      const DeviceBuffer out = Room(*queue, 3 * 48 * sizeof(float));
      ASSERT_TRUE(DeviceProduct(queue.get(),
                                device.matrix,
                                x.device,
                                nullptr,
                                3,
                                1,
                                out.as<float>())
                      .ok());
      EXPECT_LE(Error(Down(*queue, out.as<float>(), 3 * 48),
                      Reference(part, x.values, 3)),
                kNarrow);
    }
  }
}

TEST(DeviceProduct, LowPartsMakeRowsNearlyExact) {
  CONCLAVE_REQUIRE_GPU();
  const auto queue = NewQueue();
  for (const std::string format : {"bf16", "affine8", "affine4"}) {
    const AnyWeight weight(format, 7, 257, 512);
    const OnDevice device(*queue, {weight.view()});
    for (const int32_t rows : {1, 5, 40, 200}) {
      const TestRows x(*queue, 5, rows, 512, true);
      const DeviceBuffer out = Room(*queue, rows * 257 * sizeof(float));
      ASSERT_TRUE(DeviceProduct(queue.get(),
                                device.matrix,
                                x.device,
                                x.low.as<void>(),
                                rows,
                                1,
                                out.as<float>())
                      .ok());
      EXPECT_LE(Error(Down(*queue, out.as<float>(), rows * 257),
                      Reference(weight.view(), x.full, rows)),
                5e-5)
          << format << ", rows " << rows;
    }
  }
}

TEST(DeviceProduct, PartsStandSideBySide) {
  CONCLAVE_REQUIRE_GPU();
  const auto queue = NewQueue();
  const AnyWeight a("affine4", 1, 40, 256), b("affine4", 2, 4, 256);
  const OnDevice device(*queue, {a.view(), b.view()});
  const TestRows x(*queue, 3, 3, 256, true);
  const DeviceBuffer out = Room(*queue, 3 * 44 * sizeof(float));
  ASSERT_TRUE(
      DeviceProduct(
          queue.get(), device.matrix, x.device, nullptr, 3, 1, out.as<float>())
          .ok());
  const auto first = Reference(a.view(), x.values, 3);
  const auto second = Reference(b.view(), x.values, 3);
  std::vector<float> want;
  for (int r = 0; r < 3; ++r) {
    want.insert(want.end(), &first[r * 40], &first[r * 40] + 40);
    want.insert(want.end(), &second[r * 4], &second[r * 4] + 4);
  }
  EXPECT_LE(Error(Down(*queue, out.as<float>(), 3 * 44), want), kNarrow);
}

TEST(DeviceProduct, PlanesAddUp) {
  CONCLAVE_REQUIRE_GPU();
  const auto queue = NewQueue();
  for (const std::string& format : Formats()) {
    const AnyWeight weight(format, 7, 80, 1152);
    const OnDevice device(*queue, {weight.view()});
    for (const int32_t rows : {1, 11, 50}) {
      const int32_t planes =
          DevicePlanes(*queue, device.matrix, rows, /*bf16=*/true);
      ASSERT_GE(planes, 1);
      ASSERT_LE(planes, kPlanesMax);
      const TestRows x(*queue, 5, rows, 1152, true);
      const size_t size = rows * 80;
      const DeviceBuffer out = Room(*queue, planes * size * sizeof(float));
      ASSERT_TRUE(DeviceProduct(queue.get(),
                                device.matrix,
                                x.device,
                                nullptr,
                                rows,
                                planes,
                                out.as<float>())
                      .ok());
      const auto all = Down(*queue, out.as<float>(), planes * size);
      std::vector<float> sum(size);
      for (size_t i = 0; i < all.size(); ++i) sum[i % size] += all[i];
      EXPECT_LE(Error(sum, Reference(weight.view(), x.values, rows)), kNarrow)
          << format << ", rows " << rows << ", planes " << planes;
    }
  }
}

}  // namespace
}  // namespace conclave::kernels
