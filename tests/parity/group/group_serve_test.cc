// SPDX-License-Identifier: Apache-2.0
// A group behind the engine and the HTTP port, as `conclave serve --gpus` puts
// it there: the reference's tokens, and a rank that stalls while replies run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/clock.h"
#include "coordinator/http/router.h"
#include "coordinator/http/server.h"
#include "kernels/host/stream.h"
#include "tests/parity/group/group_runner.h"
#include "tests/unit/engine/engine_fixture.h"
#include "tests/unit/http/raw_client.h"

namespace conclave::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

constexpr absl::Duration kDeadline = absl::Seconds(3);

v1::Limits Four() {
  v1::Limits limits;
  limits.set_max_sequences(4);
  limits.set_kv_tokens(16384);
  return limits;
}

// An engine over a group; when `stall` is set the last rank stalls once, past
// the deadline, as soon as two requests run.
struct GroupHouse {
  explicit GroupHouse(const GroupSetting& setting) {
    const auto on_group = [&](std::unique_ptr<model::Decoder>) {
      auto members = MembersOf(TinyModel(), setting);
      kernels::host::StreamOf(members.back().queue.get())->fault = [this] {
        if (stall && house->engine->info().running > 1) {
          stall = false;
          RealClock()->SleepUntil(RealClock()->Now() + kDeadline * 1.5);
        }
        return absl::OkStatus();
      };
      const model::StateSizes sizes = CachesFor(Four(), TinyModel().config());
      auto made = model::GroupDecoder::Create(
          std::move(members),
          {.each = {.sizes = sizes,
                    .rows_max = sizes.step_rows,
                    .sequences_max = sizes.state_slots,
                    .exact = true},
           .form = setting.form,
           .deadline = kDeadline});
      EXPECT_TRUE(made.ok()) << made.status();
      return std::unique_ptr<model::Decoder>(*std::move(made));
    };
    house = std::make_unique<EngineHouse>(Four(), nullptr, nullptr, on_group);
  }

  std::atomic<bool> stall = false;
  std::unique_ptr<EngineHouse> house;
};

class GroupServe : public ::testing::TestWithParam<GroupSetting> {
 protected:
  void SetUp() override {
    CONCLAVE_REQUIRE_GROUP(GetParam().where);
    group_ = std::make_unique<GroupHouse>(GetParam());
  }
  EngineHouse& house() { return *group_->house; }

  std::unique_ptr<GroupHouse> group_;
};

std::vector<GroupSetting> Served() {
  constexpr auto kLone = model::GroupForm::kLone;
  return {{{.ranks = 2}, model::GroupForm::kSymmetric, {}},
          {{.ranks = 2}, kLone, {1, 3}}};
}

INSTANTIATE_TEST_SUITE_P(Forms,
                         GroupServe,
                         ::testing::ValuesIn(Served()),
                         [](const auto& info) { return info.param.Name(); });

// The reference's first tokens, without the end token, which shows no logprobs.
constexpr int32_t kTokens = 24;
std::vector<int32_t> Wanted(const GoldenPrompt& prompt) {
  std::vector<int32_t> out = prompt.greedy_until_eos();
  if (prompt.eos_at) out.pop_back();
  out.resize(std::min<size_t>(out.size(), kTokens));
  return out;
}

// Those with logprobs are chosen on the host, the others where the logits are.
TEST_P(GroupServe, GivesTheReferencesTokensAloneAndTogether) {
  const std::vector<std::string> names = {"len1", "len65", "story", "len63"};
  std::vector<std::string> alone;
  for (const std::string& name : names) {
    SCOPED_TRACE(name);
    GenerateRequest request = Greedy(FindGolden(name).ids, kTokens);
    request.logprobs = true;
    const ReplyPtr reply = house().Run(request);
    EXPECT_EQ(IdsOf(*reply), Wanted(FindGolden(name)));
    alone.push_back(reply->content);
  }
  std::vector<ReplyPtr> together;
  for (const std::string& name : names) {
    together.push_back(house().Submit(Greedy(FindGolden(name).ids, kTokens)));
    if (together.size() == 2) together[0]->WaitForEvents(3);
  }
  for (size_t i = 0; i < names.size(); ++i) {
    SCOPED_TRACE(names[i]);
    together[i]->Wait();
    EXPECT_TRUE(together[i]->last.error.ok()) << together[i]->last.error;
    EXPECT_EQ(together[i]->content, alone[i]);
  }
}

// A second turn, whose prompt begins with the first one and its reply.
TEST_P(GroupServe, ALaterTurnGivesTheCpusTokens) {
  EngineHouse host(Four());
  std::vector<int32_t> ids = FindGolden("story").ids;
  for (int32_t turn = 0; turn < 2; ++turn) {
    SCOPED_TRACE(turn);
    GenerateRequest request = Greedy(ids, 12);
    request.ignore_eos = true;
    request.logprobs = true;
    const std::vector<int32_t> got = IdsOf(*house().Run(request));
    EXPECT_EQ(got, IdsOf(*host.Run(request)));
    ids.insert(ids.end(), got.begin(), got.end());
    const std::vector<int32_t>& more = FindGolden("len65").ids;
    ids.insert(ids.end(), more.begin(), more.end());
  }
}

TEST_P(GroupServe, SeedsAreReproducibleInCompany) {
  GenerateRequest request = Greedy(FindGolden("len65").ids, 12);
  request.sampling.temperature = 1.3;
  request.sampling.seed = 7;
  request.ignore_eos = true;
  const std::string first = house().Run(request)->content;
  request.sampling.seed = 8;
  const ReplyPtr other = house().Submit(request);
  request.sampling.seed = 7;
  EXPECT_EQ(house().Run(request)->content, first);
  other->Wait();
  EXPECT_NE(other->content, first);
}

// The group's engine behind a port of its own.
class GroupPort {
 public:
  explicit GroupPort(Engine* engine) {
    http::EngineCalls calls{
        .next_id = [engine] { return engine->NextId(); },
        .submit =
            [engine](GenerateRequest request, TokenSink sink) {
              return engine->Submit(std::move(request), std::move(sink));
            },
        .cancel = [engine](RequestId id) { engine->Cancel(id); },
        .health = [engine] { return engine->Health(); },
        .info = [engine] { return engine->info(); }};
    auto made = http::Server::Start({},
                                    http::MakeRouter({.model = "tiny",
                                                      .api_key = "",
                                                      .clock = RealClock(),
                                                      .metrics = &metrics_},
                                                     std::move(calls)));
    EXPECT_TRUE(made.ok()) << made.status();
    server_ = *std::move(made);
  }
  ~GroupPort() { server_->Stop(absl::ZeroDuration()); }

  std::unique_ptr<http::Client> Ask(const std::string& prompt,
                                    int32_t tokens,
                                    bool stream) {
    auto client = std::make_unique<http::Client>(server_->port());
    client->Post("/v1/completions",
                 absl::StrCat("{\"prompt\": [",
                              absl::StrJoin(FindGolden(prompt).ids, ","),
                              "], \"temperature\": 0, \"ignore_eos\": true, "
                              "\"max_tokens\": ",
                              tokens,
                              stream ? ", \"stream\": true}" : "}"));
    return client;
  }
  std::string Health() {
    http::Client client(server_->port());
    client.Get("/health");
    return client.ReadResponse();
  }

 private:
  Metrics metrics_;
  std::unique_ptr<http::Server> server_;
};

class GroupServeFault : public GroupServe {};

INSTANTIATE_TEST_SUITE_P(Forms,
                         GroupServeFault,
                         ::testing::Values(Served()[0]),
                         [](const auto& info) { return info.param.Name(); });

TEST_P(GroupServeFault, AStallEndsTheRunningRequestsAndIsNamed) {
  GroupPort port(house().engine.get());
  constexpr int32_t kFew = 8;
  const std::string want = port.Ask("len63", kFew, false)->ReadResponse();
  EXPECT_THAT(want, StartsWith("HTTP/1.1 200 OK\r\n"));
  // One that has begun to stream, one that has sent nothing yet.
  const auto begun = port.Ask("len2", 12'000, true);
  begun->ReadUntil("data: {");
  group_->stall = true;
  const auto whole = port.Ask("len65", 1500, false);
  const auto named =
      AllOf(HasSubstr("rank 1 (device 1) did not come to the sum after the "),
            HasSubstr(" of layer "),
            HasSubstr("within 3s"));
  EXPECT_THAT(whole->ReadResponse(), AllOf(StartsWith("HTTP/1.1 503 "), named));
  EXPECT_THAT(
      begun->ReadUntil("0\r\n\r\n"),
      AllOf(HasSubstr("\"code\":503"), named, Not(HasSubstr("[DONE]"))));
  // The group is whole again.
  EXPECT_THAT(port.Health(), StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_TRUE(house().engine->Lost().ok());
  const std::string again = port.Ask("len63", kFew, false)->ReadResponse();
  const auto text = [](const std::string& reply) {
    const size_t at = reply.find("\"text\":");
    return reply.substr(at, reply.find("\"logprobs\"", at) - at);
  };
  EXPECT_THAT(again, StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_EQ(text(again), text(want));
  // All blocks are back: this one needs most of them.
  GenerateRequest all = Greedy(FindGolden("len2").ids, 16'000);
  all.stop = {"a"};
  house().Run(std::move(all));
}

}  // namespace
}  // namespace conclave::testing
