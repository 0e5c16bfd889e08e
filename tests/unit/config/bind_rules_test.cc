// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "common/config/cluster_config.h"

namespace conclave::config {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(ParseHostPort, AcceptsNamesAndBothAddressFamilies) {
  const struct {
    const char* address;
    const char* host;
    int port;
  } kCases[] = {
      {"127.0.0.1:8080", "127.0.0.1", 8080},
      {"mini-1.local:1", "mini-1.local", 1},
      {"[::1]:65535", "::1", 65535},
      {"[fe80::1:2]:80", "fe80::1:2", 80},
      {"0.0.0.0:0", "0.0.0.0", 0},
  };
  for (const auto& c : kCases) {
    const auto parsed = ParseHostPort(c.address);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(parsed->host, c.host);
    EXPECT_EQ(parsed->port, c.port);
  }
}

TEST(ParseHostPort, RefusesTheRestWithAReason) {
  const struct {
    const char* address;
    const char* why;
  } kCases[] = {
      {"", "the port is missing"},
      {"localhost", "the port is missing"},
      {":80", "0.0.0.0 means every interface"},
      {"h:", "the port must be a number"},
      {"h:65536", "the port must be a number"},
      {"h:-1", "the port must be a number"},
      {"h: 1", "the port must be a number"},
      {"h:1x", "the port must be a number"},
      {"::1:80", "write IPv6 as [ADDRESS]:PORT"},
      {"[::1]", "write IPv6 as [ADDRESS]:PORT"},
      {"[h]:80", "no IPv6 address"},
      {"a b:80", "neither a name nor an address"},
      {"http://h:80", "write IPv6"},
  };
  for (const auto& c : kCases) {
    const absl::Status status = ParseHostPort(c.address).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.address;
    EXPECT_THAT(std::string(status.message()),
                AllOf(HasSubstr(c.why), HasSubstr(c.address)));
  }
  EXPECT_FALSE(ParseHostPort(std::string(1000, 'h') + ":1").ok());
}

TEST(IsLoopback, KnowsTheWholeBlockAndNothingElse) {
  for (const char* host : {"127.0.0.1", "127.8.9.1", "localhost", "::1"}) {
    EXPECT_TRUE(IsLoopback({host, 1})) << host;
  }
  for (const char* host : {"0.0.0.0",
                           "::",
                           "192.168.1.127",
                           "127.evil.org",
                           "128.0.0.1",
                           "localhost.evil.org",
                           ""}) {
    EXPECT_FALSE(IsLoopback({host, 1})) << host;
  }
}

TEST(SpinUs, StopsWhereSpinnersOutnumberCores) {
  v1::ClusterConfig config = DefaultClusterConfig();
  EXPECT_EQ(SpinUs(config, 50, 1), 50);
  EXPECT_EQ(SpinUs(config, -1, 8), 0);
  config.add_workers()->set_address("127.0.0.1:1");
  config.add_workers()->set_address("10.0.0.2:1");  // another machine
  EXPECT_EQ(SpinUs(config, 50, 2), 50);
  EXPECT_EQ(SpinUs(config, 50, 1), 0);
  config.add_workers()->set_address("localhost:2");
  EXPECT_EQ(SpinUs(config, 50, 2), 0);
  EXPECT_EQ(SpinUs(config, 7, 3), 7);
}

TEST(CheckHttpBind, NeedsAKeyOutsideLoopback) {
  v1::ClusterConfig config = DefaultClusterConfig();
  EXPECT_TRUE(CheckHttpBind(config).ok());
  config.mutable_coordinator()->set_listen("0.0.0.0:8080");
  const absl::Status open = CheckHttpBind(config);
  EXPECT_EQ(open.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(open.message()),
              AllOf(HasSubstr("coordinator.listen: 0.0.0.0:8080"),
                    HasSubstr("coordinator.api_key_file"),
                    HasSubstr("insecure: true")));
  config.mutable_coordinator()->set_api_key("k");
  EXPECT_TRUE(CheckHttpBind(config).ok());
  config.mutable_coordinator()->clear_api_key();
  config.set_insecure(true);
  EXPECT_TRUE(CheckHttpBind(config).ok());
}

TEST(CheckHttpBind, AKeyFileThatWasNotReadIsNoKey) {
  v1::ClusterConfig config = DefaultClusterConfig();
  config.set_insecure(true);
  config.mutable_coordinator()->set_api_key_file("k");
  EXPECT_EQ(CheckHttpBind(config).code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(CheckWorkerBind, NeedsMutualTlsOutsideLoopback) {
  v1::ClusterConfig config = DefaultClusterConfig();
  v1::Worker worker;
  worker.set_name("mini-1");
  worker.set_address("127.0.0.1:7101");
  EXPECT_TRUE(CheckWorkerBind(config, worker).ok());
  worker.set_address("192.168.1.21:7101");
  const absl::Status open = CheckWorkerBind(config, worker);
  EXPECT_EQ(open.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(open.message()),
              AllOf(HasSubstr("mini-1"),
                    HasSubstr("192.168.1.21:7101"),
                    HasSubstr("tls.ca, tls.cert and tls.key"),
                    HasSubstr("insecure: true")));
  // A key on the HTTP port does not protect the exchange.
  config.mutable_coordinator()->set_api_key("k");
  EXPECT_FALSE(CheckWorkerBind(config, worker).ok());
  config.mutable_tls()->set_ca("ca");
  EXPECT_FALSE(CheckWorkerBind(config, worker).ok());
  config.mutable_tls()->set_cert("cert");
  config.mutable_tls()->set_key("key");
  EXPECT_TRUE(CheckWorkerBind(config, worker).ok());
  // TLS is the control plane's alone.
  config.mutable_exchange()->set_over("nccl");
  EXPECT_THAT(std::string(CheckWorkerBind(config, worker).message()),
              HasSubstr("exchange.over: nccl sends rows without TLS"));
  config.clear_tls();
  config.set_insecure(true);
  EXPECT_TRUE(CheckWorkerBind(config, worker).ok());
}

}  // namespace
}  // namespace conclave::config
