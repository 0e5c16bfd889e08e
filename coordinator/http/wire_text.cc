// SPDX-License-Identifier: Apache-2.0
#include "coordinator/http/wire_text.h"

#include "absl/strings/str_cat.h"
#include "common/version.h"
#include "coordinator/http/status_map.h"
#include "coordinator/http/views.h"

namespace conclave::http {
namespace {

std::string Head(int status, std::string_view content_type, bool keep_alive) {
  return absl::StrCat("HTTP/1.1 ",
                      status,
                      " ",
                      Abs(ReasonOf(status)),
                      "\r\nServer: conclave/",
                      Abs(Version()),
                      "\r\nContent-Type: ",
                      Abs(content_type),
                      "\r\nConnection: ",
                      keep_alive ? "keep-alive" : "close",
                      "\r\n");
}

}  // namespace

std::string ResponseBytes(const Response& response, bool keep_alive) {
  std::string out = Head(response.status, response.content_type, keep_alive);
  for (const auto& [name, value] : response.headers) {
    absl::StrAppend(&out, name, ": ", value, "\r\n");
  }
  absl::StrAppend(&out,
                  "Content-Length: ",
                  response.body.size(),
                  "\r\n\r\n",
                  response.body);
  return out;
}

std::string StreamHead(std::string_view content_type,
                       bool chunked,
                       bool keep_alive) {
  return absl::StrCat(Head(200, content_type, keep_alive),
                      "Cache-Control: no-cache\r\n",
                      chunked ? "Transfer-Encoding: chunked\r\n" : "",
                      "\r\n");
}

std::string ChunkBytes(std::string_view data) {
  return absl::StrCat(absl::Hex(data.size()), "\r\n", Abs(data), "\r\n");
}

std::string_view LastChunk() { return "0\r\n\r\n"; }

}  // namespace conclave::http
