// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cluster/membership.h"

#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/checkpoint/checkpoint.h"
#include "common/config/cluster_config.h"
#include "common/transport/wire.h"
#include "coordinator/cluster/placement.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/start_worker.h"
#include "tests/testing/tls_test.h"

namespace conclave::cluster {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using testing::StartWorker;
using testing::TlsTest;

constexpr char kModel[] = "deploy/models/qwen3.5-moe-tiny";

// A port that nobody listens on.
int FreePort() { return StartWorker("free")->port(); }

const checkpoint::Checkpoint& Model() {
  static const auto* model = checkpoint::Checkpoint::Open(kModel)->release();
  return *model;
}

ClusterParts Parts(const std::vector<int>& ports) {
  static auto* supply = new delivery::Supply(
      &Model(), delivery::Supply::Options{.cache = "", .clock = RealClock()});
  const checkpoint::Checkpoint* checkpoint = &Model();
  ClusterParts parts;
  parts.config = config::DefaultClusterConfig();
  parts.config.set_model(kModel);
  for (size_t i = 0; i < ports.size(); ++i) {
    v1::Worker* worker = parts.config.add_workers();
    worker->set_name(absl::StrCat("w", i));
    worker->set_address(absl::StrCat("127.0.0.1:", ports[i]));
    worker->set_share(static_cast<double>(i + 1));
  }
  parts.placement =
      *MakePlacement(parts.config, checkpoint->config().expert_shape());
  parts.config_sha256 = checkpoint->config().config_sha256;
  parts.supply = supply;
  parts.clock = RealClock();
  return parts;
}

absl::Time In(absl::Duration wait) { return RealClock()->Now() + wait; }

absl::Status Wait(Cluster* cluster, absl::Duration limit = absl::Seconds(60)) {
  return cluster->WaitReady(In(limit), [](const auto&) {});
}

// Waits until a worker is not ready.
std::string WaitLost(Cluster* cluster) {
  while (true) {
    const absl::Status ready = cluster->Ready();
    if (!ready.ok()) return std::string(ready.message());
    std::this_thread::yield();
  }
}

// One row through every worker; the answers name the shards that were asked.
void Exchange(Cluster* cluster, const ClusterParts& parts) {
  const auto checkpoint = *checkpoint::Checkpoint::Open(kModel);
  const int32_t hidden = checkpoint->config().hidden_size;
  const std::vector<float> x(static_cast<size_t>(hidden), 0.5f);
  const std::vector<int32_t> zero = {0};
  const std::vector<float> weight = {1.f};
  for (size_t i = 0; i < parts.placement.shards.size(); ++i) {
    transport::ExpertRequest request;
    request.tag = {.generation = cluster->generation(), .step = 1};
    request.row_count = 1;
    request.hidden = hidden;
    request.x = std::as_bytes(std::span(x));
    request.shards = {{parts.placement.shards[i].id, zero, zero, weight}};
    const WorkerId to = parts.placement.holder[i];
    ASSERT_TRUE(cluster->transport()->Send(to, EncodeRequest(request)).ok());
    auto delivery = cluster->transport()->Receive(In(absl::Seconds(60)));
    ASSERT_TRUE(delivery.ok()) << delivery.status();
    EXPECT_EQ(delivery->from, to);
    ASSERT_TRUE(delivery->frame.ok()) << delivery->frame.status();
    const auto reply = transport::DecodeReply(delivery->frame->bytes());
    ASSERT_TRUE(reply.ok()) << reply.status();
    ASSERT_EQ(reply->shards.size(), 1u);
    EXPECT_EQ(reply->shards[0].shard, parts.placement.shards[i].id);
  }
}

TEST(Cluster, NoWorkersAreReady) {
  auto cluster = Cluster::Start(Parts({}));
  ASSERT_TRUE(cluster.ok());
  EXPECT_TRUE((*cluster)->Ready().ok());
}

TEST(Cluster, WorkersLoadTheirSharesAndAnswer) {
  const auto w0 = StartWorker("w0"), w1 = StartWorker("w1");
  const ClusterParts parts = Parts({w0->port(), w1->port()});
  auto cluster = *Cluster::Start(parts);
  ASSERT_TRUE(Wait(cluster.get()).ok()) << cluster->Ready();
  const auto states = cluster->Workers();
  EXPECT_EQ(states[0].phase, Phase::kReady);
  EXPECT_EQ(states[0].bytes_done, states[0].bytes_total);
  EXPECT_GT(states[0].resident_bytes, 0u);
  // Shares 1 and 2, up to rounding to whole experts.
  EXPECT_GT(states[1].resident_bytes, states[0].resident_bytes * 3 / 2);
  Exchange(cluster.get(), parts);
}

TEST(Cluster, MissingWorkersAreNamedAndComeLate) {
  const auto w0 = StartWorker("w0");
  const int port = FreePort();
  Metrics metrics;
  ClusterParts parts = Parts({w0->port(), port});
  parts.metrics = &metrics;
  auto cluster = *Cluster::Start(parts);
  const absl::Status status = Wait(cluster.get(), absl::Milliseconds(500));
  EXPECT_THAT(metrics.Render(),
              HasSubstr("conclave_worker_ready{worker=\"w1\"} 0"));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  const std::string message(status.message());
  EXPECT_THAT(message, HasSubstr(absl::StrCat("worker w1 (127.0.0.1:", port)));
  EXPECT_THAT(message, HasSubstr("connect"));
  EXPECT_THAT(message, Not(HasSubstr("worker w0")));
  const auto w1 = StartWorker("w1", port);
  ASSERT_TRUE(Wait(cluster.get()).ok()) << cluster->Ready();
  EXPECT_THAT(metrics.Render(),
              HasSubstr("conclave_worker_ready{worker=\"w1\"} 1"));
  Exchange(cluster.get(), parts);
}

TEST(Cluster, RestartedWorkerLoadsAgain) {
  const auto w0 = StartWorker("w0");
  auto w1 = StartWorker("w1");
  const int port = w1->port();
  const ClusterParts parts = Parts({w0->port(), port});
  auto cluster = *Cluster::Start(parts);
  ASSERT_TRUE(Wait(cluster.get()).ok()) << cluster->Ready();
  for (int round = 0; round < 2; ++round) {
    w1 = nullptr;
    EXPECT_THAT(WaitLost(cluster.get()), HasSubstr("worker w1"));
    EXPECT_FALSE(cluster->transport()->Send(WorkerId{1}, Buffer(64)).ok());
    w1 = StartWorker("w1", port);
    ASSERT_TRUE(Wait(cluster.get()).ok()) << cluster->Ready();
    Exchange(cluster.get(), parts);
  }
}

TEST(Cluster, WrongNameAndWrongModelAreNamed) {
  const auto w0 = StartWorker("other");
  auto cluster = *Cluster::Start(Parts({w0->port()}));
  std::string message(Wait(cluster.get(), absl::Milliseconds(300)).message());
  EXPECT_THAT(message, HasSubstr("this is worker other"));
  const auto good = StartWorker("w0", 0, {}, kModel);
  ClusterParts parts = Parts({good->port()});
  parts.config_sha256 = std::string(64, 'a');
  cluster = *Cluster::Start(parts);
  message = std::string(Wait(cluster.get(), absl::Milliseconds(300)).message());
  EXPECT_THAT(message, HasSubstr("config.json"));
}

TEST(Cluster, NewestCoordinatorKeepsTheWorker) {
  const auto w0 = StartWorker("w0");
  const ClusterParts parts = Parts({w0->port()});
  auto old = *Cluster::Start(parts);
  ASSERT_TRUE(Wait(old.get()).ok());
  auto young = *Cluster::Start(parts);
  ASSERT_TRUE(Wait(young.get()).ok());
  EXPECT_THAT(WaitLost(old.get()), HasSubstr("worker w0"));
  EXPECT_FALSE(Wait(old.get(), absl::Seconds(1)).ok());
  EXPECT_THAT(std::string(old->Ready().message()),
              HasSubstr("a worker serves one coordinator"));
  EXPECT_TRUE(young->Ready().ok());
  Exchange(young.get(), parts);
}

// A real process, stopped and continued.
TEST(Cluster, StoppedWorkerIsSilentAndComesBack) {
  const int port = FreePort();
  const std::string listen = absl::StrCat("--listen=127.0.0.1:", port);
  const char* argv[] = {WORKER_PROGRAM,
                        listen.c_str(),
                        "--name=w0",
                        "--threads=1",
                        "--log_level=off",
                        nullptr};
  pid_t pid = 0;
  ASSERT_EQ(posix_spawn(&pid,
                        WORKER_PROGRAM,
                        nullptr,
                        nullptr,
                        const_cast<char**>(argv),
                        environ),
            0);
  ClusterParts parts = Parts({port});
  parts.config.mutable_deadlines()->set_exchange_s(0.3);
  auto cluster = *Cluster::Start(parts);
  ASSERT_TRUE(Wait(cluster.get()).ok()) << cluster->Ready();
  Exchange(cluster.get(), parts);
  kill(pid, SIGSTOP);
  EXPECT_THAT(WaitLost(cluster.get()), HasSubstr("no answer within 300ms"));
  EXPECT_EQ(cluster->Workers()[0].phase, Phase::kSilent);
  kill(pid, SIGCONT);
  ASSERT_TRUE(Wait(cluster.get()).ok()) << cluster->Ready();
  Exchange(cluster.get(), parts);
  // The end does not wait for a worker that is silent.
  kill(pid, SIGSTOP);
  cluster = nullptr;
  kill(pid, SIGCONT);
  kill(pid, SIGTERM);
  int status = 0;
  waitpid(pid, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

TEST_F(TlsTest, OnlyPeersOfOneAuthorityTalk) {
  const auto w0 = StartWorker("w0", 0, Tls("ca", "ca"));
  ClusterParts parts = Parts({w0->port()});
  *parts.config.mutable_tls() = Tls("ca", "ca");
  auto cluster = *Cluster::Start(parts);
  ASSERT_TRUE(Wait(cluster.get()).ok()) << cluster->Ready();
  Exchange(cluster.get(), parts);

  // A coordinator that shows another authority's certificate, one that does
  // not trust the worker's, one without TLS.
  for (const v1::Tls& tls :
       {Tls("ca", "stranger"), Tls("stranger", "ca"), v1::Tls()}) {
    *parts.config.mutable_tls() = tls;
    auto refused = *Cluster::Start(parts);
    EXPECT_FALSE(Wait(refused.get(), absl::Milliseconds(700)).ok());
    EXPECT_THAT(std::string(refused->Ready().message()), HasSubstr("connect"));
  }
  EXPECT_TRUE(cluster->Ready().ok());
}

TEST_F(TlsTest, MissingFilesAreNamed) {
  ClusterParts parts = Parts({});
  *parts.config.mutable_tls() = Tls("ca", "ca");
  parts.config.mutable_tls()->set_key("no/such.key");
  const auto cluster = Cluster::Start(parts);
  ASSERT_FALSE(cluster.ok());
  EXPECT_THAT(std::string(cluster.status().message()),
              HasSubstr("no/such.key"));
}

}  // namespace
}  // namespace conclave::cluster
