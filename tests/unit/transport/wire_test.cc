// SPDX-License-Identifier: Apache-2.0
#include "common/transport/wire.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>

#include "common/limits.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/transport/wire_samples.h"

namespace conclave::transport {
namespace {

using ::testing::HasSubstr;

template <typename T>
bool Same(std::span<const T> a, std::span<const T> b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size_bytes()) == 0);
}

// A request with two entries: slice 1 of shard 2 for rows 0 and 2.
struct Small {
  std::vector<int32_t> slice = {1, 1};
  std::vector<int32_t> row = {0, 2};
  std::vector<float> weight = {0.25f, 0.75f};
  std::vector<float> x = {1, 2, 3, 4, 5, 6};
  int32_t row_count = 3;
  Buffer Encode() const {
    ExpertRequest request;
    request.tag = {.generation = 1, .step = 2, .layer = LayerId{3}};
    request.row_count = row_count;
    request.hidden = static_cast<int32_t>(x.size()) / row_count;
    request.shards = {{ShardId{2}, slice, row, weight}};
    request.x = std::as_bytes(std::span(x));
    return EncodeRequest(request);
  }
};

std::string WhyNot(const Buffer& frame) {
  const auto request = DecodeRequest(frame.bytes());
  return request.ok() ? "" : std::string(request.status().message());
}

template <typename T>
Buffer With(Buffer frame, size_t offset, T value) {
  std::memcpy(frame.data() + offset, &value, sizeof(value));
  return frame;
}

TEST(Wire, RequestsRoundTrip) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    testing::RequestSample sample;
    FillSample(seed, &sample);
    const ExpertRequest& in = sample.request;
    const Buffer frame = EncodeRequest(in);
    ASSERT_EQ(*PeekKind(frame.bytes()), FrameKind::kRequest);
    const auto out = DecodeRequest(frame.bytes());
    ASSERT_TRUE(out.ok()) << out.status();
    EXPECT_EQ(out->tag, in.tag);
    EXPECT_EQ(out->row_count, in.row_count);
    EXPECT_EQ(out->hidden, in.hidden);
    EXPECT_EQ(out->dtype, in.dtype);
    EXPECT_EQ(out->reply_dtype, in.reply_dtype);
    EXPECT_TRUE(Same(out->x, in.x));
    ASSERT_EQ(out->shards.size(), in.shards.size());
    for (size_t i = 0; i < in.shards.size(); ++i) {
      EXPECT_EQ(out->shards[i].shard, in.shards[i].shard);
      EXPECT_TRUE(Same(out->shards[i].slice, in.shards[i].slice));
      EXPECT_TRUE(Same(out->shards[i].row, in.shards[i].row));
      EXPECT_TRUE(Same(out->shards[i].weight, in.shards[i].weight));
    }
  }
}

TEST(Wire, RepliesRoundTrip) {
  for (uint32_t seed = 0; seed < 300; ++seed) {
    SCOPED_TRACE(seed);
    testing::ReplySample sample;
    FillSample(seed, &sample);
    const ExpertReply& in = sample.reply;
    const Buffer frame = EncodeReply(in);
    ASSERT_EQ(*PeekKind(frame.bytes()), FrameKind::kReply);
    const auto out = DecodeReply(frame.bytes());
    ASSERT_TRUE(out.ok()) << out.status();
    EXPECT_EQ(out->tag, in.tag);
    EXPECT_EQ(out->hidden, in.hidden);
    EXPECT_EQ(out->dtype, in.dtype);
    ASSERT_EQ(out->shards.size(), in.shards.size());
    for (size_t i = 0; i < in.shards.size(); ++i) {
      EXPECT_EQ(out->shards[i].shard, in.shards[i].shard);
      EXPECT_TRUE(Same(out->shards[i].row, in.shards[i].row));
      EXPECT_TRUE(Same(out->shards[i].sum, in.shards[i].sum));
    }
  }
}

TEST(Wire, ErrorsRoundTripAndLongOnesAreCut) {
  ErrorReply in{.tag = {.generation = 9, .step = 8, .layer = LayerId{7}},
                .code = absl::StatusCode::kFailedPrecondition,
                .message = "worker w1 holds no shard 4"};
  auto out = DecodeError(EncodeError(in).bytes());
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(out->tag, in.tag);
  EXPECT_EQ(out->code, in.code);
  EXPECT_EQ(out->message, in.message);
  in.message.assign(100'000, 'x');
  const Buffer frame = EncodeError(in);
  out = DecodeError(frame.bytes());
  ASSERT_TRUE(out.ok()) << out.status();
  EXPECT_EQ(out->message.size(), 4096u);
  // A success is no error.
  EXPECT_FALSE(
      DecodeError(With(Buffer::Copy(frame.bytes()), 36, 0).bytes()).ok());
}

// Every prefix is refused, and no byte after it is read (the address sanitizer
// watches the exact allocation).
TEST(Wire, TruncatedFramesAreRefused) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    testing::RequestSample sample;
    FillSample(seed, &sample);
    const Buffer frame = EncodeRequest(sample.request);
    testing::ReplySample reply_sample;
    FillSample(seed, &reply_sample);
    const Buffer reply = EncodeReply(reply_sample.reply);
    for (size_t size = 0; size < frame.size(); ++size) {
      Buffer cut = Buffer::Copy(frame.bytes().first(size));
      EXPECT_FALSE(DecodeRequest(cut.bytes()).ok());
      // Also when the header agrees with the size.
      if (size >= 16) {
        cut = With(std::move(cut), 8, static_cast<uint64_t>(size));
        EXPECT_FALSE(DecodeRequest(cut.bytes()).ok()) << seed << " " << size;
      }
    }
    for (size_t size = 16; size < reply.size(); ++size) {
      const Buffer cut = With(Buffer::Copy(reply.bytes().first(size)),
                              8,
                              static_cast<uint64_t>(size));
      EXPECT_FALSE(DecodeReply(cut.bytes()).ok()) << seed << " " << size;
    }
  }
}

TEST(Wire, ProbesRoundTripWithinTheLimit) {
  const Buffer frame =
      EncodeProbe({.tag = {.generation = 1, .step = 2, .layer = LayerId{3}},
                   .payload_bytes = 40,
                   .reply_bytes = 1 << 20});
  ASSERT_EQ(*PeekKind(frame.bytes()), FrameKind::kProbe);
  const auto probe = DecodeProbe(frame.bytes());
  ASSERT_TRUE(probe.ok()) << probe.status();
  EXPECT_EQ(probe->tag, (FrameTag{1, 2, LayerId{3}}));
  EXPECT_EQ(probe->payload_bytes, 40u);
  EXPECT_EQ(probe->reply_bytes, uint64_t{1} << 20);
  for (const int32_t bad : {-1, INT32_MAX}) {
    const Buffer wrong = With(Buffer::Copy(frame.bytes()), 40, bad);
    EXPECT_FALSE(DecodeProbe(wrong.bytes()).ok()) << bad;
  }
  EXPECT_THAT(WhyNot(frame), HasSubstr("kind"));
}

TEST(Wire, StepsRoundTripWithinTheLimit) {
  const StepFrame step{.tag = {.generation = 1, .step = 2},
                       .link = uint64_t{1} << 40,
                       .rows = 9,
                       .record = true};
  const Buffer frame = EncodeStep(step);
  ASSERT_EQ(*PeekKind(frame.bytes()), FrameKind::kStep);
  const auto got = DecodeStep(frame.bytes());
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(*got, step);
  for (const int32_t bad : {-1, 0, limits::kLinkRowsMax + 1}) {
    const Buffer wrong = With(Buffer::Copy(frame.bytes()), 40, bad);
    EXPECT_FALSE(DecodeStep(wrong.bytes()).ok()) << bad;
  }
  const Buffer cut =
      With(Buffer::Copy(frame.bytes().first(56)), 8, uint64_t{56});
  EXPECT_FALSE(DecodeStep(cut.bytes()).ok());
  EXPECT_THAT(WhyNot(frame), HasSubstr("kind"));
}

TEST(Wire, SurplusBytesAreRefused) {
  const Buffer frame = Small().Encode();
  Buffer longer(frame.size() + 8);
  std::memset(longer.data(), 0, longer.size());
  std::memcpy(longer.data(), frame.data(), frame.size());
  EXPECT_THAT(WhyNot(longer), HasSubstr("header says"));
  longer = With(std::move(longer), 8, static_cast<uint64_t>(longer.size()));
  EXPECT_THAT(WhyNot(longer), HasSubstr("surplus"));
}

TEST(Wire, HeadersAreChecked) {
  EXPECT_EQ(WhyNot(Small().Encode()), "");
  EXPECT_THAT(WhyNot(With(Small().Encode(), 0, 1)), HasSubstr("magic"));
  EXPECT_THAT(WhyNot(With(Small().Encode(), 4, uint16_t{999})),
              HasSubstr("protocol version 999"));
  EXPECT_THAT(WhyNot(With(Small().Encode(), 6, uint8_t{2})), HasSubstr("kind"));
  EXPECT_THAT(WhyNot(With(Small().Encode(), 32, -1)), HasSubstr("layer"));
  EXPECT_THAT(WhyNot(With(Small().Encode(), 32, 1 << 20)), HasSubstr("layer"));
  for (const int32_t bad : {-1, limits::kShardsMax + 1, 1 << 30}) {
    EXPECT_THAT(WhyNot(With(Small().Encode(), 36, bad)), HasSubstr("shards"));
  }
  for (const int32_t bad : {-1, limits::kStepRowsMax + 1, 1 << 30}) {
    EXPECT_THAT(WhyNot(With(Small().Encode(), 40, bad)), HasSubstr("rows"));
  }
  for (const int32_t bad : {-1, 0, limits::kHiddenMax + 1, 1 << 30}) {
    EXPECT_THAT(WhyNot(With(Small().Encode(), 44, bad)), HasSubstr("hidden"));
  }
  EXPECT_THAT(WhyNot(With(Small().Encode(), 48, uint8_t{3})), HasSubstr("F32"));
  EXPECT_THAT(WhyNot(With(Small().Encode(), 49, uint8_t{9})), HasSubstr("F32"));
  // The shard's id and count.
  EXPECT_THAT(WhyNot(With(Small().Encode(), 56, -2)), HasSubstr("shard -2"));
  for (const int32_t bad : {3, 1 << 30, std::numeric_limits<int32_t>::max()}) {
    EXPECT_NE(WhyNot(With(Small().Encode(), 60, bad)), "");
  }
  EXPECT_THAT(WhyNot(With(Small().Encode(), 60, -1)), HasSubstr("negative"));
}

TEST(Wire, MisalignedMemoryIsRefused) {
  const Buffer frame = Small().Encode();
  Buffer shifted(1024);
  ASSERT_LE(frame.size() + 4, shifted.size());
  for (size_t i = 0; i < frame.size(); ++i) {
    shifted.data()[i + 4] = frame.data()[i];
  }
  const auto request = DecodeRequest(shifted.bytes().subspan(4, frame.size()));
  ASSERT_FALSE(request.ok());
  EXPECT_THAT(std::string(request.status().message()), HasSubstr("aligned"));
}

TEST(Wire, EntriesAreChecked) {
  Small small;
  small.row = {0, 3};
  EXPECT_THAT(WhyNot(small.Encode()), HasSubstr("row 3 of 3"));
  small.row = {-1, 2};
  EXPECT_THAT(WhyNot(small.Encode()), HasSubstr("row -1"));
  small.row = {2, 0};
  EXPECT_THAT(WhyNot(small.Encode()), HasSubstr("sorted"));
  small.row = {2, 2};
  EXPECT_THAT(WhyNot(small.Encode()), HasSubstr("sorted"));
  small.slice = {2, 1};
  small.row = {0, 2};
  EXPECT_THAT(WhyNot(small.Encode()), HasSubstr("sorted"));
  small.slice = {1, limits::kExpertsMax};
  EXPECT_THAT(WhyNot(small.Encode()), HasSubstr("slice"));
  small.slice = {1, 2};
  small.row = {2, 0};  // a new slice may begin at a lower row
  EXPECT_EQ(WhyNot(small.Encode()), "");
  for (const float bad : {std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN()}) {
    small.weight = {0.5f, bad};
    EXPECT_THAT(WhyNot(small.Encode()), HasSubstr("finite"));
  }
}

TEST(Wire, FlippedBytesNeverEscape) {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    testing::RequestSample sample;
    FillSample(seed, &sample);
    const Buffer good = EncodeRequest(sample.request);
    testing::Seeded seeded(seed);
    for (int i = 0; i < 200; ++i) {
      Buffer frame = Buffer::Copy(good.bytes());
      const auto at = static_cast<size_t>(
          seeded.Int(static_cast<int32_t>(std::min<size_t>(good.size(), 256))));
      frame.data()[at] = static_cast<std::byte>(seeded.Next() >> 13);
      const auto request = DecodeRequest(frame.bytes());
      if (!request.ok()) continue;
      // What is accepted obeys the rules, whatever was flipped.
      for (const ShardEntries& shard : request->shards) {
        for (size_t e = 0; e < shard.row.size(); ++e) {
          ASSERT_GE(shard.row[e], 0);
          ASSERT_LT(shard.row[e], request->row_count);
          ASSERT_TRUE(std::isfinite(shard.weight[e]));
        }
      }
    }
  }
}

}  // namespace
}  // namespace conclave::transport
