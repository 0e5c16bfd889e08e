// SPDX-License-Identifier: Apache-2.0
#include "coordinator/cluster/checkup.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <memory>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "common/version.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/start_worker.h"
#include "tests/testing/tls_test.h"

namespace conclave::cluster {
namespace {

using ::testing::HasSubstr;
using testing::StartWorker;
using testing::TlsTest;

v1::Worker At(int port, const std::string& name = "w0") {
  v1::Worker worker;
  worker.set_name(name);
  worker.set_address(absl::StrCat("127.0.0.1:", port));
  return worker;
}

CheckupOptions Options(const transport::TlsKeys& keys = {}) {
  return {.keys = keys, .deadline = absl::Seconds(5), .clock = RealClock()};
}

// Listens; with `greeting` it accepts one connection and says that.
class Listener {
 public:
  explicit Listener(const std::string& greeting) {
    fd_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof(address);
    auto* generic = reinterpret_cast<sockaddr*>(&address);
    EXPECT_EQ(bind(fd_, generic, size), 0);
    EXPECT_EQ(listen(fd_, 16), 0);
    EXPECT_EQ(getsockname(fd_, generic, &size), 0);
    port_ = ntohs(address.sin_port);
    if (greeting.empty()) return;
    thread_ = std::thread([this, greeting] {
      while (true) {
        const int client = accept(fd_, nullptr, nullptr);
        if (client < 0) return;
        static_cast<void>(write(client, greeting.data(), greeting.size()));
        close(client);
      }
    });
  }
  ~Listener() {
    shutdown(fd_, SHUT_RDWR);
    if (thread_.joinable()) thread_.join();
    close(fd_);
  }
  int port() const { return port_; }

 private:
  int fd_ = -1;
  int port_ = 0;
  std::thread thread_;
};

TEST(Checkup, AWorkerTellsVersionMemoryAndTime) {
  const auto worker = StartWorker("w0");
  const Checkup checkup = CheckWorker(At(worker->port()), Options());
  ASSERT_TRUE(checkup.ok()) << checkup.control;
  EXPECT_EQ(checkup.version, Version());
  EXPECT_EQ(checkup.threads, 1);
  EXPECT_GT(checkup.memory_free_bytes, 0u);
  EXPECT_TRUE(checkup.tells_time);
  // One clock, so no more than the call is uncertain.
  EXPECT_LE(std::abs(checkup.clock_offset_s), checkup.clock_error_s + 1e-3);
  EXPECT_EQ(checkup.generation, 0u);
}

TEST(Checkup, AnotherNameIsTold) {
  const auto worker = StartWorker("w0");
  const Checkup checkup = CheckWorker(At(worker->port(), "w7"), Options());
  EXPECT_EQ(checkup.reach.reach, Reach::kOk);
  EXPECT_THAT(std::string(checkup.control.message()),
              HasSubstr("this is worker w0"));
}

TEST(Checkup, PortsWithoutAWorker) {
  const int free = StartWorker("w0")->port();
  EXPECT_EQ(CheckWorker(At(free), Options()).reach.reach, Reach::kRefused);
  v1::Worker nowhere = At(1);
  nowhere.set_address("no-such-host.invalid:7101");
  EXPECT_EQ(CheckWorker(nowhere, Options()).reach.reach, Reach::kBadName);
  const Listener stranger("220 mail.example.org ready\r\n");
  EXPECT_EQ(CheckWorker(At(stranger.port()), Options()).reach.reach,
            Reach::kStranger);
  CheckupOptions impatient = Options();
  impatient.deadline = absl::Milliseconds(300);
  const Listener silent("");
  EXPECT_EQ(CheckWorker(At(silent.port()), impatient).reach.reach,
            Reach::kHangs);
}

TEST(Checkup, PortsThatCanBeListenedOn) {
  const Listener taken("");
  const std::string address = absl::StrCat("127.0.0.1:", taken.port());
  EXPECT_EQ(CanListen(address).code(), absl::StatusCode::kUnavailable);
  const int free = StartWorker("w0")->port();
  EXPECT_TRUE(CanListen(absl::StrCat("127.0.0.1:", free)).ok());
  EXPECT_EQ(CanListen("192.0.2.1:80").code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(Checkup, WorkersMeasureTogether) {
  const auto a = StartWorker("w0"), b = StartWorker("w0");
  v1::MeasureRequest request;
  request.set_hidden(64);
  request.set_width(32);
  request.set_top_k(2);
  const int free = StartWorker("w0")->port();
  const auto replies = MeasureWorkers(
      {At(a->port()), At(free), At(b->port())}, request, Options());
  ASSERT_EQ(replies.size(), 3u);
  ASSERT_TRUE(replies[0].ok()) << replies[0].status();
  EXPECT_GT(replies[0]->memory_bytes_per_s(), 0);
  EXPECT_THAT(std::string(replies[1].status().message()), HasSubstr("w0"));
  ASSERT_TRUE(replies[2].ok()) << replies[2].status();
  EXPECT_GT(replies[2]->expert_bytes_per_s(), 0);
}

TEST_F(TlsTest, MismatchesAreToldApart) {
  const auto keys = *transport::ReadTls(Tls("ca", "ca"));
  const auto plain = StartWorker("w0");
  EXPECT_EQ(CheckWorker(At(plain->port()), Options(keys)).reach.reach,
            Reach::kNoTls);
  const auto secure = StartWorker("w0", 0, Tls("ca", "ca"));
  EXPECT_TRUE(CheckWorker(At(secure->port()), Options(keys)).ok());
  EXPECT_EQ(CheckWorker(At(secure->port()), Options()).reach.reach,
            Reach::kWantsTls);
  const auto stranger = StartWorker("w0", 0, Tls("stranger", "stranger"));
  EXPECT_EQ(CheckWorker(At(stranger->port()), Options(keys)).reach.reach,
            Reach::kBadPeerCert);
  // It has a certificate that we trust, and trusts another authority itself.
  const auto picky = StartWorker("w0", 0, Tls("stranger", "ca"));
  EXPECT_EQ(CheckWorker(At(picky->port()), Options(keys)).reach.reach,
            Reach::kRefusesCert);
}

}  // namespace
}  // namespace conclave::cluster
