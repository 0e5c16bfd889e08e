// SPDX-License-Identifier: Apache-2.0
#include "common/metrics.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace conclave {
namespace {

using ::testing::HasSubstr;

TEST(MetricsTest, RendersWhatWasCounted) {
  Metrics metrics;
  metrics.AddCounter("conclave_steps_total", "Steps.").Add();
  metrics.AddCounter("conclave_steps_total", "Steps.").Add(2);
  metrics.AddGauge("conclave_rows", "Rows.", {{"kind", "decode"}}).Set(5);
  metrics.AddGauge("conclave_rows", "Rows.", {{"kind", "prefill"}}).Set(7);
  Histogram step =
      metrics.AddHistogram("conclave_step_seconds", "Step.", {0.1, 1});
  step.Observe(0.05);
  step.Observe(0.5);
  const std::string text = metrics.Render();
  EXPECT_THAT(text, HasSubstr("# HELP conclave_steps_total Steps.\n"));
  EXPECT_THAT(text, HasSubstr("\nconclave_steps_total 3\n"));
  EXPECT_THAT(text, HasSubstr("conclave_rows{kind=\"decode\"} 5\n"));
  EXPECT_THAT(text, HasSubstr("conclave_rows{kind=\"prefill\"} 7\n"));
  EXPECT_THAT(text, HasSubstr("conclave_step_seconds_count 2\n"));
  EXPECT_THAT(text, HasSubstr("conclave_step_seconds_bucket{le=\"0.1\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("conclave_step_seconds_bucket{le=\"1\"} 2\n"));
}

}  // namespace
}  // namespace conclave
