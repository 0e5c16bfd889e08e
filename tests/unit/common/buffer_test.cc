// SPDX-License-Identifier: Apache-2.0
#include "common/buffer.h"

#include <array>
#include <cstdint>
#include <utility>

#include "gtest/gtest.h"

namespace conclave {
namespace {

TEST(BufferTest, IsAlignedAndEmptyByDefault) {
  EXPECT_TRUE(Buffer().empty());
  EXPECT_EQ(Buffer().bytes().size(), 0u);
  for (size_t size : {1u, 63u, 64u, 1000u}) {
    const Buffer buffer(size);
    EXPECT_EQ(buffer.size(), size);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
  }
}

TEST(BufferTest, CopyIsDeep) {
  std::array<std::byte, 3> from = {std::byte{1}, std::byte{2}, std::byte{3}};
  Buffer buffer = Buffer::Copy(from);
  from[1] = std::byte{9};
  ASSERT_EQ(buffer.size(), 3u);
  EXPECT_EQ(buffer.data()[1], std::byte{2});
  EXPECT_TRUE(Buffer::Copy({}).empty());
}

TEST(BufferTest, MoveHandsTheMemoryDown) {
  Buffer from(10);
  const std::byte* memory = from.data();
  const Buffer to = std::move(from);
  EXPECT_EQ(to.data(), memory);
  EXPECT_EQ(to.size(), 10u);
}

}  // namespace
}  // namespace conclave
