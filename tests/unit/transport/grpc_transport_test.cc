// SPDX-License-Identifier: Apache-2.0
#include "common/transport/grpc_transport.h"

#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/notification.h"
#include "common/limits.h"
#include "common/transport/channel.h"
#include "common/transport/grpc_exchange_server.h"
#include "conclave/v1/control.grpc.pb.h"
#include "gmock/gmock.h"
#include "grpcpp/server.h"
#include "gtest/gtest.h"
#include "tests/testing/grpc_races.h"
#include "tests/testing/seeded.h"

namespace conclave::transport {
namespace {

using ::testing::HasSubstr;

Buffer Frame(uint32_t seed, size_t size) {
  testing::Seeded seeded(seed);
  Buffer frame(size);
  for (std::byte& b : frame.bytes()) {
    b = static_cast<std::byte>(seeded.Next() >> 24);
  }
  return frame;
}

bool Same(std::span<const std::byte> a, std::span<const std::byte> b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}

// Answers with the frame itself, with `mark` added to each byte.
class EchoServer {
 public:
  explicit EchoServer(int mark, int port = 0, TlsKeys keys = {})
      : exchange_({.spin_us = 0, .handler = [mark](auto frame) {
                     Buffer out = Buffer::Copy(frame);
                     EXPECT_EQ(reinterpret_cast<uintptr_t>(frame.data()) % 8,
                               0u);
                     for (std::byte& b : out.bytes()) {
                       b = static_cast<std::byte>(static_cast<int>(b) + mark);
                     }
                     return out;
                   }}) {
    grpc::ServerBuilder builder;
    ConfigureServer(&builder);
    builder.AddListeningPort(
        absl::StrCat("127.0.0.1:", port), ServerCredentials(keys), &port_);
    exchange_.Register(&builder);
    server_ = builder.BuildAndStart();
    if (server_ != nullptr) exchange_.Start();
  }
  ~EchoServer() {
    if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
    exchange_.Stop();
  }
  int port() const { return port_; }
  bool listens() const { return server_ != nullptr; }

 private:
  GrpcExchangeServer exchange_;
  std::unique_ptr<grpc::Server> server_;
  int port_ = 0;
};

void Dial(GrpcTransport* transport,
          int id,
          int port,
          const TlsKeys& keys = {},
          const std::string& host = "127.0.0.1") {
  const std::string address = absl::StrCat(host, ":", port);
  transport->Connect(static_cast<WorkerId>(id),
                     {.name = absl::StrCat("w", id, " (", address, ")"),
                      .exchange = Dial(address, keys, Traffic::kExchange),
                      .bulk = Dial(address, keys, Traffic::kBulk)});
}

// Waits until the link is open, or its opening failed.
absl::Status WaitForLink(GrpcTransport* transport, int id) {
  while (true) {
    transport->Pump();
    const absl::Status status = transport->LinkStatus(WorkerId{id});
    if (status.ok() || std::string(status.message()).find("not open yet") ==
                           std::string::npos) {
      return status;
    }
    std::this_thread::yield();
  }
}

absl::Time Soon() { return RealClock()->Now() + absl::Seconds(60); }

GrpcTransport::Options Options(int32_t spin_us) {
  return {.spin_us = spin_us, .clock = RealClock()};
}

TEST(GrpcTransport, FramesOfAllSizesReturnInOrderFromTheRightWorker) {
  EchoServer servers[3] = {EchoServer(1), EchoServer(2), EchoServer(3)};
  GrpcTransport transport(Options(50));
  for (int i = 0; i < 3; ++i) {
    Dial(&transport, i, servers[i].port());
    ASSERT_TRUE(WaitForLink(&transport, i).ok());
  }
  const size_t sizes[] = {0, 8, 64, 1000, 8192, 65536, 70000};
  const int rounds = 40;
  for (int round = 0; round < rounds; ++round) {
    for (int i = 0; i < 3; ++i) {
      const auto seed = static_cast<uint32_t>(100 * i + round);
      ASSERT_TRUE(
          transport.Send(WorkerId{i}, Frame(seed, sizes[round % 7])).ok());
    }
  }
  int next[3] = {};
  for (int k = 0; k < 3 * rounds; ++k) {
    auto delivery = transport.Receive(Soon());
    ASSERT_TRUE(delivery.ok()) << delivery.status();
    ASSERT_TRUE(delivery->frame.ok()) << delivery->frame.status();
    const int i = Index(delivery->from);
    const int round = next[i]++;
    Buffer expected =
        Frame(static_cast<uint32_t>(100 * i + round), sizes[round % 7]);
    for (std::byte& b : expected.bytes()) {
      b = static_cast<std::byte>(static_cast<int>(b) + i + 1);
    }
    EXPECT_TRUE(Same(delivery->frame->bytes(), expected.bytes()))
        << "worker " << i << " round " << round;
  }
}

TEST(GrpcTransport, LargeFramesTakeTheBulkStreamAndArriveWhole) {
  EchoServer server(0);
  GrpcTransport transport(Options(0));
  Dial(&transport, 0, server.port());
  ASSERT_TRUE(WaitForLink(&transport, 0).ok());
  const size_t sizes[] = {
      limits::kBulkFrameBytes, limits::kBulkFrameBytes + 8, size_t{33} << 20};
  for (const size_t size : sizes) {
    const Buffer expected = Frame(5, size);
    ASSERT_TRUE(transport.Send(WorkerId{0}, Frame(5, size)).ok());
    auto delivery = transport.Receive(Soon());
    ASSERT_TRUE(delivery.ok() && delivery->frame.ok());
    EXPECT_TRUE(Same(delivery->frame->bytes(), expected.bytes()));
  }
  EXPECT_EQ(
      transport.Send(WorkerId{0}, Buffer(limits::kFrameBytesMax + 8)).code(),
      absl::StatusCode::kResourceExhausted);
}

TEST(GrpcTransport, ReceiveKeepsItsDeadline) {
  EchoServer server(0);
  GrpcTransport transport(Options(50));
  Dial(&transport, 0, server.port());
  ASSERT_TRUE(WaitForLink(&transport, 0).ok());
  for (const absl::Duration wait :
       {absl::ZeroDuration(), absl::Microseconds(20), absl::Milliseconds(5)}) {
    EXPECT_EQ(transport.Receive(RealClock()->Now() + wait).status().code(),
              absl::StatusCode::kDeadlineExceeded);
  }
  EXPECT_EQ(transport.Receive(absl::InfinitePast()).status().code(),
            absl::StatusCode::kDeadlineExceeded);
}

TEST(GrpcTransport, BrokenLinkIsDeliveredRefusedAndReplaced) {
  GrpcTransport transport(Options(50));
  EchoServer other(2);
  Dial(&transport, 1, other.port());
  ASSERT_TRUE(WaitForLink(&transport, 1).ok());
  int port = 0;
  {
    EchoServer server(1);
    port = server.port();
    Dial(&transport, 0, port);
    ASSERT_TRUE(WaitForLink(&transport, 0).ok());
  }
  auto delivery = transport.Receive(Soon());
  ASSERT_TRUE(delivery.ok()) << delivery.status();
  EXPECT_EQ(delivery->from, WorkerId{0});
  ASSERT_FALSE(delivery->frame.ok());
  EXPECT_EQ(delivery->frame.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(delivery->frame.status().message()),
              HasSubstr(absl::StrCat("exchange: w0 (127.0.0.1:", port, ")")));
  // Told once, refused from then on; the other link lives.
  const absl::Status refused = transport.Send(WorkerId{0}, Frame(1, 64));
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("w0 (127.0.0.1"));
  ASSERT_TRUE(transport.Send(WorkerId{1}, Frame(1, 64)).ok());
  delivery = transport.Receive(Soon());
  ASSERT_TRUE(delivery.ok());
  EXPECT_EQ(delivery->from, WorkerId{1});
  EXPECT_TRUE(delivery->frame.ok());

  EchoServer again(1, port);
  ASSERT_TRUE(again.listens());
  Dial(&transport, 0, port);
  ASSERT_TRUE(WaitForLink(&transport, 0).ok());
  ASSERT_TRUE(transport.Send(WorkerId{0}, Frame(1, 64)).ok());
  delivery = transport.Receive(Soon());
  ASSERT_TRUE(delivery.ok());
  EXPECT_EQ(delivery->from, WorkerId{0});
  EXPECT_TRUE(delivery->frame.ok());
}

TEST(GrpcTransport, NobodyListens) {
  int port = 0;
  { port = EchoServer(0).port(); }
  GrpcTransport transport(Options(0));
  EXPECT_EQ(transport.Send(WorkerId{0}, Frame(1, 64)).code(),
            absl::StatusCode::kUnavailable);
  Dial(&transport, 0, port);
  const absl::Status status = WaitForLink(&transport, 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("w0 (127.0.0.1:"));
}

TEST(GrpcTransport, ServerWithoutTheMethodIsNoWorker) {
  v1::WorkerControl::Service control;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(
      "127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(&control);
  const auto server = builder.BuildAndStart();
  ASSERT_NE(server, nullptr);
  {
    GrpcTransport transport(Options(0));
    Dial(&transport, 0, port);
    const absl::Status status = WaitForLink(&transport, 0);
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
    EXPECT_THAT(std::string(status.message()), HasSubstr("w0 (127.0.0.1:"));
  }
  server->Shutdown();
}

// A second worker on a port that is taken must not start.
TEST(GrpcExchangeServer, PortInUse) {
  EchoServer first(0);
  EchoServer second(0, first.port());
  EXPECT_FALSE(second.listens());
}

// Links come and go in other threads while the engine's thread exchanges.
TEST(GrpcTransport, ReconnectsBesideReceive) {
  EchoServer steady(1), shaky(2);
  GrpcTransport transport(Options(50));
  Dial(&transport, 0, steady.port());
  ASSERT_TRUE(WaitForLink(&transport, 0).ok());
  std::atomic<bool> stop{false};
  std::thread cluster([&] {
    for (int i = 0; i < 30; ++i) {
      Dial(&transport, 1, shaky.port());
      for (int k = 0; k < 100; ++k) {
        transport.Pump();
        std::this_thread::yield();
      }
      (void)transport.LinkStatus(WorkerId{1});
      if (i % 3 == 0) {
        transport.Disconnect(WorkerId{1}, absl::UnavailableError("test"));
      }
    }
    stop = true;
  });
  int exchanged = 0;
  while (!stop || exchanged < 50) {
    ASSERT_TRUE(transport.Send(WorkerId{0}, Frame(3, 8192)).ok());
    while (true) {
      auto delivery = transport.Receive(Soon());
      ASSERT_TRUE(delivery.ok()) << delivery.status();
      if (delivery->from != WorkerId{0}) continue;
      ASSERT_TRUE(delivery->frame.ok());
      break;
    }
    ++exchanged;
  }
  cluster.join();
}

// A worker that is stopped in the middle of an exchange.
TEST(GrpcTransport, SilentWorkerBlocksNobody) {
  absl::Notification release;
  GrpcExchangeServer silent({.spin_us = 0, .handler = [&](auto frame) {
                               release.WaitForNotification();
                               return Buffer::Copy(frame);
                             }});
  grpc::ServerBuilder builder;
  ConfigureServer(&builder);
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", ServerCredentials({}), &port);
  silent.Register(&builder);
  const auto server = builder.BuildAndStart();
  silent.Start();
  EchoServer other(1);
  {
    GrpcTransport transport(Options(50));
    Dial(&transport, 0, port);
    Dial(&transport, 1, other.port());
    ASSERT_TRUE(WaitForLink(&transport, 0).ok());
    ASSERT_TRUE(WaitForLink(&transport, 1).ok());
    for (int i = 0; i < 20; ++i) {
      ASSERT_TRUE(transport.Send(WorkerId{0}, Frame(1, size_t{4} << 20)).ok());
    }
    ASSERT_TRUE(transport.Send(WorkerId{1}, Frame(1, 64)).ok());
    auto delivery = transport.Receive(Soon());
    ASSERT_TRUE(delivery.ok());
    EXPECT_EQ(delivery->from, WorkerId{1});
    EXPECT_EQ(transport.Receive(RealClock()->Now() + absl::Milliseconds(20))
                  .status()
                  .code(),
              absl::StatusCode::kDeadlineExceeded);
  }  // destroyed while the worker is silent
  release.Notify();
  server->Shutdown(std::chrono::system_clock::now());
  silent.Stop();
}

// A control call whose client has gone before the answer comes, and one that
// is answered by another thread.
TEST(GrpcExchangeServer, ControlCallsAreAnsweredLater) {
  std::mutex mu;
  std::vector<Responder> held;
  GrpcExchangeServer exchange(
      {.spin_us = 0,
       .handler = [](auto frame) { return Buffer::Copy(frame); },
       .control =
           [&](const std::string& method, const std::string&, Responder r) {
             EXPECT_EQ(method, "/conclave.v1.WorkerControl/Health");
             const std::lock_guard<std::mutex> lock(mu);
             held.push_back(std::move(r));
           }});
  grpc::ServerBuilder builder;
  ConfigureServer(&builder);
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", ServerCredentials({}), &port);
  exchange.Register(&builder);
  const auto server = builder.BuildAndStart();
  exchange.Start();
  const auto stub = v1::WorkerControl::NewStub(
      Dial(absl::StrCat("127.0.0.1:", port), {}, Traffic::kControl));
  v1::HealthReply reply;
  {
    grpc::ClientContext context;
    context.set_deadline(
        absl::ToChronoTime(RealClock()->Now() + absl::Milliseconds(100)));
    EXPECT_EQ(stub->Health(&context, {}, &reply).error_code(),
              grpc::StatusCode::DEADLINE_EXCEEDED);
  }
  std::thread answers([&] {
    for (size_t answered = 0; answered < 2;) {
      const std::lock_guard<std::mutex> lock(mu);
      if (held.size() <= answered) continue;
      v1::HealthReply message;
      message.set_frames_served(answered);
      held[answered].send(message.SerializeAsString());
      held[answered++].finish(absl::OkStatus());
    }
  });
  grpc::ClientContext context;
  const grpc::Status status = stub->Health(&context, {}, &reply);
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(reply.frames_served(), 1u);
  answers.join();
  server->Shutdown(std::chrono::system_clock::now());
  exchange.Stop();
}

}  // namespace
}  // namespace conclave::transport
