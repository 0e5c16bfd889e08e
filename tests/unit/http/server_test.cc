// SPDX-License-Identifier: Apache-2.0
#include "coordinator/http/server.h"

#include <string>
#include <thread>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/unit/http/fake_server.h"

namespace conclave::http {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

TEST_F(ServerTest, AnswersPipelinedRequestsInOrder) {
  Start();
  auto client = Connect();
  client->Send(
      "GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n"
      "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
      "GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  EXPECT_THAT(client->ReadResponse(), HasSubstr("\"object\":\"list\""));
  EXPECT_THAT(client->ReadResponse(), HasSubstr("\"status\":\"ok\""));
  EXPECT_THAT(client->ReadResponse(), StartsWith("HTTP/1.1 404 "));
  EXPECT_EQ(client->ReadResponse(), "");
}

TEST_F(ServerTest, ChecksPathsAndMethods) {
  Start();
  auto client = Connect();
  client->Get("/v1/chat/completions");
  std::string reply = client->ReadResponse();
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 405 "));
  EXPECT_THAT(reply, HasSubstr("Allow: POST\r\n"));
  client->Get("/v1/models/tiny?x=1");
  EXPECT_THAT(client->ReadResponse(), HasSubstr("\"max_model_len\":4096"));
  client->Get("/v1/models/gpt%2D4");
  reply = client->ReadResponse();
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 404 "));
  EXPECT_THAT(reply, HasSubstr("'gpt-4' does not exist"));
  EXPECT_THAT(reply, HasSubstr("\"code\":\"model_not_found\""));
  client->Get("/metrics");
  EXPECT_THAT(client->ReadResponse(),
              HasSubstr("conclave_http_requests_total{path=\"/v1/models\""));
}

TEST_F(ServerTest, AsksForTheKeyEverywhereButForHealth) {
  Start({}, "secret");
  auto client = Connect();
  client->Get("/v1/models");
  std::string reply = client->ReadResponse();
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 401 "));
  EXPECT_THAT(reply, HasSubstr("\"code\":\"invalid_api_key\""));
  for (const char* wrong : {"secre", "secrets", "Secret", ""}) {
    client->Get("/metrics",
                absl::StrCat("Authorization: Bearer ", wrong, "\r\n"));
    EXPECT_THAT(client->ReadResponse(), StartsWith("HTTP/1.1 401 "));
  }
  client->Get("/v1/models", "Authorization: Bearer secret\r\n");
  EXPECT_THAT(client->ReadResponse(), StartsWith("HTTP/1.1 200 "));
  client->Get("/health");
  EXPECT_THAT(client->ReadResponse(), StartsWith("HTTP/1.1 200 "));
}

TEST_F(ServerTest, HealthSaysWhy) {
  Start();
  engine_.Ail(absl::UnavailableError("worker w1 is not connected"));
  auto client = Connect();
  client->Get("/health");
  const std::string reply = client->ReadResponse();
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 503 "));
  EXPECT_THAT(reply, HasSubstr("worker w1 is not connected"));
}

TEST_F(ServerTest, BoundsWhatComesIn) {
  ServerOptions options;
  options.body_bytes_max = 1000;
  Start(options);
  auto client = Connect();
  client->Post("/v1/chat/completions", std::string(1001, 'x'));
  std::string reply = client->ReadResponse();
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 413 "));
  EXPECT_THAT(reply, HasSubstr("body: more than 1000 bytes"));

  client = Connect();
  client->Get("/health", absl::StrCat("X: ", std::string(40000, 'x'), "\r\n"));
  EXPECT_THAT(client->ReadResponse(), StartsWith("HTTP/1.1 431 "));

  client = Connect();
  client->Send("this is no HTTP\r\n\r\n");
  EXPECT_THAT(client->ReadResponse(), StartsWith("HTTP/1.1 400 "));

  client = Connect();
  client->Post("/v1/completions", "{\"prompt\": \"\xff\"}");
  EXPECT_THAT(client->ReadResponse(), HasSubstr("body: byte 12: not UTF-8"));
}

TEST_F(ServerTest, TurnsAwayTooManyConnections) {
  ServerOptions options;
  options.connections_max = 1;
  Start(options);
  auto first = Connect();
  first->Get("/health");
  EXPECT_THAT(first->ReadResponse(), StartsWith("HTTP/1.1 200 "));
  auto second = Connect();
  EXPECT_THAT(second->ReadResponse(), StartsWith("HTTP/1.1 503 "));
}

TEST_F(ServerTest, ClosesIdleConnections) {
  ServerOptions options;
  options.idle = absl::Milliseconds(50);
  Start(options);
  auto client = Connect();
  client->Send("GET /health HTT");
  EXPECT_EQ(client->ReadResponse(), "");
}

TEST_F(ServerTest, StopEndsStreamsWithAnError) {
  Start();
  auto idle = Connect();
  idle->Get("/health");
  idle->ReadResponse();
  auto client = Connect();
  client->Post("/v1/chat/completions", kChatStream);
  engine_.Sink(0)(Text("A"));
  client->ReadUntil("\"content\":\"A\"");
  std::string rest;
  std::thread reader([&] {
    rest = client->ReadUntil("0\r\n\r\n");
    client->Close();
  });
  server_->Stop(absl::Seconds(20));
  reader.join();
  EXPECT_THAT(rest, HasSubstr("the server is shutting down"));
  EXPECT_THAT(rest, HasSubstr("\"code\":503"));
  EXPECT_EQ(engine_.cancels(), 1u);
  EXPECT_EQ(idle->ReadResponse(), "");
  // Late events go nowhere.
  engine_.Sink(0)(Text("B"));
}

TEST_F(ServerTest, AnUnusableAddressIsAnError) {
  Start();
  ServerOptions options;
  options.port = server_->port();
  auto second = Server::Start(options, [](Request, Responder) {});
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(second.status().message()), HasSubstr("--listen"));
  options.tls_cert = "no/such/file.pem";
  options.tls_key = "no/such/file.pem";
  second = Server::Start(options, [](Request, Responder) {});
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr("no/such/file.pem"));
}

}  // namespace
}  // namespace conclave::http
