// SPDX-License-Identifier: Apache-2.0
#include "coordinator/http/status_map.h"

#include <cstddef>

#include "absl/strings/ascii.h"

namespace conclave::http {
namespace {

struct Row {
  absl::StatusCode code;
  int http_status;
};

// The first row of an HTTP status is also its way back.
constexpr Row kRows[] = {
    {absl::StatusCode::kOk, 200},
    {absl::StatusCode::kInvalidArgument, 400},
    {absl::StatusCode::kOutOfRange, 400},
    {absl::StatusCode::kUnauthenticated, 401},
    {absl::StatusCode::kPermissionDenied, 403},
    {absl::StatusCode::kNotFound, 404},
    {absl::StatusCode::kAlreadyExists, 409},
    {absl::StatusCode::kFailedPrecondition, 409},
    {absl::StatusCode::kResourceExhausted, 429},
    {absl::StatusCode::kInternal, 500},
    {absl::StatusCode::kUnknown, 500},
    {absl::StatusCode::kDataLoss, 500},
    {absl::StatusCode::kUnimplemented, 501},
    {absl::StatusCode::kUnavailable, 503},
    {absl::StatusCode::kDeadlineExceeded, 503},
    {absl::StatusCode::kAborted, 503},
    {absl::StatusCode::kCancelled, 503},
};

}  // namespace

int HttpStatusOf(absl::StatusCode code) {
  for (const Row& row : kRows) {
    if (row.code == code) return row.http_status;
  }
  return 500;
}

absl::StatusCode CodeOfHttpStatus(int http_status) {
  for (const Row& row : kRows) {
    if (row.http_status == http_status) return row.code;
  }
  if (http_status >= 200 && http_status < 300) return absl::StatusCode::kOk;
  if (http_status >= 400 && http_status < 500) {
    return absl::StatusCode::kInvalidArgument;
  }
  return absl::StatusCode::kUnknown;
}

std::string_view ErrorTypeOf(int http_status) {
  switch (http_status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    default:
      return http_status < 500 ? "invalid_request_error" : "server_error";
  }
}

std::string_view ReasonOf(int http_status) {
  switch (http_status) {
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 409:
      return "Conflict";
    case 413:
      return "Content Too Large";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    default:
      return "Unknown";
  }
}

std::string_view FieldOf(std::string_view message) {
  size_t end = 0;
  while (end < message.size() &&
         (absl::ascii_isalnum(message[end]) || message[end] == '_' ||
          message[end] == '.' || message[end] == '[' || message[end] == ']')) {
    ++end;
  }
  if (end == 0 || absl::ascii_isdigit(message[0])) return {};
  return message.substr(end, 2) == ": " ? message.substr(0, end)
                                        : std::string_view();
}

}  // namespace conclave::http
