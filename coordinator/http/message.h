// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"

namespace conclave::http {

// What came over a connection, bounded by the server's limits.
struct Request {
  std::string method;
  std::string path;           // without the query
  std::string authorization;  // the header, as it came
  std::string body;
};

struct Response {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers = {};
};

// The way back for one request: either Send once, or Begin, Write ..., End.
// All but `post` are called on the connection's own executor, where the
// handler runs too. Calls after the end, or after the client has gone, do
// nothing. Copies mean the same request.
struct Responder {
  // Runs the function on the connection's executor; from any thread, returns
  // at once.
  std::function<void(std::function<void()>)> post;
  std::function<void(Response)> send;
  std::function<void(std::string content_type)> begin;
  std::function<void(std::string)> write;
  std::function<void()> end;
  // What to call, once, when the reply can no longer reach its end: Cancelled
  // (the client has gone, or reads too slowly) or Unavailable (the server
  // stops; an error may still be sent).
  std::function<void(std::function<void(absl::Status)>)> on_gone;
};

using Handler = std::function<void(Request, Responder)>;

}  // namespace conclave::http
