// SPDX-License-Identifier: Apache-2.0

// Two micro-batches of a layer on their way at once: their frames are never
// confused, a fault of one ends both, and the step after it is right again.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "common/transport/wire.h"
#include "tests/sim/exchange_fixture.h"

namespace conclave::experts {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using transport::ExpertReply;

// Rows 0 .. 3 are micro-batch 0, called A, the others B.
constexpr int32_t kCut = 4;

class MicroBatchFaults : public ExchangeFixture {
 protected:
  MicroBatchFaults() : out_(x_.size()) {}

  size_t Begin(int32_t part) const { return part == 0 ? 0 : kCut; }
  size_t Rows(int32_t part) const { return part == 0 ? kCut : kRows - kCut; }
  template <typename T>
  std::span<T> Of(int32_t part, std::vector<T>& all, int32_t width) const {
    return std::span(all).subspan(Begin(part) * width, Rows(part) * width);
  }

  absl::StatusOr<Ticket> Start(Experts* experts, int32_t part, int32_t layer) {
    return experts->Start(LayerId{layer},
                          Of(part, x_, hidden_),
                          {.rows = static_cast<int32_t>(Rows(part)),
                           .top_k = kTopK,
                           .expert = Of(part, expert_, kTopK),
                           .weight = Of(part, weight_, kTopK),
                           .micro_batch = part});
  }
  // Starts both, `between` after one another.
  void StartBoth(absl::Duration between = absl::ZeroDuration()) {
    remote_->BeginStep(2);
    for (const int32_t part : {0, 1}) {
      const auto ticket = Start(remote_.get(), part, 3);
      ASSERT_TRUE(ticket.ok()) << ticket.status();
      tickets_[part] = *ticket;
      if (part == 0) clock_.Advance(between);
    }
  }
  absl::Status Finish(int32_t part) {
    return remote_->Finish(tickets_[part], Of(part, out_, hidden_));
  }
  void ExpectBothRight() {
    out_.assign(out_.size(), 0);
    for (const int32_t part : {0, 1}) {
      const absl::Status status = Finish(part);
      ASSERT_TRUE(status.ok()) << status;
    }
    EXPECT_EQ(out_, Right(3));
  }
  // The step has failed as said; no ticket is open, and the next one is right.
  void ExpectEnded(const absl::Status& status,
                   absl::StatusCode code,
                   const std::string& what) {
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr("worker w1 (b:2): exchange, layer 3"),
                      HasSubstr(what),
                      Not(HasSubstr("w0"))));
    for (const int32_t part : {0, 1}) {
      EXPECT_EQ(Finish(part).code(), absl::StatusCode::kFailedPrecondition);
    }
    StartBoth();
    ExpectBothRight();
  }

  Ticket tickets_[2];
  std::vector<float> out_;
};

// The order of a decoder: one part's next layer starts before the other's
// last one is finished.
TEST_F(MicroBatchFaults, LayersInterleaved) {
  for (Experts* experts : {static_cast<Experts*>(remote_.get()),
                           static_cast<Experts*>(local_.get())}) {
    experts->BeginStep(2);
    std::vector<std::vector<float>> got(8, std::vector<float>(x_.size()));
    for (int32_t layer = 0; layer <= 8; ++layer) {
      for (const int32_t part : {0, 1}) {
        if (layer > 0) {
          const absl::Status status = experts->Finish(
              tickets_[part],
              Of(part, got[static_cast<size_t>(layer - 1)], hidden_));
          ASSERT_TRUE(status.ok()) << status;
        }
        if (layer == 8) continue;
        const auto ticket = Start(experts, part, layer);
        ASSERT_TRUE(ticket.ok()) << ticket.status();
        tickets_[part] = *ticket;
      }
    }
    for (int32_t layer = 0; layer < 8; ++layer) {
      EXPECT_EQ(got[static_cast<size_t>(layer)], Right(layer)) << layer;
    }
  }
}

TEST_F(MicroBatchFaults, FinishedInAnyOrder) {
  StartBoth();
  ASSERT_TRUE(Finish(1).ok());
  ASSERT_TRUE(Finish(0).ok());
  EXPECT_EQ(out_, Right(3));
}

TEST_F(MicroBatchFaults, TheReplyForBComesFirst) {
  transport_.OnNextReply(kW1, [this](Buffer reply) {
    transport_.Deliver(kW1, std::move(reply), absl::Seconds(1));
  });
  StartBoth();
  ExpectBothRight();
  transport_.set_newest_first(true);
  StartBoth();
  ExpectBothRight();
}

// Equal rows, experts and shapes; only the tag tells whose reply it is.
TEST_F(MicroBatchFaults, EqualShapesAreNotConfused) {
  const auto row = static_cast<size_t>(kTopK);
  for (size_t i = 0; i < row * kCut; ++i) {
    expert_[i + row * kCut] = expert_[i];
    weight_[i + row * kCut] = weight_[i];
  }
  for (const bool newest_first : {false, true}) {
    transport_.set_newest_first(newest_first);
    remote_->BeginStep(2);
    for (const int32_t part : {0, 1}) {
      const auto ticket = remote_->Start(
          LayerId{3},
          std::span(x_).subspan(Begin(part) * hidden_, size_t{kCut} * hidden_),
          {.rows = kCut,
           .top_k = kTopK,
           .expert = std::span(expert_).first(row * kCut),
           .weight = std::span(weight_).first(row * kCut),
           .micro_batch = part});
      ASSERT_TRUE(ticket.ok()) << ticket.status();
      tickets_[part] = *ticket;
    }
    for (const int32_t part : {0, 1}) {
      ASSERT_TRUE(remote_
                      ->Finish(tickets_[part],
                               std::span(out_).subspan(Begin(part) * hidden_,
                                                       size_t{kCut} * hidden_))
                      .ok());
    }
    const std::vector<float> want = Right(3);
    const auto end = static_cast<std::ptrdiff_t>(size_t{2} * kCut * hidden_);
    EXPECT_EQ(std::vector(out_.begin(), out_.begin() + end),
              std::vector(want.begin(), want.begin() + end));
  }
}

TEST_F(MicroBatchFaults, SilenceForB) {
  transport_.OnNextReply(kW1, [this](Buffer reply) {
    transport_.Deliver(kW1, std::move(reply));
    transport_.OnNextReply(kW1, [](Buffer) {});
  });
  const absl::Time begin = clock_.Now();
  StartBoth(absl::Seconds(1));
  ASSERT_TRUE(Finish(0).ok());
  const absl::Status status = Finish(1);
  EXPECT_EQ(clock_.Now() - begin, absl::Seconds(1) + kDeadline);
  ExpectEnded(status, absl::StatusCode::kDeadlineExceeded, "no reply within");
}

TEST_F(MicroBatchFaults, SilenceForAEndsB) {
  transport_.OnNextReply(kW1, [](Buffer) {});
  const absl::Time begin = clock_.Now();
  StartBoth(absl::Seconds(1));
  const absl::Status status = Finish(0);
  EXPECT_EQ(clock_.Now() - begin, kDeadline);  // A's own
  ExpectEnded(status, absl::StatusCode::kDeadlineExceeded, "no reply within");
}

// A's reply comes while the next step waits for the same layer.
TEST_F(MicroBatchFaults, LateRepliesOfAFailedStepAreDropped) {
  transport_.OnNextReply(kW1, [this](Buffer reply) {
    transport_.Deliver(
        kW1, std::move(reply), kDeadline + absl::Milliseconds(1));
    transport_.OnNextReply(kW1, [this](Buffer late) {
      transport_.Deliver(
          kW1, std::move(late), kDeadline + absl::Milliseconds(2));
    });
  });
  StartBoth();
  EXPECT_EQ(Finish(0).code(), absl::StatusCode::kDeadlineExceeded);
  for (int32_t i = 0; i < 2; ++i) {
    transport_.OnNextReply(kW1, [this](Buffer reply) {
      transport_.Deliver(kW1, std::move(reply), absl::Seconds(1));
    });
  }
  StartBoth();
  ExpectBothRight();
}

TEST_F(MicroBatchFaults, Duplicates) {
  for (const WorkerId worker : {kW0, kW1}) {
    transport_.OnNextReply(worker, [this, worker](Buffer reply) {
      for (int32_t i = 0; i < 3; ++i) {
        transport_.Deliver(worker, Buffer::Copy(reply.bytes()));
      }
    });
  }
  StartBoth();
  ExpectBothRight();
}

// Replies to the other micro-batches of the steps around this one.
TEST_F(MicroBatchFaults, StaleReplies) {
  StartBoth();
  ExpectBothRight();
  const auto with_stale = [this](Buffer frame) {
    for (const int32_t off : {-2, -1, 2}) {
      ExpertReply stale = *transport::DecodeReply(frame.bytes());
      stale.tag.step += static_cast<uint64_t>(int64_t{off});
      if (stale.tag.step == 3 || stale.tag.step == 4) continue;  // this step's
      std::vector<float> wrong(stale.shards[0].sum.size() / sizeof(float), 9);
      stale.shards[0].sum = std::as_bytes(std::span(wrong));
      transport_.Deliver(kW1, transport::EncodeReply(stale));
    }
    transport_.Deliver(kW1, std::move(frame));
  };
  transport_.OnNextReply(kW1, with_stale);
  transport_.OnNextReply(kW1, with_stale);
  StartBoth();
  ExpectBothRight();
}

TEST_F(MicroBatchFaults, AnErrorForBEndsA) {
  transport_.OnNextReply(kW1, [this](Buffer reply) {
    transport_.Deliver(kW1, std::move(reply), absl::Seconds(1));
    transport_.OnNextReply(kW1, [this](Buffer frame) {
      const auto tag = transport::DecodeReply(frame.bytes())->tag;
      transport_.Deliver(
          kW1,
          transport::EncodeError({.tag = tag,
                                  .code = absl::StatusCode::kResourceExhausted,
                                  .message = "the barn is full"}));
    });
  });
  StartBoth();
  ExpectEnded(Finish(0), absl::StatusCode::kUnavailable, "the barn is full");
}

// The news comes while w0 alone is awaited for A.
TEST_F(MicroBatchFaults, TheLinkBreaksAfterA) {
  transport_.OnNextReply(kW0, [this](Buffer reply) {
    transport_.Deliver(kW0, std::move(reply), absl::Seconds(1));
  });
  transport_.OnNextReply(kW1, [this](Buffer reply) {
    transport_.Deliver(kW1, std::move(reply));
    transport_.OnNextReply(kW1, [this](Buffer) {
      transport_.Deliver(kW1, absl::UnavailableError("connection reset"));
    });
  });
  StartBoth();
  ExpectEnded(Finish(0), absl::StatusCode::kUnavailable, "connection reset");
}

TEST_F(MicroBatchFaults, BCannotBeSent) {
  remote_->BeginStep(2);
  const auto ticket = Start(remote_.get(), 0, 3);
  ASSERT_TRUE(ticket.ok()) << ticket.status();
  tickets_[0] = tickets_[1] = *ticket;
  transport_.RefuseNextSend(kW1, absl::UnavailableError("no link"));
  ExpectEnded(Start(remote_.get(), 1, 3).status(),
              absl::StatusCode::kUnavailable,
              "no link");
}

TEST_F(MicroBatchFaults, OneTicketEach) {
  for (Experts* experts : {static_cast<Experts*>(remote_.get()),
                           static_cast<Experts*>(local_.get())}) {
    experts->BeginStep(1);
    EXPECT_THAT(std::string(Start(experts, 1, 3).status().message()),
                HasSubstr("micro-batch 1 of a step of 1"));
    experts->BeginStep(2);
    EXPECT_TRUE(Start(experts, 1, 3).ok());
    EXPECT_EQ(Start(experts, 1, 4).status().code(),
              absl::StatusCode::kFailedPrecondition);
    EXPECT_TRUE(Start(experts, 0, 3).ok());
  }
}

}  // namespace
}  // namespace conclave::experts
