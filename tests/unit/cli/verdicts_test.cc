// SPDX-License-Identifier: Apache-2.0
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "coordinator/cli/doctor_verdicts.h"

namespace conclave::cli {
namespace {

using cluster::Reach;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Three workers on hosts of their own, all well.
Findings Well() {
  Findings found;
  found.version = "1.2.3";
  found.listen = "127.0.0.1:8080";
  found.coordinator.set_memory_free_gb(64);
  found.needs_bytes = 1 << 30;
  for (int i = 0; i < 3; ++i) {
    WorkerFindings& f = found.workers.emplace_back();
    f.worker.set_name(absl::StrCat("w", i));
    f.worker.set_address(absl::StrCat("10.0.0.", i + 2, ":7101"));
    f.checkup.version = "1.2.3";
    f.checkup.tells_time = true;
    f.checkup.clock_error_s = 1e-4;
    f.figures.set_name(f.worker.name());
    f.figures.set_round_trip_us(150);
    f.figures.set_out_gb_per_s(1.1);
    f.figures.set_back_gb_per_s(1.0);
    f.figures.set_memory_free_gb(32);
    f.needs_bytes = uint64_t{30} * 1000 * 1000 * 1000;
  }
  return found;
}

std::vector<std::string> Lines(const Findings& found) {
  std::vector<std::string> out;
  for (const Verdict& v : Judge(found)) {
    EXPECT_FALSE(v.remedy.empty()) << v.what;
    out.push_back(absl::StrCat("[", v.kind, "] ", ToLine(v)));
  }
  return out;
}

TEST(Verdicts, NoneWhereAllIsWell) {
  EXPECT_THAT(Lines(Well()), ElementsAre());
}

TEST(Verdicts, EachWayToFailHasItsOwn) {
  const std::pair<Reach, const char*> cases[] = {
      {Reach::kBadName, "[dns] w1: the host of 10.0.0.3:7101 is unknown (why)"},
      {Reach::kRefused, "[refused] w1: nothing listens on 10.0.0.3:7101"},
      {Reach::kNoAnswer, "[timeout] w1: no answer from"},
      {Reach::kNoRoute, "[no_route] w1: no way to"},
      {Reach::kNoTls, "[tls] w1: 10.0.0.3:7101 speaks no TLS"},
      {Reach::kWantsTls, "[tls] w1: 10.0.0.3:7101 wants TLS"},
      {Reach::kBadPeerCert, "[tls] w1: the certificate of"},
      {Reach::kRefusesCert, "[tls] w1: 10.0.0.3:7101 refuses"},
      {Reach::kHangs, "[hangs] w1: 10.0.0.3:7101 accepts"},
      {Reach::kStranger, "[stranger] w1: what listens on"}};
  for (const auto& [reach, line] : cases) {
    Findings found = Well();
    found.workers[1].checkup.reach = {reach, "why"};
    found.workers[1].figures.Clear();
    EXPECT_THAT(Lines(found), ElementsAre(HasSubstr(line)));
  }
}

TEST(Verdicts, RefusalsKeepTheirRemedy) {
  Findings found = Well();
  found.workers[0].checkup.control = absl::FailedPreconditionError(
      "register: w0 (10.0.0.2:7101): the coordinator (1.2.3) speaks protocol "
      "1, worker w0 speaks 2; run the same version on both sides");
  found.workers[1].checkup.control = absl::FailedPreconditionError(
      "connect: this is worker w7, the coordinator looks for w1; check the "
      "addresses in the configuration");
  found.workers[2].measured = absl::UnimplementedError(
      "measure: w2 (10.0.0.4:7101): there is no method Measure");
  EXPECT_THAT(
      Lines(found),
      ElementsAre(
          HasSubstr("[version] w0: register: w0"),
          AllOf(HasSubstr("[identity] w1"), HasSubstr("check the addresses")),
          AllOf(HasSubstr("[version] w2"),
                HasSubstr("run the same version on both sides"))));
}

TEST(Verdicts, VersionsAndClocks) {
  Findings found = Well();
  found.workers[0].checkup.version = "1.2.2";
  found.workers[1].checkup.clock_offset_s = -7;
  found.workers[2].checkup.clock_offset_s = 0.9;
  EXPECT_THAT(Lines(found),
              ElementsAre(HasSubstr("runs conclave 1.2.2, the coordinator"),
                          HasSubstr("[clock] w1: its clock is 7.0 s behind")));
  // A call that took long says little about the clock.
  found = Well();
  found.workers[1].checkup.clock_offset_s = 3;
  found.workers[1].checkup.clock_error_s = 2.5;
  EXPECT_THAT(Lines(found), ElementsAre());
}

TEST(Verdicts, OneLinkMuchSlowerThanTheOthers) {
  Findings found = Well();
  found.workers[2].figures.set_round_trip_us(900);
  EXPECT_THAT(Lines(found),
              ElementsAre(HasSubstr("w2: its round trip takes 900 us")));
  found = Well();
  found.workers[0].figures.set_back_gb_per_s(0.11);
  EXPECT_THAT(
      Lines(found),
      ElementsAre(HasSubstr("w0: the way back from it carries 0.110 GB/s")));
  // Tiny differences of tiny numbers are none.
  found = Well();
  for (WorkerFindings& f : found.workers) f.figures.set_round_trip_us(15);
  found.workers[1].figures.set_round_trip_us(60);
  EXPECT_THAT(Lines(found), ElementsAre());
}

TEST(Verdicts, MemoryIsThatOfTheMachine) {
  Findings found = Well();
  found.workers[1].figures.set_memory_free_gb(29);
  EXPECT_THAT(Lines(found),
              ElementsAre(AllOf(HasSubstr("[memory] w1"),
                                HasSubstr("needs 30.0 GB, 29.0 GB are free"))));
  // Two workers of one host share it.
  found = Well();
  found.workers[2].worker.set_address("10.0.0.2:7102");
  EXPECT_THAT(Lines(found),
              ElementsAre(AllOf(HasSubstr("w0: its part of the model (with w2 "
                                          "on this machine)"),
                                HasSubstr("needs 60.0 GB, 32.0 GB are free"))));
}

TEST(Verdicts, TheCoordinatorItself) {
  Findings found = Well();
  found.port = absl::UnavailableError("Address already in use");
  found.model = absl::NotFoundError("models/none: cannot open config.json");
  EXPECT_THAT(Lines(found),
              ElementsAre(HasSubstr("[port] coordinator: coordinator.listen "
                                    "127.0.0.1:8080: Address already"),
                          HasSubstr("[model] coordinator: models/none")));
}

// Only what was measured goes into the file.
TEST(Links, LeaveOutWorkersWithoutALink) {
  Findings found = Well();
  found.model_sha256 = "abc";
  found.workers[1].figures.set_round_trip_us(0);
  const v1::Links links = LinksOf(found);
  ASSERT_EQ(links.workers_size(), 2);
  EXPECT_EQ(links.workers(1).name(), "w2");
  EXPECT_EQ(links.measured_by(), "conclave 1.2.3");
  EXPECT_EQ(links.model_sha256(), "abc");
}

}  // namespace
}  // namespace conclave::cli
