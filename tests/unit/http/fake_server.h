// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
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
      const std::lock_guard lock(mutex_);
      return static_cast<RequestId>(++last_id_);
    };
    out.submit = [this](GenerateRequest request,
                        TokenSink sink) -> absl::StatusOr<int32_t> {
      const std::lock_guard lock(mutex_);
      if (!refusal_.ok()) return refusal_;
      sinks_.emplace_back(request.id, std::move(sink));
      changed_.notify_all();
      return 3;
    };
    out.cancel = [this](RequestId id) {
      const std::lock_guard lock(mutex_);
      cancelled_.push_back(id);
      changed_.notify_all();
    };
    out.health = [this] {
      const std::lock_guard lock(mutex_);
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
    const std::lock_guard lock(mutex_);
    refusal_ = std::move(status);
  }
  void Ail(absl::Status status) {
    const std::lock_guard lock(mutex_);
    health_ = std::move(status);
  }
  // Waits for the n-th submitted request.
  TokenSink Sink(size_t n) {
    std::unique_lock lock(mutex_);
    if (!changed_.wait_for(
            lock, kPatience, [&] { return sinks_.size() > n; })) {
      ADD_FAILURE() << "request " << n << " was not submitted";
      return [](const TokenEvent&) {};
    }
    return sinks_[n].second;
  }
  bool WaitForCancels(size_t n) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(
        lock, kPatience, [&] { return cancelled_.size() >= n; });
  }
  size_t cancels() {
    const std::lock_guard lock(mutex_);
    return cancelled_.size();
  }

 private:
  static constexpr std::chrono::seconds kPatience{20};

  std::mutex mutex_;  // guards all below
  std::condition_variable changed_;
  uint64_t last_id_ = 0;
  absl::Status refusal_;
  absl::Status health_;
  std::vector<std::pair<RequestId, TokenSink>> sinks_;
  std::vector<RequestId> cancelled_;
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

  // As in the program: the server stops, the engine goes, the server goes.
  void TearDown() override {
    if (server_ != nullptr) server_->Stop(absl::ZeroDuration());
  }

  Metrics metrics_;
  std::unique_ptr<Server> server_;
  FakeEngine engine_;
};

}  // namespace conclave::http
