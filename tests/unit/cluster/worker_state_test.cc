// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cluster/worker_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "coordinator/cluster/worker_metrics.h"

namespace conclave::cluster {
namespace {

using ::testing::HasSubstr;

// Ten seconds into a load of 1,000 bytes, of which 200 were held before.
WorkerState Loading() {
  WorkerState state;
  state.load_began = absl::UnixEpoch();
  v1::LoadProgress news;
  news.set_bytes_done(600);
  news.set_bytes_total(1000);
  news.set_local_bytes(10);
  news.set_cache_bytes(40);
  news.set_peer_bytes(150);
  news.set_coordinator_bytes(200);
  Apply(news, absl::UnixEpoch() + absl::Seconds(10), &state);
  return state;
}

TEST(WorkerMetrics, ALoadHasRateTimeLeftAndSources) {
  Metrics metrics;
  WorkerMetrics shown(&metrics, "w0");
  shown.Set(Loading());
  const std::string text = metrics.Render();
  const auto expect = [&](const std::string& line) {
    EXPECT_THAT(text, HasSubstr("\nconclave_worker_load_" + line + "\n"));
  };
  expect("done_bytes{worker=\"w0\"} 600");
  expect("total_bytes{worker=\"w0\"} 1000");
  expect("bytes_per_second{worker=\"w0\"} 40");
  expect("eta_seconds{worker=\"w0\"} 10");
  expect("source_bytes{source=\"local\",worker=\"w0\"} 10");
  expect("source_bytes{source=\"cache\",worker=\"w0\"} 40");
  expect("source_bytes{source=\"peer\",worker=\"w0\"} 150");
  expect("source_bytes{source=\"coordinator\",worker=\"w0\"} 200");
}

TEST(WorkerMetrics, BeforeTheFirstBytesThereIsNoRate) {
  Metrics metrics;
  WorkerMetrics shown(&metrics, "w0");
  shown.Set(WorkerState());
  const std::string text = metrics.Render();
  EXPECT_THAT(text, HasSubstr("load_bytes_per_second{worker=\"w0\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("load_eta_seconds{worker=\"w0\"} 0\n"));
}

TEST(WorkerState, SaysWhereALoadCameFrom) {
  WorkerState state = Loading();
  state.bytes_done = 1'250'000'000;
  state.cache_bytes = 1'000'000'000;
  state.coordinator_bytes = 250'000'000;
  state.local_bytes = state.peer_bytes = 0;
  EXPECT_EQ(LoadedText(state),
            "loaded 1.250 GB in 10.0 s: 1.000 GB from its cache, 0.250 GB "
            "from here");
}

}  // namespace
}  // namespace conclave::cluster
