// SPDX-License-Identifier: Apache-2.0

// Faults of one layer's exchange on simulated time. Whatever a worker does,
// the layer ends with its right bits or with an error that names worker and
// phase, and the step after it is right again.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "common/transport/wire.h"
#include "tests/sim/exchange_fixture.h"
#include "tests/testing/seeded.h"

namespace conclave::experts {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using transport::ExpertReply;

class ExchangeFaults : public ExchangeFixture {};

TEST_F(ExchangeFaults, NoFault) {
  for (int32_t layer = 0; layer < 8; ++layer) ExpectRight(layer);
  EXPECT_THAT(metrics_.Render(),
              AllOf(HasSubstr("conclave_exchange_wait_seconds_count 8"),
                    HasSubstr("conclave_exchange_dispatch_seconds_count 8"),
                    HasSubstr("conclave_exchange_sent_bytes_total"),
                    Not(HasSubstr("received_bytes_total 0"))));
}

TEST_F(ExchangeFaults, TheOrderOfArrivalDoesNotMatter) {
  transport_.set_newest_first(true);
  ExpectRight();
}

TEST_F(ExchangeFaults, SilenceEndsAtTheDeadline) {
  transport_.OnNextReply(kW1, [](Buffer) {});
  const absl::Time begin = clock_.Now();
  const auto out = Step();
  EXPECT_EQ(clock_.Now() - begin, kDeadline);
  EXPECT_EQ(out.status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_THAT(std::string(out.status().message()),
              AllOf(HasSubstr("worker w1 (b:2): exchange, layer 3"),
                    HasSubstr("2.5s"),
                    Not(HasSubstr("w0"))));
  ExpectRight();
}

TEST_F(ExchangeFaults, SilenceOfAllNamesAll) {
  transport_.OnNextReply(kW0, [](Buffer) {});
  transport_.OnNextReply(kW1, [](Buffer) {});
  EXPECT_THAT(std::string(Step().status().message()),
              HasSubstr("worker w0 (a:1), w1 (b:2): exchange"));
  ExpectRight();
}

TEST_F(ExchangeFaults, AReplyJustInTimeCounts) {
  transport_.OnNextReply(kW1, [this](Buffer reply) {
    transport_.Deliver(kW1, std::move(reply), kDeadline);
  });
  ExpectRight();
}

TEST_F(ExchangeFaults, AReplyThatComesTooLateIsDropped) {
  for (const absl::Duration late :
       {absl::Nanoseconds(1), absl::Milliseconds(100)}) {
    transport_.OnNextReply(kW1, [this, late](Buffer reply) {
      transport_.Deliver(kW1, std::move(reply), kDeadline + late);
    });
    EXPECT_EQ(Step().status().code(), absl::StatusCode::kDeadlineExceeded);
    // Now it arrives while w1's answer of this step is awaited.
    transport_.OnNextReply(kW1, [this](Buffer reply) {
      transport_.Deliver(kW1, std::move(reply), absl::Seconds(1));
    });
    ExpectRight();
  }
}

TEST_F(ExchangeFaults, Garbage) {
  transport_.OnNextReply(kW1, [this](Buffer reply) {
    testing::Seeded random(5);
    for (std::byte& byte : reply.bytes()) byte = std::byte(random.Next() >> 24);
    transport_.Deliver(kW1, std::move(reply));
  });
  ExpectFailureOfW1(absl::StatusCode::kUnavailable, "garbage reply");
}

TEST_F(ExchangeFaults, TruncatedAnywhere) {
  for (const size_t size : {0u, 1u, 8u, 55u, 56u, 64u, 72u, 1000u, 5000u}) {
    SCOPED_TRACE(size);
    transport_.OnNextReply(kW1, [this, size](Buffer reply) {
      ASSERT_LT(size, reply.size());
      transport_.Deliver(kW1, Buffer::Copy(reply.bytes().first(size)));
    });
    ExpectFailureOfW1(absl::StatusCode::kUnavailable, "garbage reply");
  }
}

TEST_F(ExchangeFaults, AFlippedHeaderByteIsNeverAccepted) {
  const std::vector<float> right = Right(3);
  for (size_t at = 0; at < 72; ++at) {
    SCOPED_TRACE(at);
    transport_.OnNextReply(kW1, [this, at](Buffer reply) {
      reply.bytes()[at] ^= std::byte{0x55};
      transport_.Deliver(kW1, std::move(reply));
    });
    const auto out = Step();
    // The one field that a reply does not use is reply_dtype.
    if (out.ok()) {
      EXPECT_EQ(*out, right);
    } else {
      EXPECT_THAT(std::string(out.status().message()), HasSubstr("w1 (b:2)"));
    }
    ExpectRight();
  }
}

TEST_F(ExchangeFaults, StaleRepliesBeforeTheRightOne) {
  for (int field = 0; field < 3; ++field) {
    transport_.OnNextReply(kW1, [this, field](Buffer frame) {
      ExpertReply stale = *transport::DecodeReply(frame.bytes());
      if (field == 0) stale.tag.generation -= 1;
      if (field == 1) stale.tag.step -= 1;
      if (field == 2) stale.tag.layer = LayerId{2};
      // Were it taken, the result would be wrong.
      std::vector<float> wrong(stale.shards[0].sum.size() / sizeof(float), 9);
      stale.shards[0].sum = std::as_bytes(std::span(wrong));
      transport_.Deliver(kW1, transport::EncodeReply(stale));
      transport_.Deliver(
          kW1,
          transport::EncodeError({.tag = stale.tag,
                                  .code = absl::StatusCode::kInternal,
                                  .message = "old"}));
      transport_.Deliver(kW1, std::move(frame));
    });
    ExpectRight();
  }
}

TEST_F(ExchangeFaults, StaleRepliesOnlyAreSilence) {
  transport_.OnNextReply(
      kW1, Changed([](ExpertReply* reply) { reply->tag.step += 1; }));
  ExpectFailureOfW1(absl::StatusCode::kDeadlineExceeded, "no reply within");
}

TEST_F(ExchangeFaults, AFloodOfStaleRepliesEnds) {
  transport_.OnNextReply(kW1, [this](Buffer frame) {
    for (int i = 0; i < 1500; ++i) {
      ExpertReply reply = *transport::DecodeReply(frame.bytes());
      reply.tag.step -= 1;
      transport_.Deliver(kW1, transport::EncodeReply(reply));
    }
  });
  ExpectFailureOfW1(absl::StatusCode::kUnavailable, "floods");
}

TEST_F(ExchangeFaults, Duplicates) {
  transport_.OnNextReply(kW0, [this](Buffer reply) {
    for (int i = 0; i < 3; ++i) {
      transport_.Deliver(kW0, Buffer::Copy(reply.bytes()));
    }
  });
  remote_->BeginStep(1);
  for (const int32_t layer : {3, 4}) {  // the third copy meets layer 4
    const auto out = Layer(remote_.get(), layer);
    ASSERT_TRUE(out.ok()) << out.status();
    EXPECT_EQ(*out, Right(layer));
  }
}

TEST_F(ExchangeFaults, ErrorReply) {
  for (const bool tagged : {true, false}) {
    transport_.OnNextReply(kW1, [this, tagged](Buffer frame) {
      const auto reply = *transport::DecodeReply(frame.bytes());
      transport_.Deliver(kW1,
                         transport::EncodeError(
                             {.tag = tagged ? reply.tag : transport::FrameTag{},
                              .code = absl::StatusCode::kResourceExhausted,
                              .message = "the barn is full"}));
    });
    ExpectFailureOfW1(absl::StatusCode::kUnavailable, "the barn is full");
  }
}

TEST_F(ExchangeFaults, LinkBreaksWhileWaiting) {
  transport_.OnNextReply(kW1, [this](Buffer) {
    transport_.Deliver(kW1, absl::UnavailableError("connection reset"));
    transport_.Deliver(kW1, absl::UnavailableError("still broken"));
  });
  ExpectFailureOfW1(absl::StatusCode::kUnavailable, "connection reset");
}

TEST_F(ExchangeFaults, LinkIsBrokenBeforeSending) {
  transport_.RefuseNextSend(kW1, absl::UnavailableError("no link"));
  ExpectFailureOfW1(absl::StatusCode::kUnavailable, "no link");
}

TEST_F(ExchangeFaults, RepliesToSomethingElse) {
  const std::vector<std::pair<std::string, std::function<void(ExpertReply*)>>>
      changes = {
          {"hidden",
           [](ExpertReply* r) {
             r->hidden /= 2;
             r->shards[0].sum =
                 r->shards[0].sum.first(r->shards[0].sum.size() / 2);
           }},
          {"BF16 rows instead of F32",
           [](ExpertReply* r) {
             r->dtype = DType::kBF16;
             r->shards[0].sum =
                 r->shards[0].sum.first(r->shards[0].sum.size() / 2);
           }},
          {"0 shards", [](ExpertReply* r) { r->shards.clear(); }},
          {"shard 0", [](ExpertReply* r) { r->shards[0].shard = ShardId{0}; }},
          {"other rows",
           [](ExpertReply* r) {
             auto& shard = r->shards[0];
             const size_t row = shard.sum.size() / shard.row.size();
             shard.row = shard.row.subspan(1);
             shard.sum = shard.sum.subspan(row);
           }},
      };
  for (const auto& [what, change] : changes) {
    SCOPED_TRACE(what);
    transport_.OnNextReply(kW1, Changed(change));
    ExpectFailureOfW1(absl::StatusCode::kUnavailable, what);
  }
}

TEST_F(ExchangeFaults, AWorkerCannotAnswerForAnother) {
  transport_.OnNextReply(
      kW0, [this](Buffer reply) { transport_.Deliver(kW1, std::move(reply)); });
  ExpectFailureOfW1(absl::StatusCode::kUnavailable, "wrong reply: shard 0");
}

TEST_F(ExchangeFaults, AnAbandonedLayerDoesNotBlockTheNextStep) {
  remote_->BeginStep(1);
  ASSERT_TRUE(
      remote_->Start(LayerId{3}, x_, {kRows, kTopK, expert_, weight_}).ok());
  EXPECT_EQ(Layer(remote_.get(), 3).status().code(),
            absl::StatusCode::kFailedPrecondition);
  ExpectRight();
}

}  // namespace
}  // namespace conclave::experts
