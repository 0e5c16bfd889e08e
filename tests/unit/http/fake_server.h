// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/match.h"
#include "absl/synchronization/mutex.h"
#include "coordinator/http/router.h"
#include "coordinator/http/server.h"
#include "gtest/gtest.h"
#include "tests/unit/http/raw_client.h"

// A server before a fake engine.
namespace conclave::http {

// Answers in the engine's place; the test says when.
class FakeEngine {
 public:
  EngineCalls Calls() {
    EngineCalls out;
    out.next_id = [this] {
      absl::MutexLock lock(&mutex_);
      return static_cast<RequestId>(++last_id_);
    };
    out.submit = [this](GenerateRequest request,
                        TokenSink sink) -> absl::StatusOr<int32_t> {
      absl::MutexLock lock(&mutex_);
      if (!refusal_.ok()) return refusal_;
      sinks_.emplace_back(request.id, std::move(sink));
      return 3;
    };
    out.cancel = [this](RequestId id) {
      absl::MutexLock lock(&mutex_);
      cancelled_.push_back(id);
    };
    out.health = [this] {
      absl::MutexLock lock(&mutex_);
      return health_;
    };
    out.info = [] {
      Engine::Info info;
      info.max_context = 4096;
      return info;
    };
    return out;
  }

  void Refuse(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    refusal_ = std::move(status);
  }
  void Ail(absl::Status status) {
    absl::MutexLock lock(&mutex_);
    health_ = std::move(status);
  }
  // Waits for the n-th submitted request.
  TokenSink Sink(size_t n) {
    absl::MutexLock lock(&mutex_);
    const auto there = [this, n]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return sinks_.size() > n;
    };
    if (!mutex_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(20))) {
      ADD_FAILURE() << "request " << n << " was not submitted";
      return [](const TokenEvent&) {};
    }
    return sinks_[n].second;
  }
  bool WaitForCancels(size_t n) {
    absl::MutexLock lock(&mutex_);
    const auto there = [this, n]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
      return cancelled_.size() >= n;
    };
    return mutex_.AwaitWithTimeout(absl::Condition(&there), absl::Seconds(20));
  }
  size_t cancels() {
    absl::MutexLock lock(&mutex_);
    return cancelled_.size();
  }

 private:
  absl::Mutex mutex_;
  uint64_t last_id_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);
  absl::Status health_ ABSL_GUARDED_BY(mutex_);
  std::vector<std::pair<RequestId, TokenSink>> sinks_ ABSL_GUARDED_BY(mutex_);
  std::vector<RequestId> cancelled_ ABSL_GUARDED_BY(mutex_);
};

inline constexpr char kChat[] =
    R"({"messages": [{"role": "user", "content": "hi"}]})";
inline constexpr char kChatStream[] =
    R"({"messages": [{"role": "user", "content": "hi"}], "stream": true,
        "stream_options": {"include_usage": true}})";

inline TokenEvent Text(std::string text) {
  TokenEvent event;
  event.content = std::move(text);
  return event;
}
inline TokenEvent End(FinishReason finish = FinishReason::kStop) {
  TokenEvent event;
  event.finish = finish;
  event.prompt_tokens = 3;
  event.completion_tokens = 2;
  return event;
}
inline TokenEvent Broken() {
  TokenEvent event;
  event.error = absl::UnavailableError("exchange: worker w1 is gone");
  return event;
}

class ServerTest : public ::testing::Test {
 protected:
  void Start(ServerOptions options = {}, std::string api_key = "") {
    RouterOptions router{.model = "tiny",
                         .api_key = std::move(api_key),
                         .clock = RealClock(),
                         .metrics = &metrics_};
    auto server = Server::Start(options, MakeRouter(router, engine_.Calls()));
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
  }
  std::unique_ptr<Client> Connect() {
    return std::make_unique<Client>(server_->port());
  }
  // Waits until the metrics show the line.
  bool MetricsShow(const std::string& line) {
    for (int i = 0; i < 200; ++i) {
      if (absl::StrContains(metrics_.Render(), line)) return true;
      RealClock()->SleepUntil(RealClock()->Now() + absl::Milliseconds(50));
    }
    return false;
  }

  Metrics metrics_;
  FakeEngine engine_;
  std::unique_ptr<Server> server_;
};

}  // namespace conclave::http
