// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <gtest/gtest.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "coordinator/engine.h"
#include "tests/testing/simulated_clock.h"
#include "tests/testing/single_process.h"

namespace conclave::testing {

// What one request got, in order. Thread-safe.
class Reply {
 public:
  void Add(const TokenEvent& event) {
    const std::lock_guard<std::mutex> lock(mutex_);
    EXPECT_FALSE(ended_) << "an event after the last";
    content += event.content;
    reasoning += event.reasoning;
    for (const TokenLogprob& l : event.logprobs) logprobs.push_back(l);
    ++events_;
    last = event;
    ended_ = event.finish != FinishReason::kNone || !event.error.ok();
    changed_.notify_all();
  }
  void Wait() {
    WaitFor([this] { return ended_; });
  }
  void WaitForEvents(int count) {
    WaitFor([this, count] { return ended_ || events_ >= count; });
  }
  bool ended() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return ended_;
  }
  int events() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return events_;
  }

  // Read them after Wait.
  std::string content, reasoning;
  std::vector<TokenLogprob> logprobs;
  TokenEvent last;

 private:
  void WaitFor(const std::function<bool()>& done) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, done);
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  int events_ = 0;
  bool ended_ = false;
};

using ReplyPtr = std::shared_ptr<Reply>;

// An engine over the embedded model. `experts` null: local ones. `wrap` may put
// a decoder of its own around the real one.
class EngineHouse {
 public:
  using Wrap = std::function<std::unique_ptr<model::Decoder>(
      std::unique_ptr<model::Decoder>)>;

  explicit EngineHouse(
      v1::Limits limits = {},
      experts::Experts* experts = nullptr,
      std::function<absl::Status()> ready = nullptr,
      const Wrap& wrap = nullptr,
      kernels::Backend backend = kernels::Backend::kCpu,
      kernels::Activations activations = kernels::Activations::kF32,
      int32_t gpu = 0)
      : model_(kernels::Backend::kCpu) {
    if (limits.kv_tokens() == 0) limits.set_kv_tokens(4096);
    EngineParts parts;
    parts.checkpoint = &TinyModel();
    parts.caches = CachesFor(limits, TinyModel().config());
    auto decoder = model::Decoder::Create(
        TinyModel(),
        experts != nullptr || backend == kernels::Backend::kCuda
            ? experts
            : model_.local.get(),
        backend,
        &model_.pool,
        parts.caches,
        activations,
        {.gpu = gpu, .progress = nullptr, .routed_here = {}});
    EXPECT_TRUE(decoder.ok()) << decoder.status();
    parts.decoder = *std::move(decoder);
    if (wrap != nullptr) parts.decoder = wrap(std::move(parts.decoder));
    parts.clock = &clock;
    parts.metrics = &metrics;
    parts.limits = limits;
    parts.ready = std::move(ready);
    auto made = Engine::Create(std::move(parts));
    EXPECT_TRUE(made.ok()) << made.status();
    engine = *std::move(made);
  }

  // The number of a series in /metrics, -1 if it is not there.
  double Metric(const std::string& name) const {
    const std::string text = metrics.Render();
    const size_t at = text.find("\n" + name + " ");
    if (at == std::string::npos) return -1;
    return std::stod(text.substr(at + name.size() + 2));
  }

  absl::StatusOr<ReplyPtr> TrySubmit(GenerateRequest request,
                                     RequestId* id = nullptr) {
    request.id = engine->NextId();
    if (id != nullptr) *id = request.id;
    auto reply = std::make_shared<Reply>();
    const auto tokens =
        engine->Submit(std::move(request),
                       [reply](const TokenEvent& event) { reply->Add(event); });
    if (!tokens.ok()) return tokens.status();
    return reply;
  }
  ReplyPtr Submit(GenerateRequest request, RequestId* id = nullptr) {
    auto reply = TrySubmit(std::move(request), id);
    EXPECT_TRUE(reply.ok()) << reply.status();
    return reply.ok() ? *reply : nullptr;
  }
  ReplyPtr Run(GenerateRequest request) {
    ReplyPtr reply = Submit(std::move(request));
    reply->Wait();
    EXPECT_TRUE(reply->last.error.ok()) << reply->last.error;
    return reply;
  }

  SimulatedClock clock;
  Metrics metrics;

 private:
  SingleProcess model_;

 public:
  std::unique_ptr<Engine> engine;  // ends first
};

inline GenerateRequest Greedy(Prompt prompt, int32_t max_tokens) {
  GenerateRequest request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0;
  request.max_tokens = max_tokens;
  return request;
}

inline std::vector<int32_t> IdsOf(const Reply& reply) {
  std::vector<int32_t> out;
  for (const TokenLogprob& l : reply.logprobs) out.push_back(l.id);
  return out;
}

}  // namespace conclave::testing
