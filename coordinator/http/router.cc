// SPDX-License-Identifier: Apache-2.0
#include "coordinator/http/router.h"

#include <cstddef>
#include <optional>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/time.h"
#include "common/status_macros.h"
#include "coordinator/http/openai.h"
#include "coordinator/http/openai_reply.h"
#include "coordinator/http/views.h"

namespace conclave::http {
namespace {

constexpr std::string_view kModels = "/v1/models";

// Takes the same time for every key of one length.
bool SameKey(std::string_view given, std::string_view key) {
  size_t difference = given.size() ^ key.size();
  for (size_t i = 0; i < given.size(); ++i) {
    difference |= static_cast<size_t>(given[i] ^ key[i % key.size()]);
  }
  return difference == 0;
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::string UrlDecode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && HexDigit(text[i + 1]) >= 0 &&
        HexDigit(text[i + 2]) >= 0) {
      out.push_back(static_cast<char>(HexDigit(text[i + 1]) * 16 +
                                      HexDigit(text[i + 2])));
      i += 2;
    } else {
      out.push_back(text[i]);
    }
  }
  return out;
}

class Router {
 public:
  Router(RouterOptions options, EngineCalls engine)
      : options_(std::move(options)),
        engine_(std::move(engine)),
        started_(options_.clock->Now()) {}

  void Handle(Request request, const Responder& responder) {
    const std::string& path = request.path;
    if (path != "/health" && !Authorized(request)) {
      return SendError(
          responder,
          path,
          absl::UnauthenticatedError(
              "missing or wrong API key; send Authorization: Bearer KEY"));
    }
    if (path == "/v1/chat/completions" || path == "/v1/completions") {
      if (Allowed(request, "POST", responder)) Generate(request, responder);
    } else if (path == kModels || absl::StartsWith(path, "/v1/models/")) {
      if (Allowed(request, "GET", responder)) Models(path, responder);
    } else if (path == "/health") {
      if (Allowed(request, "GET", responder)) Health(responder);
    } else if (path == "/metrics") {
      if (Allowed(request, "GET", responder)) ShowMetrics(responder);
    } else {
      SendError(responder,
                "other",
                absl::NotFoundError(
                    absl::StrCat("no such path ", path.substr(0, 128))));
    }
  }

 private:
  bool Authorized(const Request& request) const {
    if (options_.api_key.empty()) return true;
    std::string_view given = request.authorization;
    constexpr std::string_view kScheme = "Bearer ";
    if (!absl::StartsWithIgnoreCase(Abs(given), Abs(kScheme))) return false;
    return SameKey(given.substr(kScheme.size()), options_.api_key);
  }

  bool Allowed(const Request& request,
               const char* method,
               const Responder& responder) {
    if (request.method == method) return true;
    Response response;
    response.status = 405;
    response.headers.emplace_back("Allow", method);
    response.body = ErrorJson(
        absl::InvalidArgumentError(absl::StrCat(
            request.path, " takes ", method, ", not ", request.method)),
        405);
    Send(responder, request.path, std::move(response));
    return false;
  }

  void Generate(const Request& request, const Responder& responder) {
    const bool chat = request.path == "/v1/chat/completions";
    const ParseOptions options{.model = options_.model,
                               .defaults = engine_.info().default_sampling};
    auto parsed = chat ? ParseChatRequest(request.body, options)
                       : ParseCompletionRequest(request.body, options);
    if (!parsed.ok()) {
      return SendError(responder, request.path, parsed.status());
    }
    ReplyHead head = Head(options_.clock->Now());
    head.chat = chat;
    head.id = absl::StrFormat("%s-%x-%x",
                              chat ? "chatcmpl" : "cmpl",
                              absl::ToUnixMicros(started_),
                              static_cast<uint64_t>(engine_.next_id()));
    StartGeneration(engine_,
                    *std::move(parsed),
                    std::move(head),
                    responder,
                    [this, path = request.path](int http_status) {
                      Count(path, http_status);
                    });
  }

  void Models(const std::string& path, const Responder& responder) {
    const int32_t context = engine_.info().max_context;
    Response response;
    if (path == kModels) {
      response.body = ModelListJson(Head(started_), context);
      return Send(responder, path, std::move(response));
    }
    const std::string name = UrlDecode(path.substr(kModels.size() + 1));
    if (name != options_.model) {
      return SendError(
          responder,
          std::string(kModels),
          absl::NotFoundError(absl::StrCat("model: '",
                                           name.substr(0, 128),
                                           "' does not exist; this server "
                                           "serves '",
                                           options_.model,
                                           "'")));
    }
    response.body = ModelJson(Head(started_), context);
    Send(responder, std::string(kModels), std::move(response));
  }

  void Health(const Responder& responder) {
    const absl::Status status = engine_.health();
    const Engine::Info info = engine_.info();
    Response response;
    response.status = status.ok() ? 200 : 503;
    response.body = HealthJson(status, info.running, info.waiting);
    Send(responder, "/health", std::move(response));
  }

  void ShowMetrics(const Responder& responder) {
    Response response;
    response.content_type = "text/plain; version=0.0.4; charset=utf-8";
    response.body = options_.metrics->Render();
    Send(responder, "/metrics", std::move(response));
  }

  ReplyHead Head(absl::Time created) const {
    ReplyHead head;
    head.created = absl::ToUnixSeconds(created);
    head.model = options_.model;
    return head;
  }

  void SendError(const Responder& responder,
                 const std::string& path,
                 const absl::Status& status) {
    Send(responder, path, ErrorResponse(status));
  }

  void Send(const Responder& responder,
            const std::string& path,
            Response response) {
    Count(path, response.status);
    responder.send(std::move(response));
  }

  // path: one of a fixed set, so that clients cannot invent series.
  void Count(std::string_view path, int http_status) {
    const bool known = path == "/v1/chat/completions" ||
                       path == "/v1/completions" || path == "/health" ||
                       path == "/metrics" || path == kModels;
    options_.metrics
        ->AddCounter("conclave_http_requests_total",
                     "Answered requests; status 499: the client left first",
                     {{"path", known ? std::string(path) : "other"},
                      {"status", std::to_string(http_status)}})
        .Add();
  }

  const RouterOptions options_;
  const EngineCalls engine_;
  const absl::Time started_;
};

}  // namespace

Handler MakeRouter(RouterOptions options, EngineCalls engine) {
  auto router = std::make_shared<Router>(std::move(options), std::move(engine));
  return [router](Request request, Responder responder) {
    router->Handle(std::move(request), responder);
  };
}

}  // namespace conclave::http
