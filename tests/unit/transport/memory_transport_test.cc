// SPDX-License-Identifier: Apache-2.0
#include "common/transport/memory_transport.h"

#include <cstring>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave::transport {
namespace {

using ::testing::HasSubstr;

Buffer Text(const std::string& text) {
  return Buffer::Copy(std::as_bytes(std::span(text)));
}

std::string TextOf(std::span<const std::byte> bytes) {
  return std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size());
}

FrameHandler Append(const std::string& suffix) {
  return [suffix](std::span<const std::byte> frame) {
    return Text(TextOf(frame) + suffix);
  };
}

TEST(MemoryTransport, AnswersComeFromTheWorkerThatWasAsked) {
  MemoryTransport transport;
  transport.AddWorker(WorkerId{0}, "w0", Append(" by w0"));
  transport.AddWorker(WorkerId{1}, "w1", Append(" by w1"));
  ASSERT_TRUE(transport.Send(WorkerId{1}, Text("a")).ok());
  ASSERT_TRUE(transport.Send(WorkerId{0}, Text("b")).ok());
  auto first = transport.Receive(absl::InfinitePast());
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->from, WorkerId{1});
  EXPECT_EQ(TextOf(first->frame->bytes()), "a by w1");
  auto second = transport.Receive(absl::InfinitePast());
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->from, WorkerId{0});
  EXPECT_EQ(TextOf(second->frame->bytes()), "b by w0");
  EXPECT_EQ(transport.Receive(absl::InfiniteFuture()).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST(MemoryTransport, UnknownWorkersAreUnavailable) {
  MemoryTransport transport;
  const absl::Status status = transport.Send(WorkerId{3}, Text("a"));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("worker 3"));
}

}  // namespace
}  // namespace conclave::transport
