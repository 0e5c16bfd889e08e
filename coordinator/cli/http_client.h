// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace conclave::cli {

// A small HTTP/1.1 client for the terminal: http:// only, one request per
// connection, every wait bounded.
struct HttpCall {
  std::string url;     // "http://127.0.0.1:8080", path is added
  std::string path;    // "/v1/models"
  std::string method;  // "GET" or "POST"
  std::string body;
  std::string api_key;
  absl::Duration idle_timeout = absl::Seconds(60);
  std::function<bool()> stop;  // asked about ten times a second; may be null
};

struct HttpResult {
  int status = 0;
  std::string body;  // of an error, or all of it without on_data
  bool stopped = false;
};

// Hands the body of a 2xx reply piece by piece to `on_data` (may be null).
// Unavailable: no connection (says to what and what to do). DeadlineExceeded:
// nothing came for idle_timeout.
absl::StatusOr<HttpResult> Call(
    const HttpCall& call,
    const std::function<void(std::string_view piece)>& on_data);

}  // namespace conclave::cli
